"""Owns how a test waits: for a condition, with a name and a bound; never for a time."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar, cast

from body_broker.background import end

T = TypeVar("T")
_POLL_S = 0.01


async def wait_until(
    predicate: Callable[[], T] | Callable[[], Awaitable[T]], description: str, timeout_s: float = 60.0
) -> T:
    """The first true value of the predicate, which may be async; fails naming what did not come about."""
    deadline = time.monotonic() + timeout_s
    while True:
        found = predicate()
        if inspect.isawaitable(found):
            found = await cast("Awaitable[T]", found)
        if found:
            return cast("T", found)
        assert time.monotonic() < deadline, f"{timeout_s} s passed, but not: {description}"
        await asyncio.sleep(_POLL_S)


async def end_all(tasks: Sequence[asyncio.Task[None]], timeout_s: float = 60.0) -> list[BaseException]:
    """Cancel them until they end, and what they ended with, but for the cancelling."""
    async with asyncio.timeout(timeout_s):
        await asyncio.gather(*(end(task) for task in tasks))
    return [fault for task in tasks if not task.cancelled() and (fault := task.exception()) is not None]


def wait_until_sync(predicate: Callable[[], T], description: str, timeout_s: float = 60.0) -> T:
    """The same where there is no event loop."""
    deadline = time.monotonic() + timeout_s
    while not (found := predicate()):
        assert time.monotonic() < deadline, f"{timeout_s} s passed, but not: {description}"
        time.sleep(_POLL_S)
    return found
