"""Owns the proof that work can wait without a worker: laid down and woken, no waking lost, its steps kept, no attempt used up."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from body_broker.calls import Json
from body_broker.storage.postgres import Connection
from body_broker.text import new_id
from body_broker.work import lease, queue
from body_broker.work.ending import Backoff, perform
from body_broker.work.parking import Park
from body_broker.work.run import Run
from tests.body_broker.work.bench import ANNA, ASLEEP_S, Bench
from tests.waiting import wait_until

KEY = "expert:job_1"
LATER_S = 600.0
APPROVAL = """
INSERT INTO approval (id, digest, tool, server, definition, arguments, chain, asker, requester, sessions, tainted, depth, history,
    requirements, effect, destructive, headline, notify, receipt_writer, receipt_sequence, expires_at)
VALUES ($1, repeat('a', 64), 'reindex', 'rag', 'd', '{}', '{person:anna}', 'person:anna', 'person:anna', '{s}', false, 0, '{}',
    '[]', 'repeatable', false, 'Index anew', false, 'w', 1, clock_timestamp() + interval '1 h')
"""
DENY = "UPDATE approval SET state = 'denied', decided_at = now(), ended_at = now() WHERE id = $1"


class Asks:
    """A handler that asks, waits for what it asked, and ends once it has come.

    Attributes:
        times: How often it lies down before it ends.
        asked: How often it really asked: an effect that a recorded step keeps from being repeated.
    """

    def __init__(self, key: str = KEY, *, times: int = 1, wake_in_s: float | None = LATER_S) -> None:
        self.key, self.times, self.wake_in_s = key, times, wake_in_s
        self.runs = self.asked = 0

    async def __call__(self, run: Run) -> Json:
        self.runs += 1

        async def ask() -> Json:
            self.asked += 1
            return {"asked": self.key}

        said = await run.step("ask", ask)
        if self.runs <= self.times:
            raise Park(self.key, wake_in_s=self.wake_in_s, message="waiting for an answer")
        return said


async def claimed(bench: Bench, kind: str = "asks") -> Run:
    async with bench.pool.acquire() as connection:
        run = await lease.claim(connection, bench.pool, [kind], "A", 30.0)
    assert run is not None
    return run


async def performed(bench: Bench, handler: Any, run: Run | None = None) -> str:
    """What became of one run; the work's state."""
    run = run or await claimed(bench)
    await run.begin(perform(run, handler, Backoff(60.0, 60.0)))
    return (await bench.item(run.id)).state


async def parked(bench: Bench, handler: Asks | None = None, **options: Any) -> str:
    work = await bench.add("asks", **options)
    assert await performed(bench, handler or Asks()) == "waiting"
    return work


async def sweep(bench: Bench) -> None:
    async with bench.pool.acquire() as connection:
        await lease.sweep(connection)


async def approval(bench: Bench) -> str:
    made = new_id("apr")
    await bench.pool.execute(APPROVAL, made)
    return made


async def test_parked_work_holds_no_worker_and_no_place_and_goes_on_with_its_steps(bench: Bench) -> None:
    handler = Asks()
    async with bench.worker(poll_s=ASLEEP_S, concurrency=1, handlers={"asks": handler}) as worker:
        work = await bench.add("asks", limit_key="gpu")
        waiting = await bench.reaches(work, "waiting")
        other = await bench.add("echoes", limit_key="gpu")
        await bench.reaches(other, "succeeded")
        await bench.falls_asleep(worker)  # only the notice of its waking finds it
        assert await queue.wake(bench.pool, KEY) == 1
        done = await bench.reaches(work, "succeeded")

    assert (waiting.waits_for, waiting.attempts, waiting.progress["message"]) == (KEY, 0, "waiting for an answer")
    assert (handler.runs, handler.asked, done.result) == (2, 1, {"asked": KEY})
    assert (done.attempts, done.waits_for, done.error) == (1, None, None)
    assert await queue.wake(bench.pool, KEY) == 0


async def test_it_is_shown_with_what_it_waits_for(bench: Bench) -> None:
    work = await parked(bench)
    (listed,) = (await queue.list_newest(bench.pool, owner=ANNA.asker)).items
    assert (listed.id, listed.state, listed.waits_for) == (work, "waiting", KEY)


async def test_everybody_who_waits_for_a_key_is_woken_and_nobody_else(bench: Bench) -> None:
    mine = [await parked(bench), await parked(bench)]
    other = await parked(bench, Asks("expert:job_2"))
    unreleased = await bench.add("asks", waiting=True)
    assert await queue.wake(bench.pool, KEY) == 2
    assert [(await bench.item(work)).state for work in (*mine, other, unreleased)] == [
        *["queued", "queued"],
        *["waiting", "waiting"],
    ]


async def test_a_waking_happens_if_and_only_if_its_transaction_commits(bench: Bench) -> None:
    work = await parked(bench)
    async with bench.pool.acquire() as connection:
        undone = connection.transaction()
        await undone.start()
        assert await queue.wake(connection, KEY) == 1
        await undone.rollback()
    assert (await bench.item(work)).state == "waiting"


async def test_what_is_over_before_it_lies_down_is_not_waited_for(bench: Bench) -> None:
    asked = await approval(bench)
    await bench.pool.execute(DENY, asked)
    work = await bench.add("asks")
    assert await performed(bench, Asks(asked, wake_in_s=None)) == "queued"
    item = await bench.item(work)
    assert (item.attempts, item.waits_for) == (0, None)


async def test_an_approval_that_is_gone_is_not_waited_for(bench: Bench) -> None:
    await bench.add("asks")
    assert await performed(bench, Asks(new_id("apr"), wake_in_s=None)) == "queued"


async def test_no_waking_is_lost_between_looking_and_lying_down(bench: Bench) -> None:
    asked = await approval(bench)
    work = await bench.add("asks")
    run = await claimed(bench)
    async with _open(bench) as deciding:
        await deciding.execute(DENY, asked)
        lying_down = asyncio.create_task(performed(bench, Asks(asked, wake_in_s=None), run))
        await _is_held_up(bench)
        assert (await bench.item(work)).state == "running"
    assert await lying_down == "queued"  # it waited for the decision, and saw it


async def test_no_waking_is_lost_that_comes_while_it_lies_down(bench: Bench) -> None:
    asked = await approval(bench)
    work = await bench.add("asks")
    run = await claimed(bench)
    async with _open(bench) as lying_down:
        await lying_down.fetchval("SELECT work_park($1, $2::bigint, $3, NULL, NULL)", work, run.fence.token, asked)
        deciding = asyncio.create_task(bench.pool.execute(DENY, asked))
        await _is_held_up(bench)
    await deciding
    assert (await bench.item(work)).state == "queued"


async def test_cancelled_while_it_waits_it_never_goes_on_and_says_what_it_waited_for(bench: Bench) -> None:
    work = await parked(bench)
    assert await queue.cancel(bench.pool, work, owner=ANNA.asker) == "cancelled"
    assert await queue.wake(bench.pool, KEY) == 0
    item = await bench.item(work)
    assert (item.state, item.waits_for) == ("cancelled", KEY)


async def test_whose_owner_wants_it_stopped_does_not_lie_down(bench: Bench) -> None:
    work = await bench.add("asks")
    run = await claimed(bench)
    assert await queue.cancel(bench.pool, work, owner=ANNA.asker) == "running"
    assert await performed(bench, Asks(), run) == "cancelled"
    assert (await bench.item(work)).finished_at is not None


async def test_it_expires_while_it_waits(bench: Bench) -> None:
    work = await parked(bench, expires_in_s=60.0)
    await bench.pool.execute("UPDATE work SET expires_at = now() - interval '1 s' WHERE id = $1", work)
    await sweep(bench)
    item = await bench.item(work)
    assert (item.state, item.waits_for, item.error["begun"]) == ("expired", KEY, True)
    assert await queue.wake(bench.pool, KEY) == 0


async def test_expired_and_woken_at_the_same_moment_it_does_not_run(bench: Bench) -> None:
    work = await parked(bench, expires_in_s=60.0)
    await bench.pool.execute("UPDATE work SET expires_at = now() - interval '1 s' WHERE id = $1", work)
    assert await queue.wake(bench.pool, KEY) == 1
    async with bench.pool.acquire() as connection:
        assert await lease.claim(connection, bench.pool, ["asks"], "A", 30.0) is None
    await sweep(bench)
    assert (await bench.item(work)).state == "expired"


async def test_it_looks_again_in_its_time_though_nobody_wakes_it(bench: Bench) -> None:
    handler = Asks(wake_in_s=0.2)
    async with bench.worker(poll_s=ASLEEP_S, handlers={"asks": handler}):
        item = await bench.reaches(await bench.add("asks"), "succeeded")
    assert (handler.runs, item.attempts) == (2, 1)


async def test_its_time_is_a_moment_that_workers_wait_for(bench: Bench) -> None:
    work = await parked(bench)
    async with bench.pool.acquire() as connection:
        moment = await lease.next_moment_s(connection, ["another kind"])
        assert moment is not None
        assert 0 < moment <= LATER_S
        await lease.sweep(connection)
        assert (await bench.item(work)).state == "waiting"
        await connection.execute("UPDATE work SET wake_at = now() WHERE id = $1", work)
        await lease.sweep(connection)
    item = await bench.item(work)
    assert (item.state, item.waits_for, item.run_at) == ("queued", None, item.created_at)


async def test_a_worker_that_was_replaced_lays_nothing_down(bench: Bench, logs: list[dict[str, Any]]) -> None:
    work = await bench.add("asks")
    paused = await claimed(bench)
    await bench.pool.execute("UPDATE work SET lease_until = now() - interval '1 s' WHERE id = $1", work)
    await sweep(bench)
    await claimed(bench)
    before = await bench.row(work)

    async def handler(_run: Run) -> Json:
        raise Park(KEY, wake_in_s=LATER_S)

    assert await performed(bench, handler, paused) == "running"
    assert await bench.row(work) == before
    assert "work_taken_over" in [log["event"] for log in logs]
    assert await queue.wake(bench.pool, KEY) == 0


async def test_lying_down_uses_up_no_attempt(bench: Bench) -> None:
    work, handler = await bench.add("asks", attempts_max=1), Asks(times=3)
    for _ in range(3):
        assert await performed(bench, handler) == "waiting"
        await queue.wake(bench.pool, KEY)
    assert await performed(bench, handler) == "succeeded"
    assert (await bench.item(work)).attempts == 1
    assert handler.asked == 1


async def test_woken_it_comes_before_what_was_asked_for_later_and_after_what_is_more_urgent(bench: Bench) -> None:
    first = await parked(bench)
    second, urgent = await bench.add("asks"), await bench.add("asks", priority=5)
    await queue.wake(bench.pool, KEY)
    assert [(await claimed(bench)).id for _ in range(3)] == [urgent, first, second]


async def test_released_it_goes_on_too(bench: Bench) -> None:
    work = await parked(bench)
    assert await queue.release(bench.pool, work)
    item = await bench.item(work)
    assert (item.state, item.waits_for) == ("queued", None)


async def test_its_message_leaves_how_far_it_was(bench: Bench) -> None:
    async def handler(run: Run) -> Json:
        await run.progress(3, 8, "asking")
        raise Park(KEY, wake_in_s=LATER_S, message=run.input["says"])

    for says in ("waiting", None):
        work = await bench.add("asks", {"says": says})
        assert await performed(bench, handler) == "waiting"
        assert (await bench.item(work)).progress == {"done": 3, "total": 8, "message": says or "asking"}


async def test_parked_inside_an_effect_that_is_never_repeated_it_is_unknown(bench: Bench) -> None:
    async def handler(run: Run) -> Json:
        async def effect() -> Json:
            raise Park(KEY, wake_in_s=LATER_S)

        return await run.once("send", effect)

    work = await bench.add("asks")
    assert await performed(bench, handler) == "unknown"
    assert (await bench.item(work)).open_effect == "send"


async def test_whoever_is_woken_by_name_looks_again_by_itself() -> None:
    with pytest.raises(AssertionError, match="look again"):
        Park(KEY)
    assert Park(new_id("apr")).wake_in_s is None


async def test_a_place_in_the_queue_counts_what_begins_before(bench: Bench) -> None:
    first, urgent, last = [await bench.add("asks", limit_key="gpu", priority=n) for n in (0, 5, 0)]
    later = await bench.add("asks", limit_key="gpu", priority=9, delay_s=60.0)
    await bench.add("asks", limit_key="gpu", priority=9, expires_in_s=0.0)
    await bench.add("asks", limit_key="another", priority=9)
    free = await bench.add("asks", priority=9)
    places = [await queue.position(bench.pool, work) for work in (urgent, first, last, later, free, "job_unknown")]
    assert places == [0, 1, 2, 3, None, None]

    await queue.cancel(bench.pool, urgent, owner=ANNA.asker)
    assert [await queue.position(bench.pool, work) for work in (urgent, first, last)] == [None, 0, 1]


async def test_a_run_knows_when_its_work_was_asked_for_and_ends(bench: Bench) -> None:
    work = await bench.add("asks", expires_in_s=60.0)
    run, item = await claimed(bench), await bench.item(work)
    assert (run.work.created_at, run.work.expires_at) == (item.created_at, item.expires_at)


@asynccontextmanager
async def _open(bench: Bench) -> AsyncGenerator[Connection]:
    async with bench.pool.acquire() as connection, connection.transaction():
        yield connection


async def _is_held_up(bench: Bench) -> None:
    async def held_up() -> bool:
        return await bench.pool.fetchval(
            "SELECT EXISTS (SELECT FROM pg_locks l JOIN pg_database d ON d.oid = l.database"
            " WHERE d.datname = current_database() AND l.locktype = 'advisory' AND NOT l.granted)"
        )

    await wait_until(held_up, "one waits for the other")
