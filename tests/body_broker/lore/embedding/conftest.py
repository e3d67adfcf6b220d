"""Owns what the tests of vectors share: lore with vectors on the test's own database, by an API or by this machine."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import pytest

from body_broker.lore import Lore
from body_broker.lore.embedding import Embedding, open_embedding
from body_broker.lore.embedding.building import VECTORS
from body_broker.lore.index import Follower
from body_broker.lore.model import Draft, Page
from body_broker.settings import Settings
from body_broker.storage.postgres import Connection, Pool
from body_broker.work import queue
from body_broker.work.model import WorkSummary
from body_broker.work.worker import Worker
from tests.body_broker.lore.conftest import OPERATOR, long_text, text, texts
from tests.counterparts.embeddings_api import EmbeddingsApi, embeddings_api
from tests.waiting import wait_until

__all__ = ["long_text", "text", "texts"]


class Noting:
    """A follower that notes what it is told."""

    def __init__(self) -> None:
        self.whole: list[int] = []
        self.gone: list[int] = []
        self.models: list[int] = []

    async def changed(self, connection: Connection, index_id: int, current: Sequence[int], gone: Sequence[int]) -> None:
        _ = connection, index_id
        self.whole += current
        self.gone += gone

    async def serving(self, connection: Connection, model_id: int) -> None:
        _ = connection
        self.models.append(model_id)


class Studio:
    """One process's lore with vectors; made by `Open`."""

    def __init__(self, pool: Pool, database_url: str, embedding: Embedding, told: Noting) -> None:
        self.pool, self.embedding, self.told = pool, embedding, told
        self._database_url = database_url
        self.lore = Lore(pool, embed=embedding.embed, followers=(embedding,))

    async def bring(self, *drafts: Draft, index: str = "shared") -> list[str]:
        """Import documents, and see that only their words are found yet; their ids."""
        taken = await self.lore.importing.take(drafts, index=index, canon=True, origin=OPERATOR)
        await self.work_off(self.lore.importing.handlers(), lambda: self.over("lore_import", "lore_reindex"))
        return [document.doc_id for document in taken.documents]

    async def embed_all(self) -> None:
        """Run a worker until the job of the vectors has ended."""
        await self.work_off(self.embedding.handlers(), lambda: self.over(VECTORS))

    @asynccontextmanager
    async def working(
        self, *, concurrency: int = 4, poll_s: float = 0.1, name: str | None = None
    ) -> AsyncGenerator[Worker]:
        """A worker of the vectors' job and of imports, until the way out."""
        worker = Worker(
            self.pool,
            {**self.embedding.handlers(), **self.lore.importing.handlers()},
            database_url=self._database_url,
            concurrency=concurrency,
            poll_s=poll_s,
            backoff_s=0.05,
            backoff_max_s=0.2,
            name=name,
        )
        task = asyncio.create_task(worker.run())
        try:
            yield worker
        finally:
            worker.stop()
            self.embedding.hand_back()
            await task

    async def jobs(self, *states: Any) -> list[WorkSummary]:
        """The jobs of the vectors, newest first."""
        return (await queue.list_newest(self.pool, owner=None, kinds=(VECTORS,), states=states)).items

    async def search(self, query: str, **more: Any) -> Page:
        return await self.lore.search("shared", query, limit=10, **more)

    async def sql(self, query: str, *values: object) -> Any:
        return await self.pool.fetchval(query, *values)

    async def vectors(self) -> list[tuple[int, int, int]]:
        """Model, rev and ordinal of every vector."""
        rows = await self.pool.fetch("SELECT model_id, rev, ordinal FROM lore_vector ORDER BY 1, 2, 3, part")
        return [tuple(row) for row in rows]

    async def models(self) -> dict[str, str]:
        """Name by state."""
        rows = await self.pool.fetch("SELECT state, name FROM lore_model")
        return {row["state"]: row["name"] for row in rows}

    async def over(self, *kinds: str) -> bool:
        return not await self.sql(
            "SELECT true FROM work WHERE state IN ('queued', 'running') AND kind = ANY ($1) LIMIT 1", list(kinds)
        )

    async def work_off(self, handlers: Any, over: Callable[[], Any]) -> None:
        worker = Worker(self.pool, handlers, database_url=self._database_url, poll_s=0.1, backoff_s=0.05)
        task = asyncio.create_task(worker.run())
        await wait_until(over, "lore's jobs have ended", timeout_s=60)
        worker.stop()
        await task


Open = Callable[..., AbstractAsyncContextManager[Studio]]


@pytest.fixture
def open_studio(pool: Pool, database_url: str) -> Open:
    @asynccontextmanager
    async def make(
        *, replace: bool = True, followers: Sequence[Follower] = (), **settings: Any
    ) -> AsyncGenerator[Studio]:
        told = Noting()
        found = Settings.model_validate(settings)
        async with open_embedding(pool, found, (told, *followers), replace=replace) as embedding:
            yield Studio(pool, database_url, embedding, told)

    return make


@pytest.fixture
async def api() -> AsyncIterator[EmbeddingsApi]:
    async with embeddings_api(sense=False) as found:
        yield found


@pytest.fixture
async def studio(open_studio: Open, api: EmbeddingsApi) -> AsyncIterator[Studio]:
    """By an API, which is quick and can misbehave."""
    async with open_studio(**by(api)) as found:
        yield found


def by(api: EmbeddingsApi, **more: Any) -> dict[str, Any]:
    """The settings for an API."""
    return {"embeddings": api.url, "embeddings_model": api.model, **more}
