"""Owns which process listens to Slack: the one whose own connection holds a lock in the database, where all can see how it fares."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any, Protocol

import asyncpg

from approvals.slack.words import CONNECTED, CONNECTING
from body_broker.background import running
from body_broker.storage.postgres import LOST, Connection, Pool
from body_broker.telemetry import get_logger

logger = get_logger(__name__)

_FREE = "SELECT pg_try_advisory_xact_lock(hashtextextended($1, 0))"
_LOCK = "SELECT pg_try_advisory_lock(hashtextextended($1, 0))"
_CALLED = "SELECT set_config('application_name', $1, false)"
_TIMEOUT_S = 5.0


class Told(Protocol):
    """Hears whether the process that listens is connected to Slack."""

    async def __call__(self, *, connected: bool) -> None:
        """It is, or is not any more."""
        ...


async def alone(
    pool: Pool,
    database_url: str,
    app_token: str,
    listen: Callable[[Told], Coroutine[Any, Any, None]],
    *,
    again_s: float,
) -> None:
    """Listen while no other process of this database does; never returns.

    Two that think so at the same moment do no harm: Slack sends a click to one of them.

    Args:
        pool: Asked whether it is anybody's turn: who waits holds no connection.
        database_url: A PostgreSQL URL; never logged.
        app_token: Each app has a listener of its own.
        listen: Listens until it is cancelled, and tells whether it is connected.
        again_s: How often who waits looks.
    """
    name = f"slack socket {hashlib.sha256(app_token.encode()).hexdigest()[:16]}"
    while True:
        try:
            if await pool.fetchval(_FREE, name):
                async with _holding(database_url, name) as held:
                    if held is not None:
                        await _until_lost(held, listen)
        except (*LOST, asyncpg.PostgresError) as error:
            logger.warning("slack_listener_without_database", error=type(error).__name__)
        await asyncio.sleep(again_s)


@asynccontextmanager
async def _holding(database_url: str, name: str) -> AsyncGenerator[Connection | None]:
    connection = await asyncpg.connect(
        database_url,
        timeout=_TIMEOUT_S,
        command_timeout=_TIMEOUT_S,
        server_settings={"application_name": CONNECTING, "timezone": "UTC"},
    )
    try:
        yield connection if await connection.fetchval(_LOCK, name) else None
    finally:
        try:
            await connection.close(timeout=_TIMEOUT_S)
        except (*LOST, asyncpg.PostgresError):
            connection.terminate()


async def _until_lost(connection: Connection, listen: Callable[[Told], Coroutine[Any, Any, None]]) -> None:
    lost = asyncio.Event()
    connection.add_termination_listener(lambda _connection: lost.set())

    async def told(*, connected: bool) -> None:
        if not connection.is_closed():
            await connection.execute(_CALLED, CONNECTED if connected else CONNECTING)

    async with (
        running(listen(told), name="slack-socket-listener") as task,
        running(_wait(lost), name="slack-lock") as end,
    ):
        await asyncio.wait({task, end}, return_when=asyncio.FIRST_COMPLETED)


async def _wait(lost: asyncio.Event) -> None:
    await lost.wait()
