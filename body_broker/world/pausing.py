"""Owns the pause of the engine: nobody may hold an epoch until it is resumed, so that nothing is decided; what is queued waits.

The fence alone holds it. A pause takes a new epoch that nobody has, as `world load` does: whoever arbitrated, our engine or another
one, finds its own over, and what it says under it is refused. Operators may still write the world meanwhile, each under an epoch
of their own.
"""

from __future__ import annotations

from body_broker.errors import Conflict
from body_broker.storage.postgres import Connection
from body_broker.world import epochs
from body_broker.world.epochs import EngineStatus
from body_broker.world.model import CHANGE_CHANNEL

_LOCK = "SELECT FROM world_engine FOR UPDATE"
_PAUSE = "UPDATE world_engine SET paused_at = clock_timestamp(), paused_by = $1"
# No engine has them any more: they may be taken back while they wait, and expire.
_UNSENT = "UPDATE world_change SET sent_epoch = NULL WHERE state = 'queued' AND sent_epoch IS NOT NULL"
_RESUME = "UPDATE world_engine SET paused_at = NULL, paused_by = NULL"


async def pause(connection: Connection, *, by: str) -> EngineStatus:
    """The engine as it stands paused, in the caller's transaction.

    Args:
        connection: In a transaction.
        by: Who has it paused, as everybody is told.

    Raises:
        Conflict: It is paused already.
    """
    before = await locked(connection)
    if before.paused_at is not None:
        raise already_paused(before)
    await epochs.begin_anew(connection)
    await connection.execute(_PAUSE, by)
    await connection.execute(_UNSENT)
    return await epochs.status(connection)


async def resume(connection: Connection) -> EngineStatus:
    """The engine as it stands once somebody may arbitrate again, in the caller's transaction.

    Raises:
        Conflict: It is not paused.
    """
    if (await locked(connection)).paused_at is None:
        raise not_paused()
    await connection.execute(_RESUME)
    # Whoever waits to arbitrate looks up.
    await connection.execute("SELECT pg_notify($1, '')", CHANGE_CHANNEL)
    return await epochs.status(connection)


async def locked(connection: Connection) -> EngineStatus:
    """How it stands, and stays until the caller's transaction ends: whoever decides something just now is waited for."""
    await connection.execute(_LOCK)
    return await epochs.status(connection)


def already_paused(engine: EngineStatus) -> Conflict:
    """What is said of a pause of what is paused."""
    assert engine.paused_at is not None, "it is"
    return Conflict(
        f"The engine is paused already, since {engine.paused_at.isoformat(timespec='seconds')} by {engine.paused_by}.",
        next_step="Resume it when it is time; there is nothing to pause.",
    )


def not_paused() -> Conflict:
    """What is said of a resumption of what is not paused."""
    return Conflict(
        "The engine is not paused.", next_step="Nothing is to be done: get_engine_status says who arbitrates."
    )
