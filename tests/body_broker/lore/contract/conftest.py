"""Owns what the contract is tested with: lore on each index, brought in by the product's own import and kept by its own jobs."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

from body_broker.calls import Json
from body_broker.lore import Lore, make_draft
from body_broker.lore.documents import Effect
from body_broker.lore.index import EVERYTHING, Filter, QueryVector
from body_broker.lore.model import Draft, Page
from body_broker.lore.opensearch import Copy, ledger, open_copy
from body_broker.lore.ranking import By
from body_broker.settings import Settings
from body_broker.storage.postgres import Pool
from body_broker.work import queue
from body_broker.work.model import Origin
from body_broker.work.run import Handler
from body_broker.work.worker import Worker
from tests.components import need, scratch_dir
from tests.opensearch_node import Node, ask, clear
from tests.waiting import wait_until

OPERATOR = Origin(chain=("operator:ann",), session="operator:ann")
PATIENCE_S = 120.0


class Shelf:
    """Lore on one index, and what a test does with it.

    Attributes:
        copy: Its copy in OpenSearch, where that is the index.
        queries: The vectors of queries, by their text; the serving model's.
    """

    def __init__(self, pool: Pool, database_url: str, copy: Copy | None) -> None:
        self.pool, self.database_url, self.copy = pool, database_url, copy
        self.queries: dict[str, Sequence[float]] = {}
        self.lore = Lore(pool, copy=copy and copy.index, embed=self._embed, followers=() if copy is None else (copy,))

    def handlers(self) -> dict[str, Handler]:
        """Every kind of work there is here."""
        return {**self.lore.importing.handlers(), **(self.copy.handlers() if self.copy else {})}

    async def bring(self, *drafts: Draft, index: str = "shared", canon: bool = True, settled: bool = True) -> list[str]:
        """Import documents; their ids. Settled, the copy shows them."""
        taken = await self.lore.importing.take(drafts, index=index, canon=canon, origin=OPERATOR)
        await self.work_off(None if settled else ["lore_import"])
        return [document.doc_id for document in taken.documents]

    async def work_off(self, kinds: Sequence[str] | None = None) -> None:
        """Run a worker until every job of these kinds has ended well."""
        handlers = {kind: handler for kind, handler in self.handlers().items() if kinds is None or kind in kinds}
        worker = Worker(
            self.pool, handlers, database_url=self.database_url, poll_s=0.2, backoff_s=0.1, backoff_max_s=0.5
        )
        task = asyncio.create_task(worker.run())
        query = "SELECT true FROM work WHERE state IN ('queued', 'running') AND kind = ANY ($1)"

        async def idle() -> bool:
            return not await self.pool.fetchval(query, list(handlers))

        await wait_until(idle, "lore's jobs have ended", timeout_s=PATIENCE_S)
        worker.stop()
        await task
        assert await self.pool.fetch("SELECT kind, error FROM work WHERE state = 'failed'") == []

    async def search(
        self,
        query: str,
        *,
        where: Filter = EVERYTHING,
        by: By = "words",
        per_document: bool = False,
        index: str = "shared",
    ) -> Page:
        return await self.lore.search(index, query, limit=50, where=where, by=by, per_document=per_document)

    async def titles(
        self, query: str, *, where: Filter = EVERYTHING, by: By = "words", index: str = "shared"
    ) -> list[str]:
        """The titles of what is found, each document once, the best first; nothing may have been unavailable."""
        page = await self.search(query, where=where, by=by, per_document=True, index=index)
        assert page.unavailable == ([] if by != "both" else page.unavailable)
        return [passage.title for passage in page.passages]

    async def delete(self, document_id: str, *, settled: bool = True) -> None:
        await self.lore.delete_document(document_id, Effect("operator:ann", None))
        if settled:
            await self.work_off()

    async def approve(self, document_id: str, *, settled: bool = True) -> None:
        await self.lore.approve(document_id, Effect("operator:ann", None))
        if settled:
            await self.work_off()

    async def serve_model(self, name: str = "compass", dimensions: int = 3) -> int:
        """The id of a model that serves from now on; the one before is gone with its vectors."""
        async with self.pool.acquire() as connection, connection.transaction():
            await connection.execute("DELETE FROM lore_model")
            model = await connection.fetchval(
                "INSERT INTO lore_model (name, dimensions, state) VALUES ($1, $2::integer, 'serving') RETURNING id",
                name,
                dimensions,
            )
            if self.copy is not None:
                await self.copy.serving(connection, model)
        return model

    async def give_vectors(self, vectors: Mapping[str, Sequence[Sequence[float]]], *, settled: bool = True) -> None:
        """Vectors of the first passage of each document, by its title: several where it has several parts."""
        async with self.pool.acquire() as connection, connection.transaction():
            for title, parts in vectors.items():
                row = await connection.fetchrow(
                    "SELECT d.rev, d.index_id FROM lore_document d JOIN lore_edition e USING (rev) WHERE e.title = $1",
                    title,
                )
                assert row is not None
                for part, values in enumerate(parts):
                    await connection.execute(
                        "INSERT INTO lore_vector (rev, ordinal, model_id, part, index_id, embedding)"
                        " SELECT $1::bigint, 0, id, $2::smallint, $3::integer, $4::text::vector FROM lore_model WHERE state = 'serving'",
                        row["rev"],
                        part,
                        row["index_id"],
                        str(list(values)),
                    )
                if self.copy is not None:
                    await self.copy.changed(connection, row["index_id"], [row["rev"]], [])
        if settled:
            await self.work_off()

    async def tidy(self) -> None:
        """Rid OpenSearch of what it has deleted: until it does, that counts in what a word is worth."""
        if self.copy is not None:
            await ledger.enqueue_rebuild(self.pool, always=True)
            await self.work_off()

    @asynccontextmanager
    async def working(self) -> AsyncGenerator[None]:
        """A worker beside the test."""
        worker = Worker(
            self.pool, self.handlers(), database_url=self.database_url, poll_s=0.2, backoff_s=0.1, backoff_max_s=0.5
        )
        task = asyncio.create_task(worker.run())
        try:
            yield
        finally:
            worker.stop()
            await task

    async def generation(self) -> str:
        """The name of the index that serves."""
        return str(await self.pool.fetchval("SELECT generation FROM lore_copy WHERE state = 'serving'"))

    async def check(self) -> None:
        """Run the check that a worker runs every minute, and what it has done."""
        await queue.enqueue(self.pool, ledger.CHECK, {}, origin=ledger.ORIGIN)
        await self.work_off()

    async def _embed(self, text: str) -> QueryVector | None:
        model = await self.pool.fetchval("SELECT id FROM lore_model WHERE state = 'serving'")
        if model is None or text not in self.queries:
            return None
        return QueryVector(model, self.queries[text])


def text(title: str, body: str, **knowledge: Json) -> Draft:
    return make_draft(f"{title}.txt", title, body, knowledge=knowledge)


@pytest.fixture(scope="session")
def node() -> Iterator[Node]:
    """A real OpenSearch for all tests of this session."""
    need("opensearch")
    folder = Path(tempfile.mkdtemp(prefix="body-broker-opensearch-", dir=scratch_dir()))
    started = Node(folder)
    try:
        started.start()
        yield started
    finally:
        started.stop()
        shutil.rmtree(folder, ignore_errors=True)


def settings_for(url: str, **more: object) -> Settings:
    return Settings.model_validate(
        {"opensearch_url": url, "opensearch_engine": "lucene", "opensearch_timeout_s": 60, **more}
    )


Open = Callable[..., Awaitable[Shelf]]


@pytest.fixture
async def open_shelf(pool: Pool, database_url: str) -> AsyncIterator[Open]:
    """Lore whose copy is in the OpenSearch at a URL; with `built`, a generation serves, and shows what it is given at once."""
    async with AsyncExitStack() as stack:

        async def opened(url: str, *, built: bool = True, **settings: object) -> Shelf:
            copy = await stack.enter_async_context(open_copy(pool, settings_for(url, **settings)))
            shelf = Shelf(pool, database_url, copy)
            if built:
                await build(shelf, url)
            return shelf

        yield opened


async def build(shelf: Shelf, url: str) -> str:
    """The generation that serves from now on; it is refreshed often, so that tests wait less."""
    await ledger.enqueue_rebuild(shelf.pool, always=True)
    await shelf.work_off()
    generation = await shelf.generation()
    answer = await ask(url, "PUT", f"/{generation}/_settings", {"index": {"refresh_interval": "50ms"}})
    assert answer.status_code == 200, answer.text
    return generation


@pytest.fixture(params=["postgres", pytest.param("opensearch", marks=pytest.mark.requires("java", "opensearch"))])
async def shelf(request: pytest.FixtureRequest, pool: Pool, database_url: str, open_shelf: Open) -> Shelf:
    if request.param == "postgres":
        return Shelf(pool, database_url, None)
    node: Node = request.getfixturevalue("node")
    await clear(node.url)
    return await open_shelf(node.url)
