"""Owns the proof that a worker lives through the loss of its connections and a pool that its handlers use up."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import datetime

import pytest

from body_broker.calls import Json
from body_broker.work.run import Run
from tests.body_broker.work.bench import ASLEEP_S, WORKERS, Bench
from tests.waiting import wait_until


async def test_losing_every_connection_neither_repeats_nor_loses_a_run_and_notices_are_heard_again(
    bench: Bench,
) -> None:
    async with bench.worker(poll_s=ASLEEP_S) as worker:
        work = await bench.add("blocks", {"gate": "open"})
        await bench.waits(work)
        await _terminate_workers_connections(bench)
        await bench.open_gate("open")
        item = await bench.reaches(work, "succeeded")
        assert (item.attempts, await bench.phases(work)) == (1, [("B", "start"), ("B", "end")])

        await wait_until(lambda: _is_listening(bench), "the worker listens again")
        await bench.is_past("B")
        await bench.falls_asleep(worker)
        await bench.is_past("B")


async def test_a_worker_that_stood_still_goes_on_with_what_nobody_took_from_it(bench: Bench) -> None:
    async with bench.worker_at_rest(poll_s=0.0) as worker:
        work = await bench.add("blocks", {"gate": "open"})
        await worker._look()  # pyright: ignore[reportPrivateUsage]  # between two looks, and nowhere else
        await bench.waits(work)
        await bench.pool.execute("UPDATE work SET lease_until = now() - interval '1 s' WHERE id = $1", work)
        await worker._look()  # pyright: ignore[reportPrivateUsage]
        await bench.open_gate("open")
        item = await bench.reaches(work, "succeeded")
        worker.stop()
        await worker.run()
    assert (item.attempts, await bench.phases(work)) == (1, [("B", "start"), ("B", "end")])


@pytest.mark.parametrize("effect", ["step", "once"])
async def test_an_outcome_whose_recording_was_cut_off_is_recorded_again(bench: Bench, effect: str) -> None:
    begun: list[Run] = []
    held: list[str] = []

    async def records(run: Run) -> Json:
        async def happen() -> Json:
            begun.append(run)
            await wait_until(lambda: held, "the test holds the row")
            return "done"

        do: Callable[[str, Callable[[], Awaitable[Json]]], Awaitable[Json]] = getattr(run, effect)
        return await do("effect", happen)

    async with bench.worker(handlers={"records": records}):
        work = await bench.add("records")
        await wait_until(lambda: begun, "the effect happens")
        async with bench.pool.acquire() as holding, holding.transaction():
            held.append(await holding.fetchval("SELECT id FROM work WHERE id = $1 FOR UPDATE", work))
            await wait_until(lambda: _cut_off_who_waits(bench), "the recording waits for the row, and is cut off")
        item = await bench.reaches(work, "succeeded", "unknown", "failed")
    assert (item.state, item.result, item.attempts, len(begun)) == ("succeeded", "done", 1, 1)


async def test_a_worker_whose_handlers_hold_the_whole_pool_still_claims_and_renews(bench: Bench) -> None:
    async def holds(run: Run) -> Json:
        async with run.fence.pool.acquire():  # of two connections
            await bench.pool.execute("INSERT INTO trace (work, phase) VALUES ($1, 'holds')", run.id)
            await wait_until(lambda: _starts(bench, "claimed", 1), "a third run has begun")
            lease: datetime = await bench.pool.fetchval(_LEASE, run.id)
            await wait_until(lambda: _is_renewed(bench, run.id, lease), "the lease is renewed")

    async def third(run: Run) -> Json:
        await bench.pool.execute("INSERT INTO trace (work, phase) VALUES ($1, 'claimed')", run.id)

    async with bench.worker(handlers={"holds": holds, "third": third}, lease_s=0.9):
        works = [await bench.add("holds"), await bench.add("holds")]
        await wait_until(lambda: _starts(bench, "holds", 2), "both connections are held")
        works.append(await bench.add("third"))
        for work in works:
            await bench.reaches(work, "succeeded")


async def _starts(bench: Bench, phase: str, count: int) -> bool:
    return await bench.pool.fetchval("SELECT count(*) FROM trace WHERE phase = $1", phase) >= count


_LEASE = "SELECT lease_until FROM work WHERE id = $1"


async def _is_renewed(bench: Bench, work: str, lease: datetime) -> bool:
    return await bench.pool.fetchval(_LEASE, work) > lease


async def _terminate_workers_connections(bench: Bench) -> None:
    ended = await bench.pool.fetch(
        """SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity
           WHERE datname = current_database() AND application_name LIKE 'body-broker worker%'"""
    )
    assert len(ended) >= 2


async def _cut_off_who_waits(bench: Bench) -> bool:
    ended = await bench.pool.fetch(
        """SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity
           WHERE datname = current_database() AND application_name = $1 AND wait_event_type = 'Lock'""",
        WORKERS,
    )
    return len(ended) > 0


async def _is_listening(bench: Bench) -> bool:
    return bool(
        await bench.pool.fetchval(
            """SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()
               AND application_name = 'body-broker worker B' AND state = 'idle'"""
        )
    )
