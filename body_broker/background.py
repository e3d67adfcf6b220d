"""Owns tasks that run beside others: begun, and ended for sure, though a library may swallow a cancellation on its way."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Coroutine
from contextlib import asynccontextmanager
from typing import Any

from body_broker.telemetry import get_logger

log = get_logger(__name__)

_AGAIN_S = 0.5


@asynccontextmanager
async def running(work: Coroutine[Any, Any, None], *, name: str) -> AsyncGenerator[asyncio.Task[None]]:
    """A task that runs until the way out.

    Args:
        work: What it does; usually for ever.
        name: Shown in logs and task dumps.
    """
    task = asyncio.create_task(work, name=name)
    try:
        yield task
    finally:
        await end(task)


async def end(task: asyncio.Task[Any]) -> None:
    """Return once the task has ended. It is cancelled as often as it takes: a client library that is cancelled while its reply
    arrives may raise an error of its own instead, and a loop that survives lost connections survives that too.
    """
    while not task.done():
        task.cancel()
        await asyncio.wait({task}, timeout=_AGAIN_S)
    if not task.cancelled() and (error := task.exception()) is not None:
        log.error("background_task_failed", task=task.get_name(), exc_info=error)
