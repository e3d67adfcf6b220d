"""Owns connections to PostgreSQL: one pool a process, with limits, and what asyncpg must be told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import asyncpg

from body_broker.errors import StoreStartError
from body_broker.storage.traced import TracedConnection
from body_broker.tracing import on

if TYPE_CHECKING:
    # asyncpg's classes are generic in its stubs only.
    Pool = asyncpg.Pool[asyncpg.Record]
    Connection = asyncpg.Connection[asyncpg.Record] | asyncpg.pool.PoolConnectionProxy[asyncpg.Record]
    Executor = Pool | Connection
else:
    Pool = asyncpg.Pool
    Connection = asyncpg.Connection
    Executor = object

STATEMENT_TIMEOUT_S = 30
LOST: tuple[type[BaseException], ...] = (
    OSError,
    asyncpg.PostgresConnectionError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,  # raised where the server's last word has arrived and the end of the connection has not
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.CannotConnectNowError,
    asyncpg.TooManyConnectionsError,
    TimeoutError,
)
"""What a lost or unreachable database raises; expected failures, told as `unavailable`."""


@asynccontextmanager
async def open_pool(url: str, *, connections_max: int = 10, name: str = "body-broker") -> AsyncGenerator[Pool]:
    """A pool that is closed on the way out.

    A transaction is never held open across anything that is not PostgreSQL; every numeric parameter in SQL is cast, because
    asyncpg truncates a float bound where PostgreSQL infers an integer (facts/storage.md §5).

    Args:
        url: A PostgreSQL URL; never logged.
        connections_max: Upper bound of open connections.
        name: application_name, as pg_stat_activity shows it.

    Raises:
        StoreStartError: The database cannot be reached.
    """
    try:
        pool = await asyncpg.create_pool(
            url,
            min_size=1,
            max_size=connections_max,
            timeout=10,
            command_timeout=STATEMENT_TIMEOUT_S + 5,
            max_inactive_connection_lifetime=300,
            reset=_leave_as_it_is,
            connection_class=TracedConnection if on() else asyncpg.Connection,
            server_settings={
                "application_name": name,
                "statement_timeout": f"{STATEMENT_TIMEOUT_S}s",
                "timezone": "UTC",
            },
        )
    except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, TimeoutError, ValueError) as error:
        raise StoreStartError(
            "PostgreSQL cannot be reached.", next_step="Check BODY_BROKER_DATABASE_URL and that it is up."
        ) from error
    try:
        yield pool
    finally:
        await _close(pool)


async def _leave_as_it_is(_connection: Connection) -> None:
    # asyncpg still ends a transaction and drops listeners; its own reset query costs a round trip on every use of the pool
    # and undoes what none of our statements does: whatever they set, they set for a transaction.
    return


async def _close(pool: Pool) -> None:
    # close() waits for its connections; one that hangs must not keep a drained hub alive.
    try:
        async with asyncio.timeout(5):
            await pool.close()
    except TimeoutError:
        pool.terminate()
