"""Owns who may write the world: one engine holds the epoch, its lease lapses, and a write under an epoch that is gone fails."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from body_broker.errors import Conflict
from body_broker.storage.postgres import Connection, Executor
from body_broker.world.model import CHANGE_CHANNEL

_ACQUIRE = """
UPDATE world_engine SET epoch = epoch + 1, engine = $1, external = $2, tick_hz = $3::float8,
    lease_until = clock_timestamp() + make_interval(secs => $4::float8)
WHERE (lease_until IS NULL OR lease_until < clock_timestamp()) AND paused_at IS NULL
RETURNING epoch, tick, last_pos
"""
_FREE_IN = """
SELECT greatest(extract(epoch FROM lease_until - clock_timestamp()), CASE WHEN paused_at IS NULL THEN 0 ELSE 1 END)::float8
FROM world_engine
"""
_RENEW = """
UPDATE world_engine SET lease_until = clock_timestamp() + make_interval(secs => $2::float8)
WHERE epoch = $1::bigint AND lease_until IS NOT NULL RETURNING true
"""
_RELEASE = "UPDATE world_engine SET lease_until = NULL WHERE epoch = $1::bigint"
# Nobody waits longer than this for who was paused inside such a transaction: the server ends its session.
_FENCE = """
SELECT tick, last_pos, set_config('idle_in_transaction_session_timeout', '3000', true)
FROM world_engine WHERE epoch = $1::bigint AND lease_until IS NOT NULL FOR UPDATE
"""
_BEGIN_ANEW = """
UPDATE world_engine SET epoch = epoch + 1, engine = NULL, lease_until = NULL RETURNING epoch, tick, last_pos
"""
_STATUS = """
SELECT epoch, engine, external, tick, tick_hz, last_pos, coalesce(lease_until > clock_timestamp(), false) AS live,
    coalesce(extract(epoch FROM lease_until - clock_timestamp()) * 1000, 0)::bigint AS lease_left_ms, paused_at, paused_by
FROM world_engine
"""


class Superseded(Conflict):
    """This epoch is over: another engine arbitrates. Whatever its holder still does leaves no trace."""


@dataclass(frozen=True, slots=True)
class Epoch:
    """The right to write the world, until the lease lapses and somebody else takes it.

    Attributes:
        number: The fencing token.
        tick: The latest tick of the world.
        last_pos: The position of its latest event.
    """

    number: int
    tick: int
    last_pos: int


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineStatus:
    """Who arbitrates.

    Attributes:
        engine: Its name; None where nobody ever did, or the world was loaded, corrected or paused since.
        live: Whether its lease holds.
        lease_left_ms: Until the lease lapses; negative since then.
        paused_at: Since when nobody may arbitrate; None where somebody may.
        paused_by: Who had it paused.
    """

    epoch: int
    engine: str | None
    external: bool
    live: bool
    lease_left_ms: int
    tick: int
    tick_hz: float | None
    last_pos: int
    paused_at: datetime | None = None
    paused_by: str | None = None


async def acquire(
    connection: Executor, *, name: str, lease_s: float, tick_hz: float | None = None, external: bool = False
) -> Epoch | None:
    """A new epoch where nobody holds one; None while somebody does, or the engine is paused (pausing.py)."""
    row = await connection.fetchrow(_ACQUIRE, name, external, tick_hz, lease_s)
    return None if row is None else Epoch(row["epoch"], row["tick"], row["last_pos"])


async def free_in_s(connection: Executor) -> float:
    """Seconds until the present lease lapses if it is not renewed; 0 where nobody holds one, a while where it is paused."""
    found: float | None = await connection.fetchval(_FREE_IN)
    return found or 0.0


async def renew(connection: Executor, epoch: int, lease_s: float) -> None:
    """Hold the epoch for another lease.

    Raises:
        Superseded: It is over.
    """
    _held(await connection.fetchval(_RENEW, epoch, lease_s))


async def release(connection: Executor, epoch: int) -> None:
    """Let the next engine begin at once."""
    await connection.execute(_RELEASE, epoch)


async def fenced(connection: Connection, epoch: int) -> Epoch:
    """The epoch as it stands, locked to the end of the caller's transaction: nobody else can begin or write before that.

    Raises:
        Superseded: It is over; the caller writes nothing.
    """
    row = await connection.fetchrow(_FENCE, epoch)
    if row is None:
        _held(None)
    assert row is not None, "a missing row raised"
    return Epoch(epoch, row["tick"], row["last_pos"])


async def begin_anew(connection: Connection) -> Epoch:
    """An epoch for one write of an operator, in the caller's transaction: whoever arbitrated must acquire again.

    The row stays locked to the end of the transaction. No lease is held under it, so `fenced` refuses it to everybody.
    """
    row = await connection.fetchrow(_BEGIN_ANEW)
    assert row is not None, "the migration made the row"
    # Whoever arbitrated looks up, and finds its epoch over.
    await connection.execute("SELECT pg_notify($1, '')", CHANGE_CHANNEL)
    return Epoch(row["epoch"], row["tick"], row["last_pos"])


async def status(connection: Executor) -> EngineStatus:
    """Who arbitrates now."""
    row = await connection.fetchrow(_STATUS)
    assert row is not None, "the migration made the row"
    return EngineStatus(**dict(row))


def _held(found: object) -> None:
    if not found:
        raise Superseded(
            "Another engine arbitrates the world under a later epoch.",
            next_step="Acquire a new epoch and read the world again.",
        )
