"""Owns the worker process: which kinds of durable work this program can do, run until SIGTERM or as a task of the hub."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Collection
from contextlib import asynccontextmanager

from body_broker.telemetry import get_logger
from body_broker.work.worker import Worker
from mcp_servers.hub.runtime import Runtime
from tiers.bronze.model import KINDS

log = get_logger(__name__)


def make_worker(runtime: Runtime, kinds: Collection[str] | None = None) -> Worker:
    """A worker for every kind of work the rooms bring, or only for these.

    Unless they are asked for, experts' jobs are left alone by a process that knows no engine for them: another may know one.
    """
    settings = runtime.settings
    bringing = (runtime.services, runtime.executor, runtime.approvals, runtime.experts)
    handlers = {kind: handler for each in bringing for kind, handler in each.handlers().items()}
    if kinds is None and not runtime.experts.has_engine():
        kinds_here = frozenset(handlers) - frozenset(KINDS)
    else:
        kinds_here = frozenset(handlers) if kinds is None else frozenset(kinds)
    schedules = (*runtime.services.schedules(), *runtime.approvals.schedules(), *runtime.experts.schedules())
    return Worker(
        runtime.stores.pool,
        {kind: handler for kind, handler in handlers.items() if kind in kinds_here},
        database_url=runtime.stores.database_url,
        schedules=schedules if kinds is None else (),
        concurrency=settings.worker_concurrency,
        long_kinds=KINDS,  # else approved calls would wait for models
        lease_s=settings.worker_lease_s,
    )


def stop(runtime: Runtime, worker: Worker) -> None:
    """Claim nothing more, and let nothing wait for what is long and goes on anywhere: vectors."""
    worker.stop()
    runtime.services.embedding.hand_back()


@asynccontextmanager
async def working(runtime: Runtime, kinds: Collection[str] | None = None) -> AsyncGenerator[Worker]:
    """A worker that runs beside the caller; on the way out it hands back what it has not finished."""
    worker = make_worker(runtime, kinds)
    async with runtime.experts.working() if kinds is None else contextlib.nullcontext():
        task = asyncio.create_task(worker.run(), name="worker")
        task.add_done_callback(_log_death)
        try:
            yield worker
        finally:
            stop(runtime, worker)
            with contextlib.suppress(asyncio.CancelledError):
                await task


def _log_death(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and task.exception() is not None:
        log.error("worker_died", exc_info=task.exception())
