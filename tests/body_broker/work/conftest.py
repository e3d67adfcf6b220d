"""Owns what every test of durable work is given: the bench, and what was logged."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest
import structlog

from body_broker.storage.postgres import Pool
from tests.body_broker.work.bench import Bench
from tests.body_broker.work.worker_process import TABLES


@pytest.fixture(autouse=True)
def logs() -> Iterator[list[structlog.typing.EventDict]]:
    """What was logged, unrendered."""
    with structlog.testing.capture_logs() as found:
        yield found


@pytest.fixture
async def bench(pool: Pool, database_url: str) -> AsyncIterator[Bench]:
    await pool.execute(TABLES)
    made = Bench(pool, database_url)
    try:
        yield made
    finally:
        made.end()
