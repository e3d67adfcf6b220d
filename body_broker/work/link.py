"""Owns the worker's own connection: it hears NOTIFY, claims and renews, and is opened again when it is lost.

It lies outside the pool, so that handlers which use up the pool cannot keep a worker from renewing its leases.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager

import asyncpg

from body_broker.storage.postgres import LOST, Connection
from body_broker.work.model import CHANNEL


class Link:
    """One connection, used by one task at a time.

    Args:
        database_url: A PostgreSQL URL; never logged.
        name: application_name, as pg_stat_activity shows it.
        timeout_s: How long connecting or one statement may take.
        heard: Called with each NOTIFY's payload.
        lost: Called when the connection is lost.
        channel: The NOTIFY channel that is listened to.
        also: More of them.
    """

    def __init__(
        self,
        database_url: str,
        *,
        name: str,
        timeout_s: float,
        heard: Callable[[str], None],
        lost: Callable[[], None],
        channel: str = CHANNEL,
        also: tuple[str, ...] = (),
    ) -> None:
        self._database_url, self._name, self._timeout_s = database_url, name, timeout_s
        self._heard, self._lost, self._channels = heard, lost, (channel, *also)
        self._lock = asyncio.Lock()
        self._connection: asyncpg.Connection[asyncpg.Record] | None = None

    @asynccontextmanager
    async def connection(self) -> AsyncGenerator[Connection]:
        """The connection, listening; a lost one is replaced first.

        Raises:
            OSError, asyncpg.PostgresError, asyncpg.InterfaceError, TimeoutError: The database cannot be reached.
        """
        async with self._lock:
            if self._connection is None or self._connection.is_closed():
                self._connection = await self._open()
            yield self._connection

    async def close(self) -> None:
        """End the connection."""
        if self._connection is not None:
            self._connection.remove_termination_listener(self._on_lost)
            try:
                await self._connection.close(timeout=self._timeout_s)
            except (*LOST, asyncpg.PostgresError):
                self._connection.terminate()

    async def _open(self) -> asyncpg.Connection[asyncpg.Record]:
        connection = await asyncpg.connect(
            self._database_url,
            timeout=self._timeout_s,
            command_timeout=self._timeout_s,
            server_settings={"application_name": self._name, "timezone": "UTC"},
        )
        connection.add_termination_listener(self._on_lost)
        for channel in self._channels:
            await connection.add_listener(channel, self._on_notify)
        return connection

    def _on_notify(self, _connection: object, _pid: int, _channel: str, payload: object) -> None:
        self._heard(str(payload))

    def _on_lost(self, _connection: object) -> None:
        self._lost()
