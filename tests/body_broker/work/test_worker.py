"""Owns the proof of what a worker does with the work it claims: order, limits, retries, cancel, expiry, schedules, losses."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest

from body_broker.calls import Json
from body_broker.work import queue
from body_broker.work.run import Run
from tests.body_broker.work.bench import ASLEEP_S, Bench
from tests.body_broker.work.worker_process import SECRET
from tests.waiting import wait_until


async def test_work_is_run_as_soon_as_it_is_committed_and_its_progress_and_result_are_kept(bench: Bench) -> None:
    async with bench.worker(poll_s=ASLEEP_S) as worker:
        await bench.is_past("B")
        await bench.falls_asleep(worker)
        work = await bench.add("blocks", {"gate": "open"})
        await bench.waits(work)
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
    async with bench.worker(poll_s=ASLEEP_S) as worker:
        await bench.is_past("B")
        assert await bench.phases(released) == []
        await bench.falls_asleep(worker)
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


async def test_long_work_leaves_one_place_to_the_others_and_goes_on_when_it_has_one_again(bench: Bench) -> None:
    long = [await bench.add("blocks", {"gate": "long"}, priority=9) for _ in range(3)]
    async with bench.worker(concurrency=3, long_kinds=("blocks",)):
        for each in long[:2]:
            await bench.waits(each)
        await bench.reaches(await bench.add("echoes"), "succeeded")
        assert (await bench.item(long[2])).state == "queued"
        await bench.open_gate("long")
        for each in long:
            await bench.reaches(each, "succeeded")


async def test_where_there_is_one_place_long_work_has_it_too(bench: Bench) -> None:
    async with bench.worker(concurrency=1, long_kinds=("echoes",)):
        await bench.reaches(await bench.add("echoes"), "succeeded")


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
        # Beside them a worker's own purge may be running.
        assert (
            await bench.pool.fetchval("SELECT count(*) FROM work WHERE state = 'running' AND id = ANY($1)", limited)
        ) == 2
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


async def test_an_error_that_asks_for_a_longer_pause_gets_it(bench: Bench, logs: list[dict[str, Any]]) -> None:
    async with bench.worker(backoff_s=0.0):
        work = await bench.add("is_busy", {"retry_after_s": 0.4}, attempts_max=2)
        item = await bench.reaches(work, "failed")
    first, second = [
        row["at"] for row in await bench.pool.fetch("SELECT at FROM trace WHERE work = $1 ORDER BY id", work)
    ]
    assert (second - first).total_seconds() >= 0.4
    assert (item.error["code"], item.error["retryable"]) == ("unavailable", True)
    told = [(log["error"], "exc_info" in log) for log in logs if log.get("work") == work]
    assert told == [("Not now.", False)] * 2, "what was foreseen is logged in words, without where it was raised"


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
    async with bench.worker(poll_s=ASLEEP_S, lease_s=ASLEEP_S) as worker:
        work = await bench.add("blocks", {"gate": "never"})
        await bench.waits(work)
        await bench.falls_asleep(worker, running=1)
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


async def _starts(bench: Bench, phase: str, count: int) -> bool:
    return await bench.pool.fetchval("SELECT count(*) FROM trace WHERE phase = $1", phase) >= count
