"""Owns the proof of what a worker does with the work it claims: order, limits, retries, cancel, expiry, schedules, losses."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any

import pytest

from body_broker.calls import Json
from body_broker.errors import BadInput, Conflict, NotFound
from body_broker.storage.postgres import Connection
from body_broker.work import queue
from body_broker.work.run import Run
from body_broker.work.schedule import Schedule, every
from body_broker.work.worker import PURGE, Worker
from tests.body_broker.work.conftest import ANNA, Bench
from tests.body_broker.work.worker_process import SECRET
from tests.waiting import wait_until

ASLEEP_S = 600.0
"""A poll so rare that only a notice or a due moment wakes the worker."""


async def test_work_is_run_as_soon_as_it_is_committed_and_its_progress_and_result_are_kept(bench: Bench) -> None:
    async with bench.worker(poll_s=ASLEEP_S):
        await bench.is_past("B")
        work = await bench.add("blocks", {"gate": "open"})
        await bench.saw(work, "B", "start")
        await wait_until(lambda: _has_progress(bench, work), "progress is published")
        running = await bench.item(work)
        await bench.open_gate("open")
        done = await bench.reaches(work, "succeeded")

    assert running.state == "running"
    assert running.progress == {"done": 1, "total": 2, "message": "waiting"}
    assert running.started_at is not None
    assert done.result == {"by": "B"}
    assert (done.attempts, done.error, done.open_effect) == (1, None, None)
    assert done.finished_at is not None


async def test_released_work_runs_once_and_waiting_work_does_not(bench: Bench) -> None:
    released, waiting = await bench.add("echoes", waiting=True), await bench.add("echoes", waiting=True)
    async with bench.worker(poll_s=ASLEEP_S):
        await bench.is_past("B")
        assert await bench.phases(released) == []
        await queue.release(bench.pool, released)
        await bench.reaches(released, "succeeded")
        await bench.is_past("B")
    assert await bench.phases(released) == [("B", "start")]
    assert (await bench.item(waiting)).state == "waiting"


async def test_the_more_urgent_work_runs_first_and_the_older_of_equals(bench: Bench) -> None:
    low, older, urgent, younger = [await bench.add("echoes", priority=n) for n in (-1, 0, 5, 0)]
    async with bench.worker(concurrency=1):
        await bench.reaches(low, "succeeded")
    order = [row["work"] for row in await bench.pool.fetch("SELECT work FROM trace ORDER BY id")]
    assert order == [urgent, older, younger, low]


async def test_delayed_work_starts_no_earlier(bench: Bench) -> None:
    async with bench.worker(poll_s=ASLEEP_S):
        await bench.is_past("B")
        item = await bench.reaches(await bench.add("echoes", delay_s=0.3), "succeeded")
    assert item.started_at is not None
    assert (item.started_at - item.created_at).total_seconds() >= 0.3


async def test_no_more_run_at_once_under_a_key_than_its_limit_over_all_workers(bench: Bench) -> None:
    given = {"gate": "open"}
    limited = [await bench.add("blocks", given, limit_key="gpu", limit_max=2, priority=1) for _ in range(6)]
    async with bench.worker("A"), bench.worker("B"):
        await wait_until(lambda: _starts(bench, "start", 2), "two have started")
        # Both workers look past the limited work, which is more urgent, to come to these.
        await bench.is_past("A")
        await bench.is_past("B")
        assert (await bench.pool.fetchval("SELECT count(*) FROM work WHERE state = 'running'")) == 2
        await bench.open_gate("open")
        for work in limited:
            await bench.reaches(work, "succeeded")
    inside = most = 0
    for row in await bench.pool.fetch("SELECT phase FROM trace WHERE work = ANY($1) ORDER BY id", limited):
        inside += 1 if row["phase"] == "start" else -1
        most = max(most, inside)
    assert most == 2


async def test_a_failing_run_is_tried_again_with_growing_pauses_and_then_has_failed(
    bench: Bench, logs: list[dict[str, Any]]
) -> None:
    async with bench.worker(backoff_s=0.2):
        work = await bench.add("fails", attempts_max=3)
        item = await bench.reaches(work, "failed")
    tries = [row["at"] for row in await bench.pool.fetch("SELECT at FROM trace WHERE work = $1 ORDER BY id", work)]
    gaps = [(b - a).total_seconds() for a, b in pairwise(tries)]
    assert len(gaps) == 2
    assert gaps[0] >= 0.2
    assert gaps[1] >= 0.4
    assert item.attempts == 3
    assert item.error["code"] == "internal"
    assert [log["event"] for log in logs if log.get("work") == work] == ["work_tried_again"] * 2 + ["work_failed"]


async def test_an_error_that_asks_for_a_longer_pause_gets_it(bench: Bench) -> None:
    async with bench.worker(backoff_s=0.0):
        work = await bench.add("is_busy", {"retry_after_s": 0.4}, attempts_max=2)
        item = await bench.reaches(work, "failed")
    first, second = [
        row["at"] for row in await bench.pool.fetch("SELECT at FROM trace WHERE work = $1 ORDER BY id", work)
    ]
    assert (second - first).total_seconds() >= 0.4
    assert (item.error["code"], item.error["retryable"]) == ("unavailable", True)


async def test_an_error_that_repeating_does_not_mend_fails_at_once(bench: Bench) -> None:
    async with bench.worker():
        item = await bench.reaches(await bench.add("refuses"), "failed")
    assert item.attempts == 1
    assert item.error["code"] == "denied"
    assert item.error["message"] == "Not this."
    assert item.error["rules"] == ["a-rule"]


@pytest.mark.parametrize("kind", ["fails", "refuses", "breaks_inside_once"])
async def test_no_exceptions_text_is_ever_stored(bench: Bench, kind: str) -> None:
    async with bench.worker():
        work = await bench.add(kind, attempts_max=1)
        await bench.reaches(work, "failed", "unknown")
    stored: str = await bench.pool.fetchval("SELECT work::text FROM work WHERE id = $1", work)
    assert "next_step" in stored
    assert SECRET not in stored
    assert "ValueError" not in stored


async def test_a_result_that_is_no_json_fails_the_work(bench: Bench) -> None:
    async def nonsense(_: Run) -> Json:
        return object()

    async with bench.worker(handlers={"nonsense": nonsense}):
        item = await bench.reaches(await bench.add("nonsense"), "failed")
    assert item.error["code"] == "bad_input"


async def test_running_work_is_interrupted_when_its_owner_cancels_it(bench: Bench) -> None:
    async with bench.worker(poll_s=ASLEEP_S):
        work = await bench.add("blocks", {"gate": "never"})
        await bench.saw(work, "B", "start")
        assert await queue.cancel(bench.pool, work, owner="person:anna") == "running"
        item = await bench.reaches(work, "cancelled")
    assert await bench.phases(work) == [("B", "start"), ("B", "interrupted")]
    assert item.result is None


async def test_a_cancel_that_no_worker_heard_is_seen_at_the_next_heartbeat(bench: Bench) -> None:
    async with bench.worker(poll_s=ASLEEP_S, lease_s=0.6):
        work = await bench.add("blocks", {"gate": "never"})
        await bench.saw(work, "B", "start")
        await bench.pool.execute("UPDATE work SET cancel_requested = true WHERE id = $1", work)
        await bench.reaches(work, "cancelled")


async def test_a_cancel_inside_a_once_effect_lets_it_end_and_records_it(bench: Bench) -> None:
    async with bench.worker(poll_s=ASLEEP_S):
        work = await bench.add("onces", {"gate_inside": "open"})
        await bench.saw(work, "B", "effect")
        await queue.cancel(bench.pool, work, owner="person:anna")
        await bench.is_past("B")  # so the worker has heard it: notices come in order
        assert (await bench.item(work)).open_effect == "send"
        await bench.open_gate("open")
        item = await bench.reaches(work, "cancelled", "unknown", "succeeded")
    assert item.state == "cancelled"
    assert (await bench.row(work))["steps"] == ["send"]
    assert await bench.effects(work) == 1


async def test_work_that_nobody_started_in_time_expires(bench: Bench) -> None:
    waiting = await bench.add("echoes", waiting=True, expires_in_s=0.3)
    queued = await bench.add("echoes", expires_in_s=0.0)
    in_time = await bench.add("echoes", expires_in_s=3600.0)
    async with bench.worker(poll_s=ASLEEP_S):
        for work in (waiting, queued):
            item = await bench.reaches(work, "expired")
            assert item.error["begun"] is False
            assert item.finished_at is not None
            assert item.expires_at is not None
            assert item.finished_at >= item.expires_at
        await bench.reaches(in_time, "succeeded")
    assert await bench.phases(waiting) == await bench.phases(queued) == []


async def test_work_that_had_begun_when_it_expired_says_so(bench: Bench) -> None:
    async with bench.worker():
        work = await bench.add("fails", expires_in_s=60.0, attempts_max=5)
        await bench.saw(work, "B", "start")
    await bench.pool.execute("UPDATE work SET expires_at = now() - interval '1 s' WHERE id = $1", work)
    async with bench.worker():
        item = await bench.reaches(work, "expired")
    assert item.error["begun"] is True


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


async def test_a_stopping_worker_lets_runs_end_within_its_grace(bench: Bench) -> None:
    async with bench.worker(grace_s=60.0) as worker:
        work = await bench.add("blocks", {"gate": "open"})
        await bench.saw(work, "B", "start")
        worker.stop()
        late = await bench.add("echoes")
        await bench.open_gate("open")
        assert (await bench.reaches(work, "succeeded", "queued")).state == "succeeded"
    assert (await bench.item(late)).state == "queued"


async def test_a_stopping_worker_hands_back_what_it_cannot_finish_without_burning_an_attempt(bench: Bench) -> None:
    async with bench.worker("A", grace_s=0.0):
        work = await bench.add("blocks", {"gate": "open"}, attempts_max=1)
        await bench.saw(work, "A", "start")
    handed_back = await bench.item(work)
    assert (handed_back.state, handed_back.attempts, handed_back.error) == ("queued", 0, None)

    async with bench.worker("B"):
        await bench.saw(work, "B", "start")
        await bench.open_gate("open")
        assert (await bench.reaches(work, "succeeded", "failed")).attempts == 1


async def test_what_is_handed_back_wakes_another_worker(bench: Bench) -> None:
    async with bench.worker("B", poll_s=ASLEEP_S, concurrency=1):
        await bench.is_past("B")
        busy = await bench.add("blocks", {"gate": "busy"})
        await bench.saw(busy, "B", "start")
        async with bench.worker("A", grace_s=0.0):
            work = await bench.add("blocks", {"gate": "open"})
            await bench.saw(work, "A", "start")
            await bench.open_gate("busy")
            await bench.is_past("B")
        await bench.saw(work, "B", "start")
        await bench.open_gate("open")
        await bench.reaches(work, "succeeded")


async def test_a_stopping_worker_brings_a_once_effect_to_its_end_before_it_hands_back(bench: Bench) -> None:
    async with bench.worker("A", grace_s=0.0) as worker:
        work = await bench.add("onces", {"gate_inside": "open"})
        await bench.saw(work, "A", "effect")
        worker.stop()
        await bench.open_gate("open")
    item = await bench.item(work)
    assert (item.state, item.attempts) == ("queued", 0)
    assert (await bench.row(work))["steps"] == ["send"]
    async with bench.worker("B"):
        assert (await bench.reaches(work, "succeeded", "unknown")).result == {"by": "B", "outcome": ["A"]}
    assert await bench.effects(work) == 1


@pytest.mark.parametrize(("kind", "state"), [("blocks", "queued"), ("onces", "unknown")])
async def test_a_worker_that_is_cancelled_leaves_the_truth_behind(bench: Bench, kind: str, state: str) -> None:
    async with bench.worker("A"):
        work = await bench.add(kind, {"gate": "never", "gate_inside": "never"})
        await bench.saw(work, "A", "effect" if kind == "onces" else "start")
        bench.tasks["A"].cancel()
        await asyncio.wait({bench.tasks["A"]})
        item = await bench.item(work)
    assert (item.state, item.attempts) == (state, 0 if state == "queued" else 1)


async def test_losing_every_connection_neither_repeats_nor_loses_a_run_and_notices_are_heard_again(
    bench: Bench,
) -> None:
    async with bench.worker(poll_s=ASLEEP_S):
        work = await bench.add("blocks", {"gate": "open"})
        await wait_until(lambda: _has_progress(bench, work), "the run is in its middle")
        await _terminate_others(bench)
        await bench.open_gate("open")
        item = await bench.reaches(work, "succeeded")
        assert (item.attempts, await bench.phases(work)) == (1, [("B", "start"), ("B", "end")])

        await wait_until(lambda: _is_listening(bench), "the worker listens again")
        await bench.is_past("B")
        await bench.is_past("B")


@pytest.mark.parametrize("effect", ["step", "once"])
async def test_an_outcome_is_recorded_although_the_connection_was_lost_in_between(bench: Bench, effect: str) -> None:
    async def loses(run: Run) -> Json:
        async def break_off() -> Json:
            await _terminate_others(bench)
            return "done"

        do: Callable[[str, Callable[[], Awaitable[Json]]], Awaitable[Json]] = getattr(run, effect)
        return await do("effect", break_off)

    async with bench.worker(handlers={"loses": loses}):
        item = await bench.reaches(await bench.add("loses"), "succeeded", "unknown", "failed")
    assert (item.state, item.result, item.attempts) == ("succeeded", "done", 1)


async def test_a_worker_whose_handlers_hold_the_whole_pool_still_renews_and_claims(bench: Bench) -> None:
    async def holds(run: Run) -> Json:
        async def wait_inside(connection: Connection) -> Json:
            await connection.execute("INSERT INTO trace (work, phase) VALUES ($1, 'inside')", run.id)
            await wait_until(lambda: _starts(bench, "third", 1), "the third run has begun", timeout_s=60)

        return await run.commit("hold", wait_inside)

    async def third(run: Run) -> Json:
        await bench.pool.execute("INSERT INTO trace (work, phase) VALUES ($1, 'third')", run.id)

    handlers = {"holds": holds, "third": third}
    async with bench.worker(handlers=handlers, concurrency=4):  # its pool has two connections
        works = [await bench.add("holds"), await bench.add("holds"), await bench.add("third")]
        for work in works:
            assert (await bench.reaches(work, "succeeded", "failed")).attempts == 1


async def test_a_person_settles_what_is_unknown(bench: Bench) -> None:
    async with bench.worker():
        happened, did_not, again = [await bench.add("breaks_inside_once", {"n": n}) for n in range(3)]
        for work in (happened, did_not, again):
            item = await bench.reaches(work, "unknown", "failed")
            assert (item.state, item.open_effect, item.finished_at) == ("unknown", "send", None)
            assert item.error["code"] == "outcome_unknown"

        settled = {"by": "person:boris", "note": "seen in the far side's log"}
        await queue.settle(bench.pool, happened, verdict="succeeded", result={"sent": 1}, **settled)
        await queue.settle(bench.pool, did_not, verdict="failed", **settled)
        assert await queue.settle(bench.pool, again, verdict="again", **settled) == "queued"
        repeated = await bench.reaches(again, "succeeded", "failed", "unknown")

    item = await bench.item(happened)
    assert (item.state, item.result, item.error, item.open_effect) == ("succeeded", {"sent": 1}, None, None)
    assert item.verdicts == [settled | {"verdict": "succeeded", "effect": "send", "at": item.verdicts[0]["at"]}]
    assert (await bench.item(did_not)).state == "failed"
    assert (repeated.state, repeated.attempts, await bench.effects(again)) == ("succeeded", 2, 2)
    assert [v["verdict"] for v in repeated.verdicts] == ["again"]
    assert await bench.effects(happened) == await bench.effects(did_not) == 1


async def test_only_a_named_person_settles_only_the_unknown_and_says_why(bench: Bench) -> None:
    work = await bench.add("nobody's")
    with pytest.raises(Conflict):
        await queue.settle(bench.pool, work, by="person:boris", verdict="failed", note="why")
    with pytest.raises(NotFound):
        await queue.settle(bench.pool, "job_unknown", by="person:boris", verdict="failed", note="why")
    for by in ("tier:silver", "service:game", "boris", ""):
        with pytest.raises(BadInput):
            await queue.settle(bench.pool, work, by=by, verdict="failed", note="why")
    with pytest.raises(BadInput):
        await queue.settle(bench.pool, work, by="person:boris", verdict="failed", note=" \x00")
    assert (await bench.item(work)).owner == ANNA.asker


async def _has_progress(bench: Bench, work: str) -> bool:
    return (await bench.item(work)).progress is not None


async def _starts(bench: Bench, phase: str, count: int) -> bool:
    return await bench.pool.fetchval("SELECT count(*) FROM trace WHERE phase = $1", phase) >= count


async def _is_gone(bench: Bench, work: str) -> bool:
    return not await bench.pool.fetchval("SELECT count(*) FROM work WHERE id = $1", work)


async def _terminate_others(bench: Bench) -> None:
    await bench.pool.fetch(
        """SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity
           WHERE datname = current_database() AND pid <> pg_backend_pid()"""
    )


async def _is_listening(bench: Bench) -> bool:
    return bool(
        await bench.pool.fetchval(
            """SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()
               AND application_name LIKE 'body-broker worker%' AND state = 'idle'"""
        )
    )
