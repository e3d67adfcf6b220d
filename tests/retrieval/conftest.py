"""Owns bringing a collection in as an operator does, through the product's own import and worker."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from body_broker.storage.postgres import Pool
from body_broker.work.worker import Worker
from mcp_servers.rag.services import Services

Import = Callable[..., Awaitable[Services]]


@pytest.fixture
async def imported(pool: Pool, database_url: str) -> AsyncIterator[Import]:
    """Services whose lore holds these files."""
    services = Services.build(pool)
    worker = Worker(pool, services.handlers(), database_url=database_url)
    task = asyncio.create_task(worker.run())

    async def bring(*paths: Path) -> Services:
        await services.import_paths(paths, index="shared", by="operator:test")
        return services

    yield bring
    worker.stop()
    await task
