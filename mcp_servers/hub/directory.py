"""Owns what this hub knows of keys, roles and revocations: one picture, followed by NOTIFY and a poll, never trusted when old."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import defaultdict
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime

import asyncpg
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from body_broker.background import running
from body_broker.errors import Unavailable
from body_broker.storage.postgres import LOST, Connection, Pool
from body_broker.telemetry import get_logger

log = get_logger(__name__)

CHANNEL = "identity_changed"
POLL_EVERY_S = 2.0
OLD_AFTER_S = 5.0
_READ_TIMEOUT_S = 2.0
_FAILURES = (*LOST, asyncpg.PostgresError)

# An ended login stays here while any token of it can still be alive; a day covers minted tokens and clocks that disagree.
_REVOKED = """
SELECT jti AS id FROM login_token WHERE revoked_at IS NOT NULL AND expires_at > now() - interval '1 day'
UNION ALL
SELECT sid FROM login WHERE ended_at IS NOT NULL AND (ended_at > now() - interval '1 day' OR EXISTS (
  SELECT FROM login_token t WHERE t.sid = login.sid AND t.expires_at > now() - interval '1 day'))
UNION ALL
SELECT session FROM oidc_login
WHERE ended_at IS NOT NULL AND greatest(ended_at, expires_at) > now() - interval '1 day'
"""


_ENDED = """
SELECT sid FROM login WHERE ended_at IS NOT NULL
    AND (sid = ANY ($1::text[]) OR (principal = ANY ($2::text[]) AND ended_at > $3::timestamptz))
UNION ALL
SELECT session FROM oidc_login WHERE ended_at IS NOT NULL AND session = ANY ($1::text[])
UNION ALL
SELECT jti FROM login_token WHERE revoked_at IS NOT NULL AND jti = ANY ($4::text[])
LIMIT 1
"""


@dataclass(frozen=True, slots=True)
class Known:
    """What the database said of tokens at one version; a new version is a new object.

    Attributes:
        version: The number that moves with every change.
        keys: Keys that still verify, by kid.
        roles: Roles by principal.
        revoked: Ids (jti of tokens, sid of logins) that no longer hold.
    """

    version: int
    keys: Mapping[str, Ed25519PublicKey]
    roles: Mapping[str, frozenset[str]]
    revoked: frozenset[str]


class Directory:
    """The picture and when it was last confirmed.

    Attributes:
        known: The latest picture.
        asked_at: Monotonic seconds at which the database was last asked with success.
    """

    def __init__(self, pool: Pool, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._pool, self._monotonic = pool, monotonic
        self._one_reader, self._changed = asyncio.Lock(), asyncio.Event()
        self._asks = self._answered = self._failed = 0  # numbers of the last question, answer and failure
        self.asked_at = float("-inf")
        self.known = Known(-1, {}, {}, frozenset())

    async def refresh(self) -> None:
        """Ask the database once; who comes while somebody asks shares an answer that began after they came.

        Raises:
            Unavailable: The database did not answer.
        """
        came = self._asks
        async with self._one_reader:
            if self._answered <= came:
                if self._failed > came:
                    raise _unreachable()
                await self._ask()

    async def ended(
        self, sessions: Sequence[str], principals: Sequence[str], since: datetime, tokens: Sequence[str] = ()
    ) -> bool:
        """Whether one of these logins or tokens was ended, however long ago, or one of these principals' logins since then.

        Raises:
            Unavailable: The database did not answer.
        """
        try:
            async with asyncio.timeout(_READ_TIMEOUT_S):
                found = await self._pool.fetchval(_ENDED, list(sessions), list(principals), since, list(tokens))
        except _FAILURES as error:
            raise _unreachable() from error
        return found is not None

    async def _ask(self) -> None:
        began = self._monotonic()
        self._asks += 1
        try:
            async with asyncio.timeout(_READ_TIMEOUT_S):
                version = await self._pool.fetchval("SELECT version FROM identity_version")
                if version != self.known.version:
                    async with (
                        self._pool.acquire() as connection,
                        connection.transaction(isolation="repeatable_read", readonly=True),
                    ):
                        self.known = await _read(connection)
        except _FAILURES as error:
            self._failed = self._asks
            raise _unreachable() from error
        self._answered, self.asked_at = self._asks, began

    async def follow(self) -> None:
        """Keep the picture current until cancelled."""
        while True:
            try:
                await self._listen()
            except (*_FAILURES, Unavailable) as error:
                log.warning("identity_follower_lost", error=type(error).__name__)
                await asyncio.sleep(POLL_EVERY_S / 4)

    async def _listen(self) -> None:
        async with self._pool.acquire(timeout=_READ_TIMEOUT_S) as connection:
            await connection.add_listener(CHANNEL, self._on_change)
            try:
                while not connection.is_closed():
                    self._changed.clear()
                    await self.refresh()
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(POLL_EVERY_S):
                            await self._changed.wait()
            finally:
                await connection.remove_listener(CHANNEL, self._on_change)

    def _on_change(self, *_: object) -> None:
        self._changed.set()


@asynccontextmanager
async def open_directory(pool: Pool, monotonic: Callable[[], float] = time.monotonic) -> AsyncGenerator[Directory]:
    """A directory that has read once and follows the database until the way out.

    Raises:
        Unavailable: The database does not answer.
    """
    directory = Directory(pool, monotonic)
    await directory.refresh()
    async with running(directory.follow(), name="identity-follower"):
        yield directory


async def _read(connection: Connection) -> Known:
    version: int = await connection.fetchval("SELECT version FROM identity_version")
    keys = await connection.fetch(
        "SELECT kid, public_key FROM signing_key WHERE coalesce(verifies_until > now(), true)"
    )
    roles: defaultdict[str, set[str]] = defaultdict(set)
    for row in await connection.fetch("SELECT principal, role FROM principal_role"):
        roles[row["principal"]].add(row["role"])
    return Known(
        version=version,
        keys={row["kid"]: Ed25519PublicKey.from_public_bytes(row["public_key"]) for row in keys},
        roles={principal: frozenset(found) for principal, found in roles.items()},
        revoked=frozenset([row["id"] for row in await connection.fetch(_REVOKED)]),
    )


def _unreachable() -> Unavailable:
    return Unavailable("PostgreSQL cannot be asked who is who, so nobody is let in.", details={"component": "postgres"})
