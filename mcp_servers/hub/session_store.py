"""Owns where a session's state lives: a hash in Redis and its witness row in PostgreSQL, each checked against the other."""

from __future__ import annotations

import asyncio
import secrets
from dataclasses import dataclass

import asyncpg

from body_broker.errors import NotFound, Unavailable
from body_broker.storage import postgres, redis
from body_broker.storage.postgres import Pool
from body_broker.storage.redis import Redis
from body_broker.telemetry import get_logger

log = get_logger(__name__)

FAILURES: tuple[type[BaseException], ...] = (*postgres.LOST, *redis.LOST, asyncpg.PostgresError)
# Counted from the last reading; what Redis has forgotten counts as tainted. A login may pause for long and go on until it is
# revoked, a conversation does not.
LOGIN_EXPIRY_S = 400 * 24 * 3600
CONVERSATION_EXPIRY_S = 30 * 24 * 3600
_WITNESSED_S = 24 * 3600
_TIMEOUT_S = 2.0
_DID = "did:"
SOURCES_MAX = 5
"""The operations that are remembered to have tainted a session."""
_SOURCE_CHARACTERS_MAX = 128

# KEYS: session. ARGV: a nonce for a state that begins now, expiry in seconds. Begins the state if there is none.
_READ = """
redis.call('HSETNX', KEYS[1], 'nonce', ARGV[1])
redis.call('EXPIRE', KEYS[1], ARGV[2])
return redis.call('HGETALL', KEYS[1])
"""
# KEYS: session. ARGV: expiry in seconds, then field, value, ... Adds to the state; one that was lost is not begun here.
_ADD = """
if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
for i = 2, #ARGV, 2 do redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1]) end
redis.call('EXPIRE', KEYS[1], ARGV[1])
return 1
"""
# The same, in place of whatever was there.
_REPLACE = """
redis.call('DEL', KEYS[1])
for i = 2, #ARGV, 2 do redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1]) end
redis.call('EXPIRE', KEYS[1], ARGV[1])
return 1
"""

_BEAR_WITNESS = """
INSERT INTO session_witness (session, requester, nonce) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING
"""
_TAINT = """
INSERT INTO session_witness AS w (session, requester, nonce, tainted_at, tainted_by, taints) VALUES ($1, $2, $3, now(), $4::text, ARRAY[$4::text])
ON CONFLICT (session) DO UPDATE SET tainted_at = coalesce(w.tainted_at, now()), tainted_by = coalesce(w.tainted_by, $4), clearing = NULL,
    taints = (ARRAY[$4::text] || array_remove(w.taints, $4::text))[1:$5::integer]
WHERE w.tainted_at IS NULL OR w.clearing IS NOT NULL OR NOT $4::text = ANY (w.taints)
"""
_RECORD = """
UPDATE session_witness SET did = ARRAY(SELECT DISTINCT unnest(did || $2::text[])) WHERE session = $1 RETURNING session
"""
_CLEAR = """
UPDATE session_witness SET tainted_at = NULL, tainted_by = NULL, taints = '{}', clearing = NULL, nonce = $3, cleared_at = now(), cleared_by = $4
WHERE session = $1 AND clearing = $2 RETURNING session
"""
# A conversation in use is witnessed anew once a day, so that no sweep leaves its state to Redis alone: what Redis then lost would
# begin clean. `began_at` is the witness's, not the conversation's.
_WITNESS_AGAIN = "UPDATE session_witness SET began_at = clock_timestamp() WHERE session = $1"
# Those that nobody has used for as long as Redis keeps them: whoever goes on with one begins a new state.
FORGET_CONVERSATIONS: tuple[str, tuple[float]] = (
    """
    DELETE FROM session_witness
    WHERE session LIKE 'cnv\\_%' AND greatest(began_at, tainted_at) < clock_timestamp() - make_interval(secs => $1::float8)
    """,
    (float(CONVERSATION_EXPIRY_S + _WITNESSED_S),),
)


@dataclass(frozen=True, slots=True)
class Session:
    """One session: its id, whose it is (for the record), and how long Redis keeps it after its last reading."""

    id: str
    requester: str
    expiry_s: int = LOGIN_EXPIRY_S


@dataclass(frozen=True, slots=True)
class Found:
    """What both stores say of a session.

    Attributes:
        tainted: Not provably clean.
        stored: Its taint stands in PostgreSQL and nobody is clearing it.
        did: The granting groups of what it did.
        sources: The operations that tainted it, the newest first, a few at most; none where that is not known.
        known: Whether the stores said so; else it is what cannot be excluded.
    """

    tainted: bool
    stored: bool
    did: frozenset[str]
    sources: tuple[str, ...] = ()
    known: bool = True


@dataclass(frozen=True, slots=True)
class _Copy:
    nonce: str
    tainted: bool
    did: frozenset[str]


_UNREADABLE = Found(tainted=True, stored=False, did=frozenset(), known=False)


class SessionStore:
    """Reads and writes sessions.

    Redis holds the state; PostgreSQL its witness, with the nonce of the state it saw begin. A state that was lost and begun
    anew has another nonce, so it counts as tainted for good. Valkey's file may lack its last second when it is killed, so
    taint and history stand in the witness too: once each, not per call.
    """

    def __init__(self, redis: Redis, pool: Pool) -> None:
        self._pool = pool
        self._read_copy = redis.register_script(_READ)
        self._add, self._replace = redis.register_script(_ADD), redis.register_script(_REPLACE)

    async def read(self, session: Session) -> Found:
        """What is known of the session, which begins here if neither store has met it; unreadable is tainted."""
        try:
            async with asyncio.timeout(_TIMEOUT_S):
                copy, witness = await asyncio.gather(self._copy(session), self._witness(session))
                if witness is None:
                    await self._pool.execute(_BEAR_WITNESS, session.id, session.requester, copy.nonce)
                    witness = await self._witness(session)
                elif session.expiry_s == CONVERSATION_EXPIRY_S and witness["age_s"] > _WITNESSED_S:
                    await self._pool.execute(_WITNESS_AGAIN, session.id)
        except FAILURES as error:
            log.warning("session_unreadable", error=type(error).__name__)
            return _UNREADABLE
        if witness is None:
            return _UNREADABLE
        lost = copy.nonce != witness["nonce"]
        tainted = witness["tainted_at"] is not None
        return Found(
            tainted=lost or tainted or copy.tainted,
            stored=tainted and witness["clearing"] is None,
            did=copy.did.union(witness["did"]),
            sources=tuple(witness["taints"]) or ((witness["tainted_by"],) if tainted and witness["tainted_by"] else ()),
        )

    async def taint(self, session: Session, source: str) -> None:
        """Store that the session is tainted: durably in PostgreSQL, then in Redis, whose loss would count as taint anyway.

        Raises:
            Exception: One of FAILURES where PostgreSQL did not take it.
        """
        source = source[:_SOURCE_CHARACTERS_MAX]
        async with asyncio.timeout(_TIMEOUT_S):
            await self._pool.execute(_TAINT, session.id, session.requester, secrets.token_hex(16), source, SOURCES_MAX)
        try:
            async with asyncio.timeout(_TIMEOUT_S):
                await self._add([_key(session.id)], [session.expiry_s, "tainted", source])
        except redis.LOST as error:
            log.warning("session_taint_only_in_postgres", error=type(error).__name__)

    async def record(self, session: Session, groups: frozenset[str]) -> None:
        """Add to what the session did.

        Raises:
            Unavailable: The session could not begin yet.
            Exception: One of FAILURES.
        """
        fields = [part for group in sorted(groups) for part in (_DID + group, "1")]
        async with asyncio.timeout(_TIMEOUT_S):
            while await self._pool.fetchval(_RECORD, session.id, sorted(groups)) is None:
                if await self.read(session) is _UNREADABLE:  # its first call came while a store was down
                    raise Unavailable("The session cannot be stored.", details={"component": "redis"})
            await self._add([_key(session.id)], [session.expiry_s, *fields])

    async def begin_clearing(self, session: str) -> str:
        """The mark under which `finish_clearing` may clear; a taint stored in between takes it away.

        Raises:
            NotFound: There is no such session.
            Exception: One of FAILURES.
        """
        mark = secrets.token_hex(16)
        found = await self._pool.fetchval(
            "UPDATE session_witness SET clearing = $2 WHERE session = $1 RETURNING session", session, mark
        )
        if found is None:
            raise NotFound("There is no such session.")
        return mark

    async def finish_clearing(self, session: str, mark: str, by: str) -> bool:
        """Whether the session is clean now: nothing tainted it since the mark was set.

        Raises:
            Exception: One of FAILURES; the session stays tainted.
        """
        nonce = secrets.token_hex(16)
        did: list[str] | None = await self._pool.fetchval(
            "SELECT did FROM session_witness WHERE session = $1 AND clearing = $2", session, mark
        )
        if did is None:
            return False
        # Redis first: until the witness knows the new nonce, the new state counts as tainted.
        fields = [part for group in did for part in (_DID + group, "1")]
        await self._replace([_key(session)], [LOGIN_EXPIRY_S, "nonce", nonce, *fields])
        return await self._pool.fetchval(_CLEAR, session, mark, nonce, by) is not None

    async def _copy(self, session: Session) -> _Copy:
        flat: list[bytes] = await self._read_copy([_key(session.id)], [secrets.token_hex(16), session.expiry_s])
        state = {flat[i].decode(): flat[i + 1] for i in range(0, len(flat), 2)}
        did = frozenset([name.removeprefix(_DID) for name in state if name.startswith(_DID)])
        return _Copy(state["nonce"].decode(), "tainted" in state, did)

    async def _witness(self, session: Session) -> asyncpg.Record | None:
        return await self._pool.fetchrow(
            """
            SELECT nonce, tainted_at, tainted_by, taints, clearing, did, extract(epoch FROM clock_timestamp() - began_at)::float8 AS age_s
            FROM session_witness WHERE session = $1
            """,
            session.id,
        )


def _key(session: str) -> str:
    return f"session:{session}"
