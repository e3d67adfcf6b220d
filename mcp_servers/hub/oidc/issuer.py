"""Owns one OIDC issuer: its discovery document, its keys and how long these are trusted, and whether a token is signed by one."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import quote, urlsplit

import jwt
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from body_broker.errors import Unauthenticated, Unavailable
from body_broker.telemetry import get_logger
from mcp_servers.hub.claims import ISSUED_AHEAD_S, Seconds
from mcp_servers.hub.oidc.keys import ALGORITHMS, Keys, PublicKey, read_keys

if TYPE_CHECKING:
    from mcp_servers.hub.oidc.wire import Wire

log = get_logger(__name__)

LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
# A key is trusted this long after the issuer was last seen to publish it, and asked for again long before that.
TRUSTED_S = 3600.0
ASKED_EVERY_S = 300.0
# Whoever sends tokens of keys nobody knows makes the hub ask no more often than this; also the pause after a failure.
ASKED_AGAIN_S = 5.0
_TYPES = frozenset({"jwt", "at+jwt", "application/at+jwt", "application/jwt"})
_JWS = jwt.PyJWS()
Text = Annotated[str, Field(min_length=1, max_length=1000)]


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True, allow_inf_nan=False, hide_input_in_errors=True, extra="allow")


class _Token(_Strict):
    """What every token of the issuer must say; the rest is left as it came."""

    iss: str
    sub: Text
    aud: str | list[str]
    exp: Seconds
    iat: Seconds
    nbf: Seconds | None = None
    azp: str | None = None


class _Discovered(_Strict):
    issuer: str
    jwks_uri: str
    authorization_endpoint: str = ""
    token_endpoint: str = ""
    token_endpoint_auth_methods_supported: list[str] = Field(default_factory=lambda: ["client_secret_basic"])
    authorization_response_iss_parameter_supported: bool = False


@dataclass(frozen=True, slots=True)
class Provider:
    """Where people log in, and how this client shows itself there.

    Attributes:
        names_itself: Whether its answers must carry `iss` (RFC 9207).
        basic: Whether a client's secret goes into the Authorization header, else into the form.
    """

    authorization_endpoint: str
    token_endpoint: str
    names_itself: bool
    basic: bool


class OidcIssuer:
    """Checks what the issuer signed. The network is asked when a key is unknown, and beside the calls; never for a known key.

    Args:
        url: Its identifier, exactly as its tokens say it.
        jwks_url: Where its keys are, without asking its discovery document.
        clock: Unix seconds, for what tokens say of time.
        monotonic: Seconds, for how old keys are.

    Attributes:
        version: Moves whenever a key is withdrawn, changed, or no longer trusted.
    """

    def __init__(
        self, url: str, *, jwks_url: str | None, clock: Callable[[], float], monotonic: Callable[[], float]
    ) -> None:
        self.url, self.version = url, 0
        self._jwks_url, self._clock, self._monotonic = jwks_url, clock, monotonic
        self._keys: Keys = {}
        self._seen_at = self._asked_at = float("-inf")
        self._failed: str | None = None
        self._one, self._used = asyncio.Lock(), asyncio.Event()
        self._wire: Wire | None = None
        self._provider: tuple[float, Provider] | None = None

    async def access_token(self, token: str, audience: str) -> Mapping[str, Any]:
        """The claims of a bearer token for this hub.

        Raises:
            Unauthenticated: It does not hold; the message says why and repeats nothing of it.
            Unavailable: Its key is unknown and the issuer cannot be asked.
        """
        claims = await self._verify(token)
        _check_audience(claims, audience)
        return _dumped(claims)

    async def id_token(self, token: str, client: str) -> Mapping[str, Any]:
        """The claims of an id token made for this client.

        Raises:
            Unauthenticated: It does not hold.
            Unavailable: Its key is unknown and the issuer cannot be asked.
        """
        claims = await self._verify(token)
        _check_audience(claims, client)
        several = isinstance(claims.aud, list) and len(claims.aud) > 1
        if (several or claims.azp is not None) and claims.azp != client:
            raise Unauthenticated("The id token was made for another client.")
        return _dumped(claims)

    async def provider(self) -> Provider:
        """Its endpoints, asked for at most once in a while.

        Raises:
            Unavailable: It cannot be asked, or names none that could be used.
        """
        if self._provider is None or self._monotonic() - self._provider[0] > ASKED_EVERY_S:
            found = await self._discover()
            for endpoint in (found.authorization_endpoint, found.token_endpoint):
                _check_secure(endpoint, "its discovery document names an endpoint that is not https")
            methods = found.token_endpoint_auth_methods_supported
            provider = Provider(
                found.authorization_endpoint,
                found.token_endpoint,
                names_itself=found.authorization_response_iss_parameter_supported,
                basic="client_secret_basic" in methods or "client_secret_post" not in methods,
            )
            self._provider = (self._monotonic(), provider)
        return self._provider[1]

    async def redeem(self, provider: Provider, form: Mapping[str, str], secret: str | None) -> dict[str, Any]:
        """What the token endpoint answers to a code.

        Raises:
            Unavailable: It does not answer.
        """
        headers: dict[str, str] = {}
        if secret is not None and provider.basic:
            both = f"{quote(form['client_id'], safe='')}:{quote(secret, safe='')}"  # RFC 6749 §2.3.1
            headers["authorization"] = f"Basic {base64.b64encode(both.encode()).decode()}"
        elif secret is not None:
            form = {**form, "client_secret": secret}
        return await (await self._line()).post(provider.token_endpoint, form, headers)

    def forget_old_keys(self) -> None:
        """Trust no key that the issuer was not seen to publish for an hour."""
        if self._keys and self._monotonic() - self._seen_at > TRUSTED_S:
            self._keys = {}
            self.version += 1

    async def follow(self) -> None:
        """Ask for the keys now and then, once they were needed, until cancelled."""
        await self._used.wait()
        while True:
            await asyncio.sleep(ASKED_EVERY_S)
            try:
                async with self._one:
                    await self._ask()
            except Unavailable as error:
                log.warning("oidc_keys_not_read", reason=error.message)

    async def close(self) -> None:
        """Close its connections."""
        if self._wire is not None:
            await self._wire.close()

    async def _verify(self, token: str) -> _Token:
        try:
            header = jwt.get_unverified_header(token)
        except jwt.PyJWTError as error:
            raise _malformed() from error
        kid, algorithm, kind = header.get("kid"), header.get("alg"), header.get("typ", "JWT")
        if algorithm not in ALGORITHMS or not isinstance(kid, str):
            raise _not_signed()
        if not isinstance(kind, str) or kind.lower() not in _TYPES:
            raise Unauthenticated("The token is of a type that opens nothing here.")
        key = await self._key(kid, algorithm)
        try:
            claims = _Token.model_validate_json(_JWS.decode(token, key, algorithms=[algorithm]))
        except jwt.InvalidSignatureError as error:
            raise _not_signed() from error
        except jwt.PyJWTError as error:
            raise _malformed() from error
        except ValidationError as error:
            names = sorted({str(e["loc"][0]) for e in error.errors(include_input=False) if e["loc"]})
            raise Unauthenticated(
                f"The token's claims are missing or malformed: {', '.join(names) or 'all of them'}."
            ) from error
        self._check_holds(claims)
        return claims

    def _check_holds(self, claims: _Token) -> None:
        now = self._clock()
        if claims.iss != self.url:
            raise Unauthenticated("The token was issued by another issuer.")
        if claims.exp <= now:
            raise Unauthenticated("The token has expired.", next_step="Refresh it, or log in at the issuer again.")
        if (claims.nbf is not None and claims.nbf > now) or claims.iat > now + ISSUED_AHEAD_S:
            raise Unauthenticated("The token is not valid yet.")

    async def _key(self, kid: str, algorithm: str) -> PublicKey:
        self._used.set()
        self.forget_old_keys()
        if (kid, algorithm) not in self._keys:
            async with self._one:
                if (kid, algorithm) not in self._keys and self._monotonic() - self._asked_at >= ASKED_AGAIN_S:
                    await self._ask()
        key = self._keys.get((kid, algorithm))
        if key is None:
            raise away(self._failed) if self._failed else _not_signed()
        return key

    async def _ask(self) -> None:
        self._asked_at = began = self._monotonic()
        self._failed = "The OIDC issuer was not heard to the end."  # whoever asks may be cancelled
        try:
            url = self._jwks_url or (await self._discover()).jwks_uri
            _check_secure(url, "the address of its keys is not https")
            found = read_keys(await (await self._line()).get(url))
        except Unavailable as error:
            self._failed = error.message
            raise
        self._failed = None
        # Whoever was let in by a key that is no longer there is checked again.
        if any(found.get(name) != key for name, key in self._keys.items()):
            self.version += 1
        self._keys, self._seen_at = found, began
        if not found:
            log.warning("oidc_no_keys", reason="the issuer publishes no key that could be used")

    async def _discover(self) -> _Discovered:
        document = await (await self._line()).get(f"{self.url.rstrip('/')}/.well-known/openid-configuration")
        try:
            found = _Discovered.model_validate(document)
        except ValidationError as error:
            raise _unfit("its discovery document does not fit OpenID Connect") from error
        if found.issuer != self.url:
            raise _unfit("its discovery document names another issuer")
        return found

    async def _line(self) -> Wire:
        if self._wire is None:
            from mcp_servers.hub.oidc.wire import Wire  # noqa: PLC0415  # aiohttp, only where there is an issuer

            self._wire = Wire()
        return self._wire


def is_secure(url: str) -> bool:
    """Whether nobody on the way can change what comes from there: https, or this very machine."""
    parts = urlsplit(url)
    return parts.scheme == "https" or (parts.scheme == "http" and parts.hostname in LOOPBACK)


def unverified_issuer(token: str) -> str | None:
    """Who the token says it is from, unchecked: good for choosing who checks it, and for nothing else."""
    try:
        found: object = jwt.decode(token, options={"verify_signature": False}).get("iss")
    except (jwt.PyJWTError, ValueError, RecursionError):
        return None
    return found if isinstance(found, str) else None


def _check_secure(url: str, what: str) -> None:
    if not is_secure(url):
        raise _unfit(what)


def _check_audience(claims: _Token, audience: str) -> None:
    if audience not in ([claims.aud] if isinstance(claims.aud, str) else claims.aud):
        raise Unauthenticated(
            "The token is meant for another audience.",
            next_step=f"Its `aud` must hold {audience}: the issuer is told to put it there (docs/oidc.md).",
        )


def _dumped(claims: _Token) -> Mapping[str, Any]:
    return claims.model_dump()


def away(message: str) -> Unavailable:
    """The issuer cannot be asked, or not understood."""
    return Unavailable(
        message,
        details={"component": "oidc"},
        next_step="Repeat it later; an operator looks at BODY_BROKER_OIDC_ISSUER and at the issuer itself.",
    )


def _unfit(what: str) -> Unavailable:
    return away(f"The OIDC issuer cannot be used: {what}.")


def _malformed() -> Unauthenticated:
    return Unauthenticated("The token is malformed.")


def _not_signed() -> Unauthenticated:
    return Unauthenticated("The token is not signed by a key of its issuer.")
