"""Owns killing hub, worker and OpenSearch while a copy of the lore is kept: the steps, and what must hold once all is quiet."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

from body_broker.lore.importing import IMPORT, REINDEX
from body_broker.lore.opensearch import ledger
from body_broker.storage.postgres import open_pool
from tests.counterparts.slow_line import SlowLine, slow_line
from tests.kill.harness import PATIENCE_S, Harness, Step, Victim
from tests.kill.holding import holding
from tests.kill.product import Product
from tests.kill.shelf import READER, Shelf
from tests.opensearch_node import Node, ask
from tests.waiting import wait_until

_DUE = "LOCK TABLE lore_copy_due IN SHARE MODE"
_SERVING = "SELECT FROM lore_copy WHERE state = 'serving' FOR NO KEY UPDATE"
_BLOCKED = """
SELECT true FROM pg_stat_activity WHERE cardinality(pg_blocking_pids(pid)) > 0 AND position($1 in query) > 0
"""
_NOTES, _SWITCHES = "DELETE FROM lore_copy_due WHERE (generation, rev) IN", "SET state = 'lost' WHERE state = 'serving'"
_SETTLED = """
SELECT (SELECT count(*) FROM lore_copy WHERE state = 'serving') = 1 AND (SELECT count(*) FROM lore_copy) = 1
   AND NOT EXISTS (SELECT FROM lore_copy_due)
   AND NOT EXISTS (SELECT FROM work WHERE state IN ('queued', 'running') AND kind = ANY ($1)) AS settled
"""
# Nobody waits for the import that the last change began.
_CHANGING = [IMPORT, REINDEX, ledger.COPY, ledger.REBUILD]
_REINDEXING = "SELECT true FROM work WHERE state IN ('queued', 'running') AND kind = 'lore_copy_rebuild'"
_HELD = "SELECT c.rev, c.ordinal FROM lore_chunk c JOIN lore_document d USING (rev)"


class CopySteps:
    """The steps over one product that has an OpenSearch.

    Args:
        product: What is killed.
        shelf: Its lore, which changes all the time.
        line: Between the product and its OpenSearch.
    """

    def __init__(self, product: Product, shelf: Shelf, line: SlowLine) -> None:
        self._product, self._shelf, self._line = product, shelf, line

    def all(self) -> list[Step]:
        """Every step."""
        return [
            Step("lore: in full use", self._in_use),
            Step("copy: written, no answer yet", self._before_answered),
            Step("copy: shown, not noted yet", self._before_noted),
            Step("reindex: begun, nothing written", self._before_filled),
            Step("reindex: filled, before the switch", self._before_switched),
        ]

    @asynccontextmanager
    async def _in_use(self, _victim: Victim) -> AsyncGenerator[str]:
        before = self._shelf.changed
        await wait_until(lambda: self._shelf.changed >= before + 3, "documents change", timeout_s=PATIENCE_S)
        yield f"{self._shelf.changed - before} documents changed meanwhile"

    @asynccontextmanager
    async def _before_answered(self, _victim: Victim) -> AsyncGenerator[str]:
        async with self._held("/_bulk ") as before:
            await wait_until(lambda: self._line.held > before, "something is copied", timeout_s=PATIENCE_S)
            yield "a write was sent, its answer is kept back"

    @asynccontextmanager
    async def _before_noted(self, _victim: Victim) -> AsyncGenerator[str]:
        async def due() -> bool:
            return bool(await self._product.sql("SELECT true FROM lore_copy_due"))

        while True:
            await wait_until(due, "something is due", timeout_s=PATIENCE_S)
            async with holding(self._product.database_url, _DUE) as hold:
                if await due():
                    await self._blocked(_NOTES)
                    yield "OpenSearch shows what was written, the ledger does not say so"
                    hold.let_go()
                    return

    @asynccontextmanager
    async def _before_filled(self, _victim: Victim) -> AsyncGenerator[str]:
        await self._no_reindex()
        async with self._held("PUT ") as before:
            await self._reindex()
            await wait_until(lambda: self._line.held > before, "a new generation is begun", timeout_s=PATIENCE_S)
            yield "the index of a new generation was asked for, the answer is kept back"

    @asynccontextmanager
    async def _before_switched(self, _victim: Victim) -> AsyncGenerator[str]:
        await self._no_reindex()
        async with holding(self._product.database_url, _SERVING) as hold:
            await self._reindex()
            await self._blocked(_SWITCHES)
            yield "the new generation is whole, the old one serves"
            hold.let_go()

    @asynccontextmanager
    async def _held(self, part: str) -> AsyncGenerator[int]:
        """OpenSearch's answers to such requests are kept back; how many were before."""
        self._line.hold(part)
        try:
            yield self._line.held
        finally:
            self._line.let_go()

    async def _no_reindex(self) -> None:
        """Return once the one before has ended, which another would only join."""

        async def over() -> bool:
            return not await self._product.sql(_REINDEXING)

        await wait_until(over, "the reindex before has ended", timeout_s=PATIENCE_S)

    async def _reindex(self) -> None:
        async with (
            open_pool(self._product.database_url, connections_max=2) as pool,
            pool.acquire() as connection,
            connection.transaction(),
        ):
            await ledger.join_rebuild(connection)

    async def _blocked(self, part: str) -> None:
        async def blocked() -> bool:
            return bool(await self._product.sql(_BLOCKED, part))

        await wait_until(blocked, f"it stands at {part!r}", timeout_s=PATIENCE_S)


def settings_of(line: SlowLine) -> dict[str, str]:
    """The settings of a product whose OpenSearch lies behind this line."""
    return {
        "BODY_BROKER_OPENSEARCH_URL": line.url,
        "BODY_BROKER_OPENSEARCH_ENGINE": "lucene",
        "BODY_BROKER_EMBEDDINGS": "off",
    }


async def survive(folder: Path, *, seed: int, rounds: int) -> Harness:
    """The harness after so many rounds in which no answer was wrong, and after which the copy shows what PostgreSQL holds."""
    (folder / "opensearch").mkdir()
    node = Node(folder / "opensearch")
    await asyncio.to_thread(node.start)
    try:
        async with slow_line(node.url) as line:
            return await _survive(folder, node, line, seed=seed, rounds=rounds)
    finally:
        await asyncio.to_thread(node.stop)


async def _survive(folder: Path, node: Node, line: SlowLine, *, seed: int, rounds: int) -> Harness:
    product = Product(folder / "data", folder, settings_of(line))
    shelf = Shelf(product, random.Random(seed))  # noqa: S311  # repeatable, nothing secret

    async def restore() -> None:
        await asyncio.to_thread(node.stop)
        await asyncio.to_thread(node.start)

    programs = [victim for victim in product.victims() if victim.name in {"hub", "worker"}]
    dying = [*programs, Victim("opensearch", lambda: node.pid, restore)]
    harness = Harness(dying, CopySteps(product, shelf, line).all(), product.ready, seed)
    async with product.open(READER):
        await shelf.add()
        await settled_with(product, node)
        async with shelf.in_use():
            for _ in range(rounds):
                await harness.round()
        print(f"{shelf.changed} changes; answers checked, by what was unavailable: {shelf.answers}")
        await settled_with(product, node)
        await _require_served(shelf)
        await product.stop()
    return harness


async def settled_with(product: Product, node: Node) -> None:
    """Return once nothing is due; then one generation is there, and it shows each passage that PostgreSQL has exactly once."""

    async def settled() -> bool:
        return (await product.sql(_SETTLED, _CHANGING))[0]["settled"]

    await wait_until(settled, "nothing is due to the copy", timeout_s=2 * PATIENCE_S)
    indices = [found["index"] for found in (await ask(node.url, "GET", "/_cat/indices/lore*?format=json")).json()]
    generation = (await product.sql("SELECT generation FROM lore_copy"))[0]["generation"]
    assert indices == [generation], (indices, generation)
    query = {"size": 10_000, "_source": ["rev", "ordinal"]}
    hits = (await ask(node.url, "POST", f"/{generation}/_search", query)).json()["hits"]["hits"]
    shown = Counter((hit["_source"]["rev"], hit["_source"]["ordinal"]) for hit in hits)
    held = Counter((row["rev"], row["ordinal"]) for row in await product.sql(_HELD))
    assert shown == held, {"shown and not held": shown - held, "held and not shown": held - shown}


async def _require_served(shelf: Shelf) -> None:
    """The copy answers again, and every document there is is found in it."""

    async def copied() -> bool:
        shelf.answers.clear()
        await shelf.read()
        return set(shelf.answers) == {"vectors"}

    await wait_until(copied, "the copy answers", timeout_s=2 * PATIENCE_S)
    for document in shelf.documents:
        await shelf.require_all(document)
    for mark in shelf.gone:
        await shelf.require_nothing(mark)
    assert set(shelf.answers) == {"vectors"}, shelf.answers
