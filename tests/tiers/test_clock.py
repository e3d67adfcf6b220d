"""Virtual time itself: what waits on the loop wakes when the test says so, and not before."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest

from tests.tiers.clock import Clock, frozen_time, settle, virtual_time
from tiers.deadline import Deadline


async def test_a_timeout_of_an_hour_comes_when_the_clock_is_moved_an_hour(clock: Clock) -> None:
    async def wait() -> None:
        async with Deadline.after(3_600).scope():
            await asyncio.get_running_loop().create_future()

    waiting = asyncio.create_task(wait())
    await settle()
    clock.move(3_590)
    await settle()
    assert not waiting.done()

    clock.move(11)

    with pytest.raises(TimeoutError):
        await waiting


async def test_what_sleeps_again_and_again_wakes_as_often_as_it_would(clock: Clock) -> None:
    woke: list[float] = []
    began = clock()

    async def drip() -> None:
        while True:
            await asyncio.sleep(10)
            woke.append(clock() - began)

    dripping = asyncio.create_task(drip())
    await settle()
    await clock.pass_by(100, step_s=5)
    dripping.cancel()

    assert len(woke) in {9, 10}  # the tenth is due with the last step
    assert woke[0] == pytest.approx(10, abs=5.5)


@pytest.mark.parametrize("moved", [virtual_time, frozen_time])
async def test_time_does_not_go_back_afterwards_and_what_was_begun_meanwhile_runs_out(
    moved: Callable[[], AbstractContextManager[Clock]],
) -> None:
    loop = asyncio.get_running_loop()
    before = loop.time()
    with moved() as clock:
        clock.move(1_000)
        begun = asyncio.create_task(asyncio.sleep(0.001))
        await asyncio.sleep(0)

    assert loop.time() >= before + 1_000
    await begun  # not a thousand seconds later
