"""Owns the worker process: which kinds of durable work this program can do, run until SIGTERM or as a task of the hub."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from body_broker.telemetry import get_logger
from body_broker.work.worker import Worker
from mcp_servers.hub.runtime import Runtime

log = get_logger(__name__)


def make_worker(runtime: Runtime) -> Worker:
    """A worker for every kind of work the rooms bring."""
    settings = runtime.settings
    return Worker(
        runtime.stores.pool,
        runtime.rag.handlers(),
        database_url=runtime.stores.database_url,
        concurrency=settings.worker_concurrency,
        lease_s=settings.worker_lease_s,
    )


@asynccontextmanager
async def working(runtime: Runtime) -> AsyncGenerator[Worker]:
    """A worker that runs beside the caller; on the way out it hands back what it has not finished."""
    worker = make_worker(runtime)
    task = asyncio.create_task(worker.run(), name="worker")
    task.add_done_callback(_log_death)
    try:
        yield worker
    finally:
        worker.stop()
        with contextlib.suppress(asyncio.CancelledError):
            await task


def _log_death(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and task.exception() is not None:
        log.error("worker_died", exc_info=task.exception())
