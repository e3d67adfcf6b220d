"""Owns what is kept of OIDC logins: which account a person's name belongs to, and each login's roles, newest first, until it is ended."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncGenerator, Collection
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime

import orjson

from body_broker.errors import Unauthenticated, Unavailable
from body_broker.storage.postgres import LOST, Connection, Pool

PREFIX = "oidc"
# As long as Redis keeps the state of a login's session.
_KEPT_DAYS = 400
_GENERATIONS_MAX = 100
_SHOWN_MAX = 1000
_LOCK = 0x6F696463  # "oidc": tokens of one person are seen for the first time one after the other


@dataclass(frozen=True, slots=True)
class Seen:
    """What a checked token says of a login.

    Attributes:
        login: What the issuer calls this login (its `sid`, else when it was made); None where it names none.
        naming: How well it names it: 2 by `sid`, 1 by when it was made, 0 not at all.
        issued_at: Unix seconds, as `expires_at`.
    """

    person: str
    issuer: str
    subject: str
    login: str | None
    naming: int
    roles: frozenset[str]
    issued_at: float
    expires_at: float


@dataclass(frozen=True, slots=True)
class Login:
    """One login, for operators.

    Attributes:
        issued_at: Of its newest token, whose roles these are.
    """

    session: str
    person: str
    roles: tuple[str, ...]
    issued_at: datetime
    ended: bool


class Logins:
    """Reads and writes them.

    Args:
        pool: The database.
    """

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def see(self, seen: Seen) -> str:
        """The session of a token, whose roles are the person's from now on unless a newer token was seen already.

        Where the issuer names no login, the subject alone is the session: a new token sheds no taint. Ended, it stays ended
        for every token that was issued before; a later one begins a new session. Tokens of one account name their logins in one
        way: else one kind would be a clean session beside the tainted one of the other kind.

        Raises:
            Unauthenticated: The login was revoked, the name belongs to another account, or the account's other tokens name their
                logins otherwise.
            Unavailable: The database is down.
        """
        async with _reaching_database(), self._pool.acquire() as connection, connection.transaction():
            await _bind(connection, seen.person, seen.issuer, seen.subject)
            await _check_naming(connection, seen)
            for generation in range(_GENERATIONS_MAX):
                session = _session(seen, generation)
                if await _keep(connection, session, seen):
                    return session
                if seen.login is not None:
                    break
        raise revoked()

    async def bind(self, person: str, issuer: str, subject: str) -> None:
        """Give the name to this account, where no other has it.

        Raises:
            Unauthenticated: Another account has it.
            Unavailable: The database is down.
        """
        async with _reaching_database(), self._pool.acquire() as connection:
            await _bind(connection, person, issuer, subject)

    async def roles_of(self, person: str, sessions: Collection[str]) -> frozenset[str] | None:
        """The roles that the newest token of this person named; None where none of the sessions is an OIDC login.

        Raises:
            Unauthenticated: The login was revoked.
            Unavailable: The database is down.
        """
        ours = [session for session in sessions if is_oidc(session)]
        if not ours:
            return None
        async with _reaching_database():
            ended: bool | None = await self._pool.fetchval(
                "SELECT bool_or(ended_at IS NOT NULL) OR count(*) < cardinality($1::text[]) FROM oidc_login "
                "WHERE session = ANY ($1::text[]) AND person = $2",
                *(ours, person),
            )
            if ended:
                raise revoked()
            roles: list[str] | None = await self._pool.fetchval(
                "SELECT roles FROM oidc_login WHERE person = $1 AND ended_at IS NULL ORDER BY issued_at DESC LIMIT 1",
                person,
            )
        return frozenset(roles or ())

    async def newest(self) -> list[Login]:
        """The newest ones, ended ones among them.

        Raises:
            Unavailable: The database is down.
        """
        async with _reaching_database():
            rows = await self._pool.fetch(
                "SELECT session, person, roles, issued_at, ended_at IS NOT NULL AS ended FROM oidc_login "
                "ORDER BY issued_at DESC, session LIMIT $1::integer",
                _SHOWN_MAX,
            )
        return [
            Login(row["session"], row["person"], tuple(row["roles"]), row["issued_at"], ended=row["ended"])
            for row in rows
        ]


def is_oidc(session: str) -> bool:
    """Whether the session is a login of an OIDC issuer."""
    return session.startswith(f"{PREFIX}_")


def revoked() -> Unauthenticated:
    """The refusal of a login that was ended."""
    return Unauthenticated("The login was revoked.", next_step="Log in at the issuer again.")


async def end(connection: Connection, *, by: str, session: str | None = None, person: str | None = None) -> bool:
    """End one login, or everything of a person, whose name is free for another account then; whether there was anything."""
    freed = await connection.fetch("DELETE FROM oidc_account WHERE person = $1 RETURNING person", person)
    ended = await connection.fetch(
        "UPDATE oidc_login SET ended_at = now(), ended_by = $1 "
        "WHERE (session = $2 OR person = $3) AND ended_at IS NULL RETURNING session",
        *(by, session, person),
    )
    return bool(ended or freed)


def _session(seen: Seen, generation: int) -> str:
    # Issuer and subject are in it: whatever an issuer calls a login, two accounts never share a session.
    which = ["named", seen.login] if seen.login is not None else ["all", generation]
    parts = orjson.dumps([seen.issuer, seen.subject, *which])
    return f"{PREFIX}_{hashlib.sha256(parts).hexdigest()[:40]}"


async def _bind(connection: Connection, person: str, issuer: str, subject: str) -> None:
    await connection.execute(
        "INSERT INTO oidc_account (person, issuer, subject) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING",
        *(person, issuer, subject),
    )
    row = await connection.fetchrow("SELECT issuer, subject FROM oidc_account WHERE person = $1", person)
    if row is None or (row["issuer"], row["subject"]) != (issuer, subject):
        raise Unauthenticated(
            "The token's claims name somebody whose name belongs to another account of the issuer.",
            next_step=f"If the account was replaced, an operator lets it go: `body-broker token revoke --principal {person}`.",
        )


async def _check_naming(connection: Connection, seen: Seen) -> None:
    """Return where this token names its login as the account's others do, or better than those that are all over by now."""
    await connection.execute("SELECT pg_advisory_xact_lock($1::integer, hashtext($2))", _LOCK, seen.person)
    others: bool = await connection.fetchval(
        """
        SELECT EXISTS (SELECT 1 FROM oidc_login WHERE person = $1 AND (
            naming > $2::integer OR (naming < $2::integer AND ended_at IS NULL AND expires_at > clock_timestamp())))
        """,
        *(seen.person, seen.naming),
    )
    if others:
        raise Unauthenticated(
            "The token names its login in another way than other tokens of this account do.",
            next_step="Have the issuer put `sid` into all access tokens for this hub, or into none (docs/oidc.md).",
        )


async def _keep(connection: Connection, session: str, seen: Seen) -> bool:
    """Whether the login lives; its row is made or brought up to date, and what nobody can use any more is forgotten."""
    begun = await connection.fetchval(
        """
        INSERT INTO oidc_login (session, person, roles, issued_at, expires_at, naming)
        VALUES ($1, $2, $3::text[], to_timestamp($4::float8), to_timestamp($5::float8), $6::integer)
        ON CONFLICT DO NOTHING RETURNING true
        """,
        *(session, seen.person, sorted(seen.roles), seen.issued_at, seen.expires_at, seen.naming),
    )
    if begun:
        await connection.execute(
            "DELETE FROM oidc_login WHERE expires_at < now() - make_interval(days => $1::integer)", _KEPT_DAYS
        )
        return True
    lives: bool | None = await connection.fetchval(
        "SELECT ended_at IS NULL FROM oidc_login WHERE session = $1 FOR UPDATE", session
    )
    if not lives:
        # Where the issuer names no login, one that was issued after the end belongs to the next.
        before: bool | None = await connection.fetchval(
            "SELECT to_timestamp($2::float8) <= ended_at FROM oidc_login WHERE session = $1", session, seen.issued_at
        )
        if before is not False:
            raise revoked()
        return False
    await connection.execute(
        """
        UPDATE oidc_login SET
            expires_at = greatest(expires_at, to_timestamp($5::float8)),
            roles = CASE WHEN issued_at <= to_timestamp($4::float8) THEN $3::text[] ELSE roles END,
            person = CASE WHEN issued_at <= to_timestamp($4::float8) THEN $2 ELSE person END,
            issued_at = greatest(issued_at, to_timestamp($4::float8))
        WHERE session = $1
        """,
        *(session, seen.person, sorted(seen.roles), seen.issued_at, seen.expires_at),
    )
    return True


@asynccontextmanager
async def _reaching_database() -> AsyncGenerator[None]:
    try:
        yield
    except LOST as error:
        raise Unavailable("PostgreSQL cannot be reached.", details={"component": "postgres"}) from error
