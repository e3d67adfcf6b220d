"""Owns the copy of the lore in an OpenSearch as a process holds it open."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from body_broker.calls import Progress
from body_broker.errors import Conflict, Unavailable
from body_broker.lore.opensearch import ledger
from body_broker.lore.opensearch.breaker import Breaker
from body_broker.lore.opensearch.copying import Copying
from body_broker.lore.opensearch.index import OpenSearchIndex
from body_broker.lore.opensearch.ledger import CHECK, COPY, ORIGIN, REBUILD, Generation, Ledger
from body_broker.lore.opensearch.rebuilding import Rebuilding
from body_broker.settings import Settings
from body_broker.storage.postgres import Pool
from body_broker.work import queue
from body_broker.work.model import FINAL, WorkSummary
from body_broker.work.run import Handler
from body_broker.work.schedule import Schedule, every

if TYPE_CHECKING:
    from body_broker.lore.opensearch.client import Client

CHECK_EVERY_S = 60
_LOOK_EVERY_S = 0.2


@dataclass(frozen=True, slots=True)
class Standing:
    """A generation, the entries that OpenSearch shows of it, and why it shows none."""

    generation: Generation
    entries: int | None
    away: str | None


class Copy(Ledger):
    """The copy of the lore: what searches it, and the work that keeps it.

    Attributes:
        index: Asked before PostgreSQL.
        client: Of its OpenSearch.
    """

    def __init__(self, pool: Pool, client: Client, settings: Settings) -> None:
        copying = Copying(pool, client)
        self.index = OpenSearchIndex(pool, client)
        self.client = client
        self._pool, self._copying = pool, copying
        self._rebuilding = Rebuilding(pool, client, copying, settings)

    def handlers(self) -> dict[str, Handler]:
        """What a worker needs to keep it."""
        return {COPY: self._copying.perform, REBUILD: self._rebuilding.perform, CHECK: self._rebuilding.check}

    def schedules(self) -> Sequence[Schedule]:
        """What a worker does of itself: build the copy where there is none, and find out when it is not whole."""
        owner = ORIGIN.asker
        return (Schedule(name=CHECK, kind=CHECK, owner=owner, slot=every(CHECK_EVERY_S), grace_s=CHECK_EVERY_S),)

    async def rebuild(self, progress: Progress) -> int:
        """How many documents the new generation holds, once it serves; joins a rebuild under way, and needs a running worker.

        Args:
            progress: Told documents done and in all.

        Raises:
            Conflict: Somebody cancelled the job.
        """
        async with self._pool.acquire() as connection, connection.transaction():
            await ledger.alone(connection)
            job_id = await ledger.join_rebuild(connection)
        while True:
            job = await queue.get(self._pool, job_id, owner=None)
            if job.progress:
                await progress(job.progress["done"], job.progress["total"], job.progress["message"])
            if job.state == "succeeded":
                return int(job.result["documents"])
            if job.state in FINAL:
                raise Conflict(
                    f"The job {job.id} was {job.state}.", next_step="Begin it again; the old copy still serves."
                )
            if job.error:
                await progress(0, None, f"{job.error['message']} It is tried again.")
            await asyncio.sleep(_LOOK_EVERY_S)

    async def standing(self) -> list[Standing]:
        """Every generation, as OpenSearch shows it."""
        return [await self._seen(found) for found in await ledger.generations(self._pool)]

    async def jobs(self) -> list[WorkSummary]:
        """The work under way that keeps it."""
        found = await queue.list_newest(self._pool, owner=None, states=("queued", "running"), kinds=(COPY, REBUILD))
        return found.items

    async def _seen(self, generation: Generation) -> Standing:
        try:
            answer = await self.client.look(generation.name, {"size": 0, "track_total_hits": True})
        except Unavailable as away:
            return Standing(generation, None, away.message)
        return Standing(generation, answer["hits"]["total"]["value"], None)


@asynccontextmanager
async def open_copy(pool: Pool, settings: Settings) -> AsyncGenerator[Copy]:
    """The copy in the OpenSearch of the settings, which need not be up: nothing is asked of it before it is used.

    Args:
        pool: Where lore lies.
        settings: `opensearch_url` is set.
    """
    client = await asyncio.to_thread(_make_client, settings)
    try:
        yield Copy(pool, client, settings)
    finally:
        await client.close()


def _make_client(settings: Settings) -> Client:
    from body_broker.lore.opensearch.client import Client  # noqa: PLC0415 - imports opensearchpy, 0.4 s

    return Client(settings, Breaker())
