"""Owns waiting for an engine: so many at once, so many who wait, the urgent first, and nobody who would come too late."""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from tiers.counts import Counts
from tiers.deadline import Deadline
from tiers.faults import EngineFault

_WEIGHT = 0.2
_Waiting = tuple[float, int, asyncio.Future[None]]


@dataclass(slots=True)
class Stay:
    """Of one who is inside.

    Attributes:
        away_s: How long something else than the engine was waited for: that is no part of how long it takes.
        is_away: Whether something else is waited for now.
    """

    away_s: float = 0.0
    is_away: bool = False


class Lane:
    """A queue of its own before one engine.

    Args:
        name: As metrics show it.
        width: Requests at once; none are taken where it is 0.
        queue_max: How many may wait.
        counts: Told how many wait.

    Attributes:
        busy: How many are inside.
        service_s: How long one takes, a moving average; None before the first.
    """

    def __init__(self, name: str, *, width: int, queue_max: int, counts: Counts) -> None:
        self.name, self.width, self.queue_max = name, width, queue_max
        self.busy = 0
        self.service_s: float | None = None
        self._counts, self._order = counts, itertools.count()
        self._waiting: list[_Waiting] = []

    @property
    def waiting(self) -> int:
        """How many wait."""
        return len(self._waiting)

    def wait_s(self, urgency: float | None = None) -> float:
        """How long whoever comes now is likely to wait; who is more urgent than others does not wait for them."""
        if self.busy < self.width or self.service_s is None or not self.width:
            return 0.0
        ahead = len(self._waiting) if urgency is None else sum(rank <= -urgency for rank, _, _ in self._waiting)
        return self.service_s * (ahead + 1) / self.width

    @asynccontextmanager
    async def entered(self, deadline: Deadline, urgency: float = 0.5) -> AsyncGenerator[Stay]:
        """A place inside, after waiting if need be.

        Args:
            deadline: When it is too late to begin.
            urgency: The more urgent come first, then whoever came first.

        Raises:
            EngineFault: `cannot`: nobody is taken; `busy`: the queue is full, or the answer would come after the deadline, or the wait did.
        """
        if not self.width:
            raise EngineFault("cannot")
        if self.busy < self.width and not self._waiting:
            self.busy += 1
        else:
            await self._wait(deadline, urgency)
        now = asyncio.get_running_loop().time
        began, stay = now(), Stay()
        try:
            yield stay
            self._took(now() - began - stay.away_s)
        except EngineFault:
            took_s = now() - began - stay.away_s
            if self.service_s is not None and took_s > self.service_s:
                self._took(took_s)  # what fails at once says nothing of how long others take
            raise
        finally:
            self._leave()

    def _took(self, seconds: float) -> None:
        self.service_s = moved(self.service_s, seconds)

    async def _wait(self, deadline: Deadline, urgency: float) -> None:
        # Whoever would begin with too little time left takes the place of one who could be answered.
        if self.wait_s(urgency) + (self.service_s or 0.0) > deadline.remaining() or not self._has_room(urgency):
            raise EngineFault("busy")
        turn = asyncio.get_running_loop().create_future()
        entry = (-urgency, next(self._order), turn)
        heapq.heappush(self._waiting, entry)
        self._counts.waiting(self.name, 1)
        try:
            async with deadline.scope():
                await turn
        except TimeoutError as error:
            self._gave_up(entry)
            raise EngineFault("busy") from error
        except BaseException:
            self._gave_up(entry)
            raise
        finally:
            self._counts.waiting(self.name, -1)

    def _has_room(self, urgency: float) -> bool:
        """Whether one more may wait; in a full queue the last of the least urgent makes room for who is more urgent."""
        if len(self._waiting) < self.queue_max:
            return True
        last = max(self._waiting, default=None, key=lambda entry: entry[:2])
        if last is None or last[0] <= -urgency:
            return False
        self._remove(last)
        if not last[2].done():  # it gave up a moment ago, and has not run since
            last[2].set_exception(EngineFault("busy"))
        return True

    def _gave_up(self, entry: _Waiting) -> None:
        if entry in self._waiting:
            self._remove(entry)
        elif not entry[2].cancelled() and entry[2].exception() is None:
            self._leave()  # the place was given a moment ago: the next one has it

    def _remove(self, entry: _Waiting) -> None:
        self._waiting.remove(entry)
        heapq.heapify(self._waiting)

    def _leave(self) -> None:
        """Give the place to the next who still waits."""
        while self._waiting:
            _, _, turn = heapq.heappop(self._waiting)
            if not turn.done():
                turn.set_result(None)
                return
        self.busy -= 1


def moved(average: float | None, seen: float) -> float:
    """The moving average with one more value."""
    return seen if average is None else average + _WEIGHT * (seen - average)
