"""Owns the proof that each slot of a schedule runs once, and that the built-in one purges what is old."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from body_broker.work import queue
from body_broker.work.schedule import Schedule, every
from body_broker.work.worker import PURGE, Worker
from tests.body_broker.work.bench import Bench
from tests.waiting import wait_until


async def test_each_slot_of_a_schedule_runs_once_over_workers_and_restarts(bench: Bench) -> None:
    now: datetime = await bench.pool.fetchval("SELECT now()")
    slots = [datetime.fromtimestamp(0, UTC)]  # long missed: beyond the grace
    schedule = Schedule(name="tick", kind="echoes", owner="service:tick", slot=lambda _: slots[-1], grace_s=600)

    async def ticks(count: int) -> None:
        async with bench.worker("A", schedules=[schedule]), bench.worker("B", schedules=[schedule]):
            for name in "ABAB":
                await bench.is_past(name)
            done = await queue.list_newest(bench.pool, owner="service:tick")
            assert len(done.items) == count
            for item in done.items:
                assert (await bench.reaches(item.id, "succeeded")).attempts == 1

    await ticks(0)
    slots.append(now)
    await ticks(1)
    await ticks(1)
    slots.append(every(1)(now))
    await ticks(2)
    inputs = [(await bench.item(i.id)).input for i in (await queue.list_newest(bench.pool, owner="service:tick")).items]
    assert inputs == [{"slot": slot.isoformat()} for slot in reversed(slots[1:])]


def test_a_schedule_whose_purged_slot_would_run_again_is_refused(database_url: str) -> None:
    schedule = Schedule(name="tick", kind="tick", owner="service:tick", slot=every(60), grace_s=7200)
    with pytest.raises(AssertionError, match="purged slot"):
        Worker(None, {}, database_url=database_url, schedules=[schedule], retention_s=7200)  # pyright: ignore[reportArgumentType]  # not reached


def test_slots_are_multiples_of_the_period() -> None:
    slot = every(3600)
    assert slot(datetime(2026, 1, 2, 3, 59, 59, tzinfo=UTC)) == datetime(2026, 1, 2, 3, tzinfo=UTC)
    assert slot(datetime(2026, 1, 2, 4, tzinfo=UTC)) == datetime(2026, 1, 2, 4, tzinfo=UTC)


async def test_the_built_in_schedule_purges_what_is_older_than_the_retention(bench: Bench) -> None:
    old = await bench.add("echoes")
    unsettled = await bench.add("breaks_inside_once")
    async with bench.worker():
        await bench.reaches(old, "succeeded")
        await bench.reaches(unsettled, "unknown")
    await bench.pool.execute("DELETE FROM work WHERE kind = $1", PURGE)  # this hour's was done
    await bench.pool.execute(
        "UPDATE work SET created_at = now() - interval '90 d', finished_at = finished_at - interval '8 d'"
    )

    async with bench.worker():
        await wait_until(lambda: _is_gone(bench, old), "the old work is purged")
    assert (await bench.item(unsettled)).state == "unknown"


async def _is_gone(bench: Bench, work: str) -> bool:
    return not await bench.pool.fetchval("SELECT count(*) FROM work WHERE id = $1", work)
