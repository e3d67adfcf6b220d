"""Owns virtual time: the clock of a test's own event loop, which the test moves on instead of waiting.

Ask for the fixture `clock` (import it where tests/tiers/conftest.py does not reach), begin what is to run out of
time with limits that are long in real time (a minute, not a millisecond), wait until it waits, then `clock.move(61)` or `await clock.pass_by(61)`.
asyncio.timeout_at, asyncio.sleep, call_later and `loop.time()` obey it; other programs and threads do not.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Generator
from contextlib import contextmanager
from typing import Any, cast

import pytest

_TURNS = 40
"""Turns of the loop in which whatever a moved clock has woken comes to its next wait, sockets of this process included."""


class Clock:
    """Real time, and as much more as the test says. Calling it gives its seconds: it can be passed as a `clock`."""

    def __init__(self, real: Callable[[], float]) -> None:
        self._real, self.ahead_s = real, 0.0

    def __call__(self) -> float:
        """Seconds, as `loop.time()` has them."""
        return self._real() + self.ahead_s

    def move(self, seconds: float) -> None:
        """Jump; what was to happen meanwhile happens with the loop's next turn, in its order."""
        self.ahead_s += seconds

    async def pass_by(self, seconds: float, *, step_s: float = 1.0) -> None:
        """Let so much time go by in steps, after each of which whatever woke has come to rest: for what sleeps again and again."""
        left = seconds
        while left > 0:
            self.move(min(step_s, left))
            left -= step_s
            await settle()


async def settle() -> None:
    """Let everything that can go on in this process go on, until it waits; no time goes by but what the machine needs."""
    for _ in range(_TURNS):
        await asyncio.sleep(0)


@contextmanager
def virtual_time() -> Generator[Clock]:
    """The running loop's clock, in the test's hands for as long as this is open.

    What was gained stays: a loop whose time went back would wait as much longer for whatever was begun meanwhile.
    """
    loop = cast("Any", asyncio.get_running_loop())  # an attribute over a method
    loop.time = clock = Clock(loop.time)
    yield clock


@contextmanager
def frozen_time() -> Generator[Clock]:
    """A clock that stands still but where the test moves it: for what counts how long things took, whatever else the machine does.

    Somebody must keep the loop busy, such as `pass_by`: a loop that waits for a timer waits for good.
    """
    loop = cast("Any", asyncio.get_running_loop())  # an attribute over a method
    real, began = loop.time, loop.time()
    loop.time = found = Clock(lambda: began)
    try:
        yield found
    finally:
        loop.time = after = Clock(real)
        after.move(found.ahead_s)


@pytest.fixture
async def clock() -> AsyncIterator[Clock]:
    """Virtual time for one test."""
    with virtual_time() as found:
        yield found
