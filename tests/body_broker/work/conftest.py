"""Owns what every test of durable work is given: the bench, and what was logged."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from body_broker.storage.postgres import Pool
from tests.body_broker.work.bench import Bench
from tests.body_broker.work.worker_process import TABLES


class _Kept(logging.Handler):
    """Keeps events as they are, unrendered: a logger may have been made before anything else could look into it."""

    def __init__(self) -> None:
        super().__init__()
        self.events: list[dict[str, Any]] = []

    def emit(self, record: logging.LogRecord) -> None:
        event: Any = record.msg
        if isinstance(event, dict):
            self.events.append(event)  # pyright: ignore[reportUnknownArgumentType]  # structlog's own events


@pytest.fixture
def logs() -> Iterator[list[dict[str, Any]]]:
    """What is logged meanwhile, unrendered."""
    kept, root = _Kept(), logging.getLogger()
    root.addHandler(kept)
    try:
        yield kept.events
    finally:
        root.removeHandler(kept)


@pytest.fixture
async def bench(pool: Pool, database_url: str) -> AsyncIterator[Bench]:
    await pool.execute(TABLES)
    made = Bench(pool, database_url)
    try:
        yield made
    finally:
        made.end()
