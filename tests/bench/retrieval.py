"""How good and how fast lore is found: Cranfield and the lore questions, by words, meaning and both, on either index."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Generator
from pathlib import Path

from body_broker.settings import Settings
from body_broker.storage import embedded
from body_broker.storage.migrations import migrate
from body_broker.storage.postgres import open_pool
from mcp_servers.rag.services import Services
from tests.components import data_dir
from tests.opensearch_node import Node
from tests.retrieval.collections import cranfield, questions
from tests.retrieval.library import bring, copied, library
from tests.retrieval.measuring import NAMES, WAYS, cranfield_by, halves, questions_by

_SECRET = "a-secret-key-of-the-bench-0123456789"
_HEAD = [
    "| index | by | Cranfield nDCG@10 | p50 ms | p95 ms | questions that share a word: hit@3 / MRR | share none | all 30 |",
    "| --- | --- | --- | --- | --- | --- | --- | --- |",
]


def measure(folder: Path, *, opensearch: bool) -> str:
    """The table as Markdown; both collections are imported anew, which takes minutes."""
    folder.mkdir()
    with _stores(folder / "stores") as url:
        return asyncio.run(_measure(url, folder, opensearch=opensearch))


async def _measure(url: str, folder: Path, *, opensearch: bool) -> str:
    base = {"database_url": url, "secret_key": _SECRET}
    async with open_pool(url) as pool:
        await migrate(pool)
    lines = list(_HEAD)
    async with library(Settings.model_validate(base)) as services:
        await bring(services, data_dir(), folder)
        lines += await _rows("PostgreSQL", services)
    if opensearch:
        node = Node(folder / "node")
        try:
            address = await asyncio.to_thread(node.start)
            settings = Settings.model_validate(base | {"opensearch_url": address, "opensearch_engine": "lucene"})
            async with library(settings) as services:
                await copied(services.pool)
                lines += await _rows("OpenSearch", services)
        finally:
            await asyncio.to_thread(node.stop)
    return "\n".join(lines)


async def _rows(index: str, services: Services) -> list[str]:
    lines: list[str] = []
    for by in WAYS:
        found = await cranfield_by(services, cranfield(data_dir() / "cranfield"), by)
        assert not found.unavailable, f"{index} did not answer everything itself: {found.unavailable}"
        answered = [await questions_by(services, asked, by) for asked in halves(questions()).values()]
        cells = " | ".join(f"{each.hit_at_3:.3f} / {each.reciprocal_rank:.3f}" for each in answered)
        lines.append(
            f"| {index} | {NAMES[by]} | {found.ndcg_at_10:.4f} | {found.p50_ms:.1f} | {found.p95_ms:.1f} | {cells} |"
        )
    return lines


@contextlib.contextmanager
def _stores(data: Path) -> Generator[str]:
    urls = embedded.start(data)
    try:
        yield urls.database_url
    finally:
        embedded.release(data)
