"""Owns a worker process that imports lore and stops at a named place, so that a test can kill it exactly there."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence

from body_broker.lore.importing import Importing
from body_broker.lore.postings import Entry, PostgresIndex
from body_broker.storage.postgres import Connection, Pool, open_pool
from body_broker.work.worker import Worker


class Stopping(PostgresIndex):
    """The embedded index, which waits for ever at one place: inside a batch's transaction, or before it writes anything."""

    def __init__(self, pool: Pool, place: str) -> None:
        super().__init__(pool)
        self._when, _, batch = place.partition(" batch ")
        self._place, self._left = place, int(batch)

    async def add(self, connection: Connection, index_id: int, rev: int, entries: Sequence[Entry]) -> None:
        if self._left == 0 and self._when == "before":
            await self._stop()
        await super().add(connection, index_id, rev, entries)
        if self._left == 0:
            await self._stop()
        self._left -= 1

    async def _stop(self) -> None:
        print(self._place, flush=True)
        await asyncio.Event().wait()


async def main(url: str, place: str) -> None:
    async with open_pool(url) as pool:
        handlers = Importing(pool, Stopping(pool, place)).handlers()
        await Worker(pool, handlers, database_url=url, lease_s=1.0, poll_s=0.2).run()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2]))
