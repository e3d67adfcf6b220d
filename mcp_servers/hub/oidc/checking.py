"""Owns who a bearer token of the OIDC issuer stands for: checked, mapped to one person, bound to one session."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager

from approvals.people import people_of
from body_broker.background import running
from body_broker.calls import Caller
from body_broker.errors import Unauthenticated
from body_broker.settings import Settings
from mcp_servers.hub.oidc.issuer import OidcIssuer, unverified_issuer
from mcp_servers.hub.oidc.login import OidcLogin
from mcp_servers.hub.oidc.logins import Logins, Seen
from mcp_servers.hub.oidc.mapping import Claims, Mapper

_NOT_FOR_CALLS = frozenset({"ID", "Refresh", "Offline", "Logout"})
_SESSION_CHARACTERS_MAX = 255


class Oidc:
    """One issuer's people at this hub; made by `open_oidc`.

    Attributes:
        issuer: Who signs.
        login: The pages' login; None without a client id.
    """

    def __init__(
        self, issuer: OidcIssuer, mapper: Mapper, logins: Logins, login: OidcLogin | None, settings: Settings
    ) -> None:
        self.issuer, self.login = issuer, login
        self._mapper, self._logins = mapper, logins
        self._audience, self._own_issuer = settings.oidc_audience or resource_of(settings), settings.token_issuer

    def decides(self, token: str) -> bool:
        """Whether this issuer's keys decide on the token, by what it says itself; else the hub's own do.

        Raises:
            Unauthenticated: It says that it is of neither.
        """
        said = unverified_issuer(token)
        if said is not None and said not in {self.issuer.url, self._own_issuer}:
            raise Unauthenticated(
                "The token was issued by another issuer.",
                next_step="Its `iss` must be BODY_BROKER_OIDC_ISSUER to the letter, a slash at the end included.",
            )
        return said == self.issuer.url

    async def check(self, token: str) -> Caller:
        """Who the token stands for. The roles are its own and nobody else's; its login is on record from now on.

        Raises:
            Unauthenticated: It does not hold, is no person's token for calls, means nobody here, or its login was revoked.
            Unavailable: The issuer or the database is needed and does not answer.
        """
        while True:
            version = self.issuer.version
            claims = await self.issuer.access_token(token, self._audience)
            _refuse_others(claims)
            person, roles = self._mapper.person(claims), self._mapper.roles(claims)
            login, naming = _login(claims)
            session = await self._logins.see(
                Seen(
                    person=person,
                    issuer=self.issuer.url,
                    subject=claims["sub"],
                    login=login,
                    naming=naming,
                    roles=roles,
                    issued_at=claims["iat"],
                    expires_at=claims["exp"],
                )
            )
            if version == self.issuer.version:  # else its key may have been withdrawn meanwhile
                return Caller((person,), {person: roles} if roles else {}, session, expires_at=claims["exp"])


@asynccontextmanager
async def open_oidc(
    settings: Settings, logins: Logins, clock: Callable[[], float], monotonic: Callable[[], float]
) -> AsyncGenerator[Oidc]:
    """The people of `oidc_issuer`, which is asked for nothing before somebody comes with its token.

    Raises:
        SettingsError: approvers.toml does not fit.
    """
    assert settings.oidc_issuer is not None
    people = await asyncio.to_thread(people_of, settings)
    mapper = Mapper(settings, people)
    issuer = OidcIssuer(settings.oidc_issuer, jwks_url=settings.oidc_jwks_url, clock=clock, monotonic=monotonic)
    login = OidcLogin(issuer, logins, mapper, settings) if settings.oidc_client_id else None
    try:
        async with running(issuer.follow(), name="oidc-keys"):
            yield Oidc(issuer, mapper, logins, login, settings)
    finally:
        await issuer.close()


def resource_of(settings: Settings) -> str:
    """What this hub is called where tokens are made for it (RFC 8707, RFC 9728)."""
    return f"{settings.public_url or ''}/mcp"


def _login(claims: Claims) -> tuple[str | None, int]:
    """What the issuer calls the login, and how well that names it: its `sid`, else when it was made; None where it says neither."""
    sid, made_at = claims.get("sid"), claims.get("auth_time")
    if isinstance(sid, str) and 0 < len(sid) <= _SESSION_CHARACTERS_MAX:
        return f"sid {sid}", 2
    if isinstance(made_at, int | float) and not isinstance(made_at, bool):
        return f"at {int(made_at)}", 1
    return None, 0


def _refuse_others(claims: Claims) -> None:
    """Tokens that hold but are not a person's own for calls."""
    if claims.get("at_hash") is not None or claims.get("typ") in _NOT_FOR_CALLS:
        raise Unauthenticated("This is not an access token.", next_step="Send the access token, not the id token.")
    if claims.get("cnf") is not None:
        raise Unauthenticated("The token is bound to a key, which this hub cannot check.")
    if claims.get("act") is not None:
        raise Unauthenticated("The token says that somebody acts for the person; only this hub says who does.")
    clients = [claims.get(name) for name in ("client_id", "azp", "cid", "appid")]
    if claims.get("idtyp") == "app" or claims.get("gty") == "client-credentials" or claims["sub"] in clients:
        raise Unauthenticated(
            "The token is a program's, not a person's.",
            next_step="Programs get a token of this hub: `body-broker token issue --service NAME`.",
        )
