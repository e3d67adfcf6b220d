"""Owns killing whatever makes vectors or keeps them: the steps of the job, and what must hold once all is quiet."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

from tests.counterparts.embeddings_api import EmbeddingsApi, embeddings_api
from tests.kill.harness import PATIENCE_S, Harness, Step, Victim
from tests.kill.holding import holding
from tests.kill.product import Product
from tests.kill.promises import READER, Promises
from tests.waiting import wait_until

_AT_ONCE = 32
_VECTORS = "LOCK TABLE lore_vector IN SHARE MODE"
_SETTLED = """
SELECT (SELECT count(*) FROM lore_chunk c JOIN lore_document d USING (rev)) AS passages,
       (SELECT count(*) FROM lore_vector) AS vectors,
       (SELECT count(DISTINCT (v.rev, v.ordinal)) FROM lore_vector v JOIN lore_document d USING (rev)) AS current,
       (SELECT count(*) FROM work WHERE kind = 'lore_vectors' AND state IN ('queued', 'running')) AS waiting,
       (SELECT count(*) FROM work WHERE kind = 'lore_vectors' AND state = 'failed') AS failed
"""


class VectorSteps:
    """The steps over one product whose vectors an API makes.

    Args:
        product: What is killed.
        promises: Its imports.
        api: What makes the vectors, and can be made to wait.
    """

    def __init__(self, product: Product, promises: Promises, api: EmbeddingsApi) -> None:
        self._product, self._promises, self._api = product, promises, api

    def all(self) -> list[Step]:
        """Every step."""
        return [
            Step("vectors: a first batch is asked for", self._first_asked),
            Step("vectors: a batch is stored, the next asked for", self._next_asked),
            Step("vectors: a batch before its commit", self._before_commit),
        ]

    @asynccontextmanager
    async def _first_asked(self, _victim: Victim) -> AsyncGenerator[str]:
        async with self._asked(after=0, large=False):
            yield "the model was asked and has not answered; every import is found by its words"

    @asynccontextmanager
    async def _next_asked(self, _victim: Victim) -> AsyncGenerator[str]:
        before = (await self._product.sql(_SETTLED))[0]["vectors"]
        async with self._asked(after=2, large=True):
            stored = (await self._product.sql(_SETTLED))[0]["vectors"] - before
            assert stored > 0
            yield f"{stored} vectors stored, the model was asked for more"

    @asynccontextmanager
    async def _before_commit(self, _victim: Victim) -> AsyncGenerator[str]:
        async with self._asked(after=0, large=False) as go, holding(self._product.database_url, _VECTORS) as held:
            go.set()
            runs_it = await held.has_stopped_one()
            yield f"the {runs_it} has a batch's vectors, none of them is stored"
            held.let_go()

    @asynccontextmanager
    async def _asked(self, *, after: int, large: bool) -> AsyncGenerator[asyncio.Event]:
        """Documents brought whose vectors are asked for; after so many batches the model answers only once the event is set."""
        asked, go, answered = asyncio.Event(), asyncio.Event(), 0

        async def wait(_texts: list[str]) -> None:
            nonlocal answered
            answered += 1
            if answered > after:
                asked.set()
                await go.wait()

        self._api.misbehave = wait
        try:
            await self._promises.bring(large=large)
            await self._promises.imports_end()
            async with asyncio.timeout(PATIENCE_S):
                await asked.wait()
            yield go
        finally:
            self._api.misbehave = None
            go.set()


async def survive(folder: Path, *, seed: int, rounds: int) -> Harness:
    """The harness after so many rounds, with every passage's vector made and made once; fails at the first broken promise."""
    chance = random.Random(seed)  # noqa: S311  # repeatable, nothing secret
    async with embeddings_api(sense=False) as api:
        settings = {
            "BODY_BROKER_EMBEDDINGS": api.url,
            "BODY_BROKER_EMBEDDINGS_MODEL": api.model,
            "BODY_BROKER_EMBEDDINGS_TIMEOUT_S": "60",
        }
        product = Product(folder / "data", folder, settings)
        promises = Promises(product, chance)

        async def ready() -> None:
            await product.ready()
            await promises.imports_end()

        harness = Harness(product.victims(), VectorSteps(product, promises, api).all(), ready, seed)
        async with product.open(READER):
            for _ in range(rounds):
                await harness.round()
                await promises.require_imports()
            found = await _settled(product)
            repeated = len(api.texts) - found
            assert 0 <= repeated <= _AT_ONCE * rounds, "a kill repeats one batch at most"
            answer = await product.call(READER, "search_lore", {"query": "harbour"})
            assert answer is not None
            assert (answer.code, answer.result["unavailable"]) == (None, []), answer
            await product.stop()
        print(f"{found} vectors, {repeated} texts asked for again")
        return harness


async def _settled(product: Product) -> int:
    """How many passages there are, once each has its vector; nothing else has one, and no job gave up."""

    async def over() -> int | None:
        row = (await product.sql(_SETTLED))[0]
        assert row["failed"] == 0
        return row["passages"] if row["passages"] == row["vectors"] == row["current"] and not row["waiting"] else None

    found = await wait_until(over, "every passage has its vector", timeout_s=2 * PATIENCE_S)
    assert found is not None
    return found
