"""Owns canon as a serving process remembers it: read once, and again when its version is another."""

from __future__ import annotations

import asyncio

from body_broker.storage.postgres import Pool
from body_broker.world.canon.model import Canon
from body_broker.world.canon.store import read_canon, read_version


class CanonShelf:
    """Canon in memory; every read asks PostgreSQL for its version first, so that it is never behind."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._canon: Canon | None = None
        self._reading = asyncio.Lock()

    async def read(self) -> Canon:
        """All that is canon now."""
        version = await read_version(self._pool)
        if self._canon is None or self._canon.version != version:
            async with self._reading:
                if self._canon is None or self._canon.version != version:
                    async with self._pool.acquire() as connection, connection.transaction(isolation="repeatable_read"):
                        self._canon = await read_canon(connection)
        return self._canon
