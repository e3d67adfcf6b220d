"""Owns which process relays: the one whose connection holds a lock in the database, and it hears there of queued changes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager

import asyncpg

from body_broker.storage.postgres import LOST
from body_broker.world.model import CHANGE_CHANNEL

_LOCK = "SELECT pg_try_advisory_lock(hashtext('world_relay'))"
_TIMEOUT_S = 5.0
_AGAIN_S = 0.5


def _told(heard: Callable[[], None]) -> Callable[[object, int, str, object], None]:
    return lambda _connection, _pid, _channel, _payload: heard()


@asynccontextmanager
async def leading(database_url: str, heard: Callable[[], None]) -> AsyncGenerator[asyncio.Event]:
    """Wait until this process is the one that relays; the event is set when it may be so no longer.

    Two that think they are at the same moment do no harm: an epoch's fence and a change's state let each thing be written once.

    Args:
        database_url: A PostgreSQL URL; never logged.
        heard: Called when changes were queued.

    Raises:
        OSError, asyncpg.PostgresError, asyncpg.InterfaceError, TimeoutError: The database cannot be reached.
    """
    connection = await asyncpg.connect(
        database_url,
        timeout=_TIMEOUT_S,
        command_timeout=_TIMEOUT_S,
        server_settings={"application_name": "body-broker relay", "timezone": "UTC"},
    )
    lost = asyncio.Event()
    connection.add_termination_listener(lambda _connection: lost.set())
    try:
        while True:
            if await connection.fetchval(_LOCK):
                break
            await asyncio.sleep(_AGAIN_S)
        await connection.add_listener(CHANGE_CHANNEL, _told(heard))
        yield lost
    finally:
        try:
            await connection.close(timeout=_TIMEOUT_S)
        except LOST:
            connection.terminate()
