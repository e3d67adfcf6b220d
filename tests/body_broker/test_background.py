"""A task beside others ends with what it ran beside, even where a library swallows its cancellation."""

from __future__ import annotations

import asyncio

from body_broker.background import end, running


async def test_a_task_that_swallows_its_first_cancellations_ends_all_the_same() -> None:
    swallowed = 0
    begun = asyncio.Event()

    async def stubborn() -> None:
        nonlocal swallowed
        while swallowed < 3:
            begun.set()
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                swallowed += 1  # as a client does that raises an error of its own instead
        await asyncio.Event().wait()

    async with asyncio.timeout(20):
        async with running(stubborn(), name="stubborn") as task:
            await begun.wait()
    assert swallowed == 3
    assert task.cancelled()


async def test_a_task_that_has_failed_or_ended_is_ended_without_a_word_to_the_caller() -> None:
    async def fail() -> None:
        raise RuntimeError("a fault")

    async def finish() -> None:
        return

    for work in (fail, finish):
        task = asyncio.create_task(work())
        await asyncio.wait({task})
        await end(task)
        assert task.done()
