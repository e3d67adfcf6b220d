"""Owns the local issuer: logins, the tokens issued to them, roles, revocation, and short tokens minted for conversations."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Callable, Collection, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import jwt

from body_broker.calls import Caller
from body_broker.errors import BadInput, Conflict, NotFound, Unauthenticated, Unavailable
from body_broker.settings import Settings
from body_broker.storage.postgres import LOST, Connection, Pool
from body_broker.text import new_id
from mcp_servers.hub.oidc import logins
from mcp_servers.hub.principals import check_principal, check_roles, is_call_key, is_session, is_tier
from mcp_servers.hub.secrets import Secrets
from mcp_servers.hub.signing import ALGORITHM, MINTED_TTL_MAX_S, SigningKey, SigningKeys

ACTORS_MAX = 3
LOGIN_PREFIX = "ses"
LOCAL_PREFIX = "as"
_LOGINS = tuple(f"{prefix}_" for prefix in (LOGIN_PREFIX, LOCAL_PREFIX, logins.PREFIX))
_REMEMBERED_S = 2.0
_WITHDRAW = """
UPDATE login_token SET revoked_at = coalesce(revoked_at, now()), revoked_by = coalesce(revoked_by, $2)
WHERE jti = $1 RETURNING jti
"""
_END_LOGIN = "UPDATE login SET ended_at = now(), ended_by = $2 WHERE principal = $1 AND ended_at IS NULL RETURNING sid"


@dataclass(frozen=True, slots=True)
class Issued:
    """A token and what is on record of it.

    Attributes:
        token: The token itself; shown once, stored nowhere.
        jti: Its id, for `revoke`.
        sid: The login it belongs to.
        expires_at: Unix seconds.
        roles: The principal's roles now.
    """

    token: str = field(repr=False)
    principal: str
    jti: str
    sid: str
    expires_at: int
    roles: frozenset[str]


class Tokens:
    """Issues, mints and revokes; checking them is `identity.Identities`.

    Args:
        pool: The database.
        settings: Issuer, audience and the longest life.
        secrets: Private keys are encrypted under a key derived from these.
        clock: Unix seconds.
        monotonic: Seconds; how long the signing key and logins are remembered for minting.
    """

    def __init__(
        self,
        pool: Pool,
        settings: Settings,
        secrets: Secrets,
        *,
        clock: Callable[[], float] = time.time,  # noqa: TID251 - the parameter's default
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._pool, self._settings, self._clock, self._monotonic = pool, settings, clock, monotonic
        self._keys = SigningKeys(pool, secrets.derive("signing-keys"))
        self._signing: tuple[float, SigningKey] | None = None
        self._tiers: dict[str, tuple[float, str]] = {}

    async def issue(self, principal: str, *, ttl_s: float, roles: Collection[str] = (), by: str = "operator") -> Issued:
        """A token of the principal's login, which begins here if there is none; a second token shares the first one's session.

        Args:
            principal: tier:gold|silver|bronze, person:NAME or service:NAME.
            ttl_s: Seconds it lives, at most `token_ttl_max_s`.
            roles: Exactly the person's roles from now on, for every way of signing in; none given leaves them as they are.
            by: Who grants them, for the record.

        Raises:
            BadInput: The principal, a role or the life does not fit.
            Unavailable: The database is down.
        """
        check_principal(principal)
        kept = check_roles(principal, roles)
        if not 1 <= ttl_s <= self._settings.token_ttl_max_s:
            raise BadInput(f"A token lives 1 to {self._settings.token_ttl_max_s} seconds.")
        now, jti = self._clock(), new_id("tok")
        expires_at = int(now + ttl_s)
        async with _reaching_database():
            await self._keys.ensure()
            async with self._pool.acquire() as connection, connection.transaction():
                key = await self._keys.held(connection)
                sid = await _login(connection, principal)
                await connection.execute("DELETE FROM login_token WHERE expires_at < now() - interval '30 days'")
                await connection.execute(
                    """
                    INSERT INTO login_token (jti, sid, kid, issued_at, expires_at)
                    VALUES ($1, $2, $3, to_timestamp($4::float8), to_timestamp($5::float8))
                    """,
                    *(jti, sid, key.kid, now, expires_at),
                )
                found = await _set_roles(connection, principal, kept or None, by)
        claims = self._claims(principal, jti, sid, now, expires_at)
        return Issued(_sign(claims, key), principal, jti, sid, expires_at, found)

    async def set_roles(self, principal: str, roles: Collection[str], *, by: str) -> frozenset[str]:
        """The person's roles, now exactly these.

        Raises:
            BadInput: The principal or a role does not fit.
            Unavailable: The database is down.
        """
        kept = check_roles(check_principal(principal), roles)
        async with _reaching_database(), self._pool.acquire() as connection, connection.transaction():
            return await _set_roles(connection, principal, kept, by)

    async def revoke(self, *, jti: str | None = None, principal: str | None = None, by: str = "operator") -> None:
        """End one token, or a principal's login; every hub refuses what hangs on it within 5 s.

        A token takes with it the conversations that were minted from it; so does a login at the OIDC issuer, with all tokens
        of it. A principal's login takes all its tokens, those of the OIDC issuer too, its login to the pages, and every conversation
        that its principal asked for or acts in; the principal's next token begins a new login, a new session.

        Args:
            jti: The token's id, or the session of a login at the OIDC issuer.
            principal: Whose login ends; exactly one of the two is given.
            by: Who revokes, for the record.

        Raises:
            BadInput: Both or neither are given, or the principal is misspelt.
            NotFound: No such token is on record (those long expired are forgotten), or the principal has no login.
            Unavailable: The database is down.
        """
        if (jti is None) == (principal is None):
            raise BadInput("Name either a token's id or a principal.")
        if principal is not None:
            self._tiers.pop(check_principal(principal), None)
        async with _reaching_database(), self._pool.acquire() as connection, connection.transaction():
            found = await connection.fetchval(
                _WITHDRAW if jti is not None else _END_LOGIN, jti if jti is not None else principal, by
            )
            await connection.execute("DELETE FROM page_login WHERE person = $1", principal)
            if await logins.end(connection, by=by, session=jti, person=principal):
                found = found or jti or principal
        if found is None and jti is not None:
            raise NotFound("No token with that id is on record.", next_step="`token issue` printed the id.")
        if found is None:
            raise NotFound(
                "That principal has no login.", next_step="Check its spelling, or there is nothing to revoke."
            )

    async def rotate(self) -> str:
        """The id of a new key that signs from now on; tokens of the old one hold until they expire.

        Raises:
            Unavailable: The database is down.
        """
        async with _reaching_database():
            key = await self._keys.rotate()
        self._signing = (self._monotonic(), key)
        return key.kid

    async def mint(self, asker: Caller, actor: str, conversation: str, ttl_s: float, *, key: str | None = None) -> str:
        """A short token with which a tier works for `asker` in one conversation; a callable of the hub, never a route.

        It lives no longer than the asker's own token, dies with the asker's or the tier's login, and its session sees the
        taint of the asker's live. Calls made with it are one deeper than the asker's own.

        Args:
            asker: Who asked, as the gate knows them; may itself be in a conversation, at most three actors deep.
            actor: The tier that will call.
            conversation: The conversation's id and session, such as `new_id("cnv")`.
            ttl_s: Seconds, at most an hour.
            key: Names the one call of a job that it is for, such as `job_... 3.1`: made again under it, a `repeatable` effect is the
                same effect.

        Raises:
            BadInput: Actor, conversation, life, depth or key does not fit.
            Unauthenticated: The asker's own token has expired.
            Unavailable: The database is down.
        """
        now = self._clock()
        if not is_tier(actor):
            raise BadInput("Only a tier acts for somebody.")
        if not is_session(conversation) or conversation.startswith(_LOGINS):
            raise BadInput("This cannot be the id of a conversation.")
        if key is not None and not is_call_key(key):
            raise BadInput("This cannot be the key of a job's call.")
        if len(asker.chain) > ACTORS_MAX:
            raise BadInput(f"At most {ACTORS_MAX} actors stand between an asker and a call.")
        if not 1 <= ttl_s <= MINTED_TTL_MAX_S:
            raise BadInput(f"A conversation's token lives 1 to {MINTED_TTL_MAX_S} seconds.")
        expires_at = now + ttl_s if asker.expires_at is None else min(now + ttl_s, asker.expires_at)
        if expires_at <= now:
            raise Unauthenticated("The asker's token has expired.")
        async with _reaching_database():
            signing = await self._remembered_key()
            acts: Mapping[str, object] | None = None
            for tier in (*asker.chain[1:], actor):  # the innermost `act` is the first actor (RFC 8693 §4.1)
                acts = {"sub": tier, "sid": await self._remembered_login(tier)} | ({"act": acts} if acts else {})
        claims = self._claims(asker.asker, new_id("tok"), conversation, now, int(expires_at))
        return _sign(
            claims
            | {"act": acts, "asker": {"sid": asker.session, "jti": asker.token_id, "above": list(asker.sessions[1:])}}
            | {"depth": asker.depth + 1}
            | ({} if key is None else {"key": key}),
            signing,
        )

    def _claims(self, sub: str, jti: str, sid: str, now: float, expires_at: int) -> dict[str, object]:
        return {
            "iss": self._settings.token_issuer,
            "aud": self._settings.token_audience,
            "sub": sub,
            "jti": jti,
            "sid": sid,
            "iat": int(now),
            "exp": expires_at,
        }

    async def _remembered_key(self) -> SigningKey:
        now = self._monotonic()
        if self._signing is None or now - self._signing[0] > _REMEMBERED_S:
            self._signing = (now, await self._keys.ensure())
        return self._signing[1]

    async def _remembered_login(self, tier: str) -> str:
        now = self._monotonic()
        found = self._tiers.get(tier)
        if found is None or now - found[0] > _REMEMBERED_S:
            async with self._pool.acquire() as connection, connection.transaction():
                found = self._tiers[tier] = (now, await _login(connection, tier))
        return found[1]


async def _login(connection: Connection, principal: str) -> str:
    for _ in range(3):  # a login that is being ended beside us is looked past
        await connection.execute(
            "INSERT INTO login (sid, principal) VALUES ($1, $2) ON CONFLICT (principal) WHERE ended_at IS NULL DO NOTHING",
            *(new_id(LOGIN_PREFIX), principal),
        )
        sid: str | None = await connection.fetchval(
            "SELECT sid FROM login WHERE principal = $1 AND ended_at IS NULL FOR SHARE", principal
        )
        if sid is not None:
            return sid
    raise Conflict("The login was being revoked at the same time.", next_step="Issue the token again.")


async def _set_roles(connection: Connection, principal: str, roles: frozenset[str] | None, by: str) -> frozenset[str]:
    if roles is not None:
        await connection.execute(
            "DELETE FROM principal_role WHERE principal = $1 AND role <> ALL ($2::text[])", *(principal, list(roles))
        )
        await connection.execute(
            "INSERT INTO principal_role (principal, role, granted_by) SELECT $1, unnest($2::text[]), $3 ON CONFLICT DO NOTHING",
            *(principal, list(roles), by),
        )
    rows = await connection.fetch("SELECT role FROM principal_role WHERE principal = $1", principal)
    return frozenset([row["role"] for row in rows])


def _sign(claims: dict[str, object], key: SigningKey) -> str:
    return jwt.encode(claims, key.private, algorithm=ALGORITHM, headers={"kid": key.kid})


@asynccontextmanager
async def _reaching_database() -> AsyncGenerator[None]:
    try:
        yield
    except LOST as error:
        raise Unavailable("PostgreSQL cannot be reached.", details={"component": "postgres"}) from error
