"""Owns the pages' login by the OIDC issuer: authorization code with PKCE, begun in one request and finished in another."""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
from collections.abc import Mapping
from urllib.parse import urlencode, urlsplit

from body_broker.calls import Json
from body_broker.errors import Denied, Unauthenticated, Unavailable
from body_broker.settings import Settings
from mcp_servers.hub.oidc.issuer import OidcIssuer, Provider
from mcp_servers.hub.oidc.logins import Logins
from mcp_servers.hub.oidc.mapping import Mapper

CALLBACK = "/login/oidc/callback"
# What OpenID Connect and RFC 6749 let an issuer answer; its own description is never repeated.
_REFUSALS = {
    "access_denied": "The issuer says that access was denied.",
    "login_required": "The issuer says that somebody must log in there first.",
    "interaction_required": "The issuer says that it must ask something first.",
    "consent_required": "The issuer says that consent is missing.",
    "account_selection_required": "The issuer says that an account must be chosen first.",
    "invalid_scope": "The issuer does not know the scopes in BODY_BROKER_OIDC_SCOPES.",
    "unauthorized_client": "The issuer does not let this client log people in.",
    "invalid_client": "The issuer does not accept this client's id or secret.",
    "invalid_grant": "The issuer does not accept the code: it is old, used, or another's.",
    "temporarily_unavailable": "The issuer says that it is busy.",
    "server_error": "The issuer says that it failed.",
}
_AGAIN = "Begin the login again from the page."


class OidcLogin:
    """Logs people in; `Identities.oidc.login` of a hub with an issuer and a client id, else None.

    The pages keep what `begin` gives them for one browser and one use (a sealed cookie; that it was used is a row of page_challenge),
    and hand it to `finish`.

    Args:
        issuer: Who says who they are.
        logins: Which account is which person.
        mapper: From claims to a person.
        settings: The client's id and secret, the scopes, and the pages' URL.
    """

    def __init__(self, issuer: OidcIssuer, logins: Logins, mapper: Mapper, settings: Settings) -> None:
        assert settings.oidc_client_id is not None
        self._issuer, self._logins, self._mapper = issuer, logins, mapper
        self._settings, self._client = settings, settings.oidc_client_id

    async def begin(self, base_url: str | None = None) -> tuple[str, Mapping[str, Json]]:
        """Where the browser goes, and what is to be kept for its way back: nothing with which alone one could log in.

        Args:
            base_url: Of the pages, without it the public URL; `CALLBACK` under it must be registered at the issuer.

        Raises:
            Unavailable: The issuer does not answer.
        """
        provider = await self._issuer.provider()
        state, nonce, salt = (secrets.token_urlsafe(32) for _ in range(3))
        redirect_uri = (base_url or self._settings.public_url or "").rstrip("/") + CALLBACK
        asked = {
            "response_type": "code",
            "client_id": self._client,
            "redirect_uri": redirect_uri,
            "scope": " ".join(dict.fromkeys(["openid", *self._settings.oidc_scopes.split()])),
            "state": state,
            "nonce": nonce,
            "code_challenge": _b64(hashlib.sha256(_verifier(salt, state).encode()).digest()),
            "code_challenge_method": "S256",
        }
        joint = "&" if urlsplit(provider.authorization_endpoint).query else "?"
        kept: dict[str, Json] = {
            "state": _hash(state),
            "nonce": _hash(nonce),
            "salt": salt,
            "redirect_uri": redirect_uri,
        }
        return f"{provider.authorization_endpoint}{joint}{urlencode(asked)}", kept

    async def finish(self, query: Mapping[str, str], kept: Mapping[str, Json]) -> str:
        """Who came back, `person:anna`.

        Args:
            query: The callback's query, decoded.
            kept: What `begin` gave for this browser, and nobody has used since.

        Raises:
            Unauthenticated: An answer that was not asked for, or an id token that does not hold; or its claims name nobody
                here.
            Denied: The issuer said no; the message says what it said, in our words.
            Unavailable: The issuer or the database does not answer.
        """
        state = query.get("state", "")
        if not hmac.compare_digest(_hash(state), str(kept["state"])):
            raise Unauthenticated("This is not the answer to the login that was begun here.", next_step=_AGAIN)
        provider = await self._issuer.provider()
        named = query.get("iss")
        if (named is None and provider.names_itself) or (named is not None and named != self._issuer.url):
            raise Unauthenticated("The answer comes from another issuer than was asked.", next_step=_AGAIN)
        if "error" in query:
            raise _refused(query["error"])
        if not query.get("code"):
            raise Unauthenticated("The issuer's answer carries no code.", next_step=_AGAIN)
        id_token = await self._redeem(
            provider, query["code"], _verifier(str(kept["salt"]), state), str(kept["redirect_uri"])
        )
        claims = await self._issuer.id_token(id_token, self._client)
        if not isinstance(claims.get("nonce"), str) or _hash(claims["nonce"]) != kept["nonce"]:
            raise Unauthenticated("The id token belongs to another login.", next_step=_AGAIN)
        person = self._mapper.person(claims)
        await self._logins.bind(person, self._issuer.url, claims["sub"])
        return person

    async def _redeem(self, provider: Provider, code: str, verifier: str, redirect_uri: str) -> str:
        secret = self._settings.oidc_client_secret
        form = {
            "grant_type": "authorization_code",
            "code": code,
            "redirect_uri": redirect_uri,
            "client_id": self._client,
            "code_verifier": verifier,
        }
        told = await self._issuer.redeem(provider, form, secret.get_secret_value() if secret else None)
        id_token = told.get("id_token")
        if "error" in told or not isinstance(id_token, str):
            raise _refused(told.get("error"))
        return id_token


def _verifier(salt: str, state: str) -> str:
    """PKCE's secret: neither the URL, which others may see, nor the row in the database gives it away alone."""
    return _b64(hmac.digest(salt.encode(), state.encode(), "sha256"))


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _b64(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def _refused(code: object) -> Denied | Unavailable:
    words = _REFUSALS.get(code) if isinstance(code, str) else None
    if code in {"temporarily_unavailable", "server_error"} and words:
        return Unavailable(words, details={"component": "oidc"}, next_step="Wait a moment, then begin again.")
    return Denied(
        words or "The issuer did not log anybody in, and gave no reason that is known here.", next_step=_AGAIN
    )
