"""Waiting for an engine: the urgent first, nobody who would come too late, and a place is never lost."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tiers.asking import LONG_S, Tally
from tests.tiers.clock import Clock, settle, virtual_time
from tiers.deadline import Deadline
from tiers.faults import EngineFault
from tiers.lanes import Lane


class Visits:
    """Who is inside, and in what order they came in."""

    def __init__(self, lane: Lane) -> None:
        self.lane, self.came, self.doors = lane, list[str](), dict[str, asyncio.Event]()

    async def visit(self, name: str, urgency: float = 0.5, within_s: float = LONG_S) -> None:
        async with self.lane.entered(Deadline.after(within_s), urgency):
            self.came.append(name)
            await self.doors.setdefault(name, asyncio.Event()).wait()

    def leave(self, name: str) -> None:
        self.doors.setdefault(name, asyncio.Event()).set()


def lane_of(width: int = 1, queue_max: int = 10, counts: Tally | None = None) -> Lane:
    return Lane("test", width=width, queue_max=queue_max, counts=counts or Tally())


@asynccontextmanager
async def waiting(visits: Visits, *names: tuple[str, float]) -> AsyncGenerator[dict[str, asyncio.Task[None]]]:
    """The first is inside, the others wait."""
    tasks: dict[str, asyncio.Task[None]] = {}
    for name, urgency in names:
        tasks[name] = asyncio.create_task(visits.visit(name, urgency))
        await settle()
    try:
        yield tasks
    finally:
        for name, task in tasks.items():
            visits.leave(name)
            task.cancel()
        await asyncio.gather(*tasks.values(), return_exceptions=True)


async def test_the_urgent_come_first_and_among_equals_whoever_came_first() -> None:
    visits = Visits(lane_of())
    async with waiting(visits, ("in", 0.5), ("a", 0.5), ("b", 0.5), ("urgent", 0.9), ("late", 0.3)) as tasks:
        for name in ("in", "urgent", "a", "b", "late"):
            visits.leave(name)
            await tasks[name]

    assert visits.came == ["in", "urgent", "a", "b", "late"]
    assert (visits.lane.busy, visits.lane.waiting) == (0, 0)


async def test_a_full_queue_turns_away_at_once() -> None:
    visits = Visits(lane_of(queue_max=1))
    async with waiting(visits, ("in", 0.5), ("a", 0.5)):
        with pytest.raises(EngineFault) as told:
            await visits.visit("b")

    assert told.value.reason == "busy"


async def test_in_a_full_queue_the_last_of_the_least_urgent_makes_room_for_who_is_more_urgent() -> None:
    visits = Visits(lane_of(queue_max=2))
    async with waiting(visits, ("in", 0.5), ("a", 0.4), ("b", 0.4), ("urgent", 0.9)) as tasks:
        with pytest.raises(EngineFault) as told:
            await tasks["b"]
        visits.leave("in")
        visits.leave("urgent")
        visits.leave("a")
        await tasks["a"]

    assert told.value.reason == "busy"
    assert visits.came == ["in", "urgent", "a"]


async def test_who_would_wait_longer_than_it_has_is_turned_away_at_once(clock: Clock) -> None:
    visits = Visits(lane_of(width=2))
    async with waiting(visits, ("a", 0.5), ("b", 0.5)) as tasks:
        clock.move(20)
        visits.leave("a")
        visits.leave("b")
        await asyncio.gather(*tasks.values())
    assert visits.lane.service_s == pytest.approx(20, abs=3)

    async with waiting(visits, ("c", 0.5), ("d", 0.5), ("e", 0.5)):
        assert visits.lane.wait_s() == pytest.approx(20, abs=3)
        assert visits.lane.wait_s(0.9) == pytest.approx(10, abs=2), "the urgent do not wait for the others"
        with pytest.raises(EngineFault) as told:
            await visits.visit("f", within_s=15)
        assert told.value.reason == "busy"
        assert visits.lane.waiting == 1


async def test_whose_deadline_comes_while_it_waits_leaves_no_place_taken(clock: Clock) -> None:
    visits = Visits(lane_of())
    async with waiting(visits, ("in", 0.5)):
        late = asyncio.create_task(visits.visit("late", within_s=10))
        await settle()
        clock.move(11)
        with pytest.raises(EngineFault) as told:
            await late
        assert visits.lane.waiting == 0

    assert told.value.reason == "busy"
    assert visits.lane.busy == 0


async def test_who_is_cancelled_in_the_moment_its_turn_comes_hands_it_on() -> None:
    visits = Visits(lane_of())
    async with waiting(visits) as tasks:
        async with visits.lane.entered(Deadline.after(LONG_S)):
            for name in ("a", "b"):
                tasks[name] = asyncio.create_task(visits.visit(name))
            await settle()
        tasks["a"].cancel()  # the place is its own since a moment ago, and it has not run yet
        visits.leave("b")
        await tasks["b"]

    assert visits.came == ["b"]
    assert visits.lane.busy == 0


async def test_who_gave_up_a_moment_ago_makes_room_without_a_word() -> None:
    visits = Visits(lane_of(queue_max=1))
    async with waiting(visits, ("in", 0.5), ("a", 0.1)) as tasks:
        tasks["urgent"] = asyncio.create_task(visits.visit("urgent", 0.9))
        tasks["a"].cancel()  # it has not run yet, and stands in the queue
        await settle()
        for name in ("in", "urgent"):
            visits.leave(name)
            await tasks[name]

    assert visits.came == ["in", "urgent"]
    assert (visits.lane.busy, visits.lane.waiting) == (0, 0)


async def test_a_lane_without_width_takes_nobody() -> None:
    with pytest.raises(EngineFault) as told:
        await Visits(lane_of(width=0)).visit("a")

    assert told.value.reason == "cannot"
    assert lane_of(width=0).wait_s() == 0


async def test_what_fails_at_once_does_not_make_an_engine_look_fast(clock: Clock) -> None:
    lane = lane_of()

    async def fail_after(seconds: float) -> None:
        async with lane.entered(Deadline.after(LONG_S)):
            clock.move(seconds)
            raise EngineFault("failed")

    async with lane.entered(Deadline.after(LONG_S)):
        clock.move(10)
    known = lane.service_s
    with pytest.raises(EngineFault):
        await fail_after(0)
    assert lane.service_s == known
    with pytest.raises(EngineFault):
        await fail_after(30)
    assert lane.service_s is not None
    assert known is not None
    assert lane.service_s > known


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 3),
    st.integers(0, 4),
    st.lists(
        st.tuples(st.sampled_from(["come", "leave", "cancel", "time"]), st.integers(0, 9), st.floats(0, 1)), max_size=40
    ),
)
def test_whatever_happens_the_lane_is_never_overfull_and_empty_in_the_end(
    width: int, queue_max: int, steps: list[tuple[str, int, float]]
) -> None:
    async def play() -> None:
        counts = Tally()
        lane = lane_of(width, queue_max, counts)
        visits = Visits(lane)
        tasks: list[asyncio.Task[None]] = []
        with virtual_time() as clock:
            for what, which, urgency in steps:
                if what == "come":
                    tasks.append(
                        asyncio.create_task(visits.visit(str(len(tasks)), urgency, within_s=LONG_S * (which + 1)))
                    )
                elif what == "leave":
                    visits.leave(str(which))
                elif what == "cancel" and which < len(tasks):
                    tasks[which].cancel()
                else:
                    clock.move(LONG_S)
                for _ in range(which % 3):
                    await asyncio.sleep(0)
                assert 0 <= lane.busy <= width
                assert lane.waiting <= queue_max
            for number in range(len(tasks)):
                visits.leave(str(number))
            ends = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(end is None or isinstance(end, (EngineFault, asyncio.CancelledError)) for end in ends)
        assert (lane.busy, lane.waiting, counts.queued) == (0, 0, 0)

    asyncio.run(play())
