"""Owns what lore's tests share: lore on the test's own database, and workers that do its jobs."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from body_broker.calls import Receipt
from body_broker.lore import Lore, make_draft
from body_broker.lore.model import Draft, Intake
from body_broker.storage.postgres import Pool
from body_broker.work import queue
from body_broker.work.model import Origin, WorkItem
from body_broker.work.worker import Worker
from tests.waiting import wait_until

RECEIPT = Receipt("writer-1", 7)
OPERATOR = Origin(chain=("operator:ann",), session="operator:ann", receipt=RECEIPT)


class Bench:
    """Lore, and what a test does with it; `announced` holds the URIs that listeners were told."""

    def __init__(self, pool: Pool, database_url: str) -> None:
        self.pool, self._database_url = pool, database_url
        self.announced: list[str] = []
        self.lore = Lore(pool, announce=self._announce)

    async def take(self, *drafts: Draft, index: str = "shared", canon: bool = True) -> Intake:
        """Store documents with their job, which waits for a worker."""
        return await self.lore.importing.take(drafts, index=index, canon=canon, origin=OPERATOR)

    async def work_off(self) -> None:
        """Run a worker until every job of lore's has ended."""
        worker = Worker(
            self.pool, self.lore.importing.handlers(), database_url=self._database_url, lease_s=1.0, poll_s=0.2
        )
        task = asyncio.create_task(worker.run())

        async def idle() -> bool:
            return not await self.pool.fetchval(
                "SELECT true FROM work WHERE state IN ('queued', 'running') AND kind LIKE 'lore%'"
            )

        await wait_until(idle, "lore's jobs have ended", timeout_s=60)
        worker.stop()
        await task

    async def job(self, job_id: str | None) -> WorkItem:
        assert job_id is not None
        return await queue.get(self.pool, job_id, owner=None)

    async def bring(self, *drafts: Draft, index: str = "shared", canon: bool = True) -> list[str]:
        """Import documents; their ids."""
        taken = await self.take(*drafts, index=index, canon=canon)
        await self.work_off()
        if taken.job_id is not None:
            job = await self.job(taken.job_id)
            assert job.state == "succeeded", job.error
        return [document.doc_id for document in taken.documents]

    async def found(self, query: str, *, index: str = "shared", limit: int = 50) -> list[str]:
        """The ids of the documents that a query finds, the best first, each once."""
        page = await self.lore.search(index, query, limit=limit, per_document=True)
        return [passage.doc_id for passage in page.passages]

    async def _announce(self, uri: str) -> None:
        self.announced.append(uri)


@pytest.fixture
async def bench(pool: Pool, database_url: str) -> Bench:
    return Bench(pool, database_url)


def text(title: str, body: str) -> Draft:
    return make_draft(f"{title}.txt", title, body)


def texts(bodies: Sequence[str]) -> list[Draft]:
    return [text(f"Text {n}", body) for n, body in enumerate(bodies)]


def long_text(chunks: int, word: str = "lantern") -> str:
    """About this many chunks, each of which has the word and a number of its own."""
    return "\n\n".join(
        f"The {word} number{n} hangs over the quay. " + "It burns all night. " * 70 for n in range(chunks)
    )
