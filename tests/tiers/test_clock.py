"""Virtual time itself: what waits on the loop wakes when the test says so, and not before."""

from __future__ import annotations

import asyncio

import pytest

from tests.tiers.clock import Clock, settle, virtual_time
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


async def test_the_loop_has_its_own_clock_back_afterwards() -> None:
    loop = asyncio.get_running_loop()
    before = loop.time()
    with virtual_time() as clock:
        clock.move(1_000)
        assert loop.time() >= before + 1_000

    assert loop.time() < before + 1_000
