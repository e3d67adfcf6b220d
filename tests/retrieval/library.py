"""Owns the collections as an operator brings them in: through the product's own import, with vectors, and a copy where asked for."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from body_broker.lore.embedding import open_embedding
from body_broker.lore.opensearch import open_copy
from body_broker.settings import Settings
from body_broker.storage.postgres import Pool, open_pool
from body_broker.work.worker import Worker
from mcp_servers.rag.services import Services
from tests.retrieval.collections import NOVELS_FILES, cranfield
from tests.retrieval.measuring import CRANFIELD, NOVELS
from tests.waiting import wait_until

_PATIENCE_S = 1_800
"""Embedding both collections is some minutes of two cores, and the machine may be busy."""


@asynccontextmanager
async def library(settings: Settings) -> AsyncGenerator[Services]:
    """Lore as a process has it open by these settings, and a worker beside it."""
    assert settings.database_url is not None
    url = settings.database_url.get_secret_value()
    async with AsyncExitStack() as stack:
        pool = await stack.enter_async_context(open_pool(url))
        copy = await stack.enter_async_context(open_copy(pool, settings)) if settings.opensearch_url else None
        followers = [copy] if copy else []
        embedding = await stack.enter_async_context(open_embedding(pool, settings, followers))
        services = Services.build(
            pool,
            embed=embedding.embed,
            copy=copy.index if copy else None,
            followers=[embedding, *followers],
            following={**embedding.handlers(), **(copy.handlers() if copy else {})},
        )
        schedules = copy.schedules() if copy else ()
        worker = Worker(pool, services.handlers(), database_url=url, schedules=schedules)
        task = asyncio.create_task(worker.run())
        try:
            yield services
        finally:
            worker.stop()
            await task


async def bring(services: Services, data: Path, folder: Path) -> None:
    """Import both collections, and return once every passage has its vector."""
    file = folder / "cranfield.jsonl"
    lines = [
        json.dumps({"id": number, "title": title, "text": text})
        for number, (title, text) in cranfield(data / "cranfield").documents.items()
    ]
    await asyncio.to_thread(file.write_text, "\n".join(lines), "utf-8")
    await services.import_paths([file], index=CRANFIELD, by="operator:test")
    await services.import_paths([data / "lore" / name for name in NOVELS_FILES], index=NOVELS, by="operator:test")
    await wait_until(lambda: _whole(services.pool), "every passage has its vector", timeout_s=_PATIENCE_S)


async def copied(pool: Pool) -> None:
    """Return once OpenSearch shows everything there is, vectors included."""
    await wait_until(lambda: _copied(pool), "the copy is whole", timeout_s=_PATIENCE_S)


async def _copied(pool: Pool) -> bool:
    return bool(
        await pool.fetchval(
            "SELECT true FROM lore_copy JOIN lore_model m ON m.id = model_id WHERE lore_copy.state = 'serving'"
            " AND m.state = 'serving' AND NOT EXISTS (SELECT FROM lore_copy_due) LIMIT 1"
        )
    )


async def _whole(pool: Pool) -> bool:
    return not await pool.fetchval(
        "SELECT true FROM lore_document d JOIN lore_chunk c ON c.rev = d.rev WHERE NOT EXISTS ("
        "SELECT FROM lore_vector v WHERE v.rev = c.rev AND v.ordinal = c.ordinal) LIMIT 1"
    )
