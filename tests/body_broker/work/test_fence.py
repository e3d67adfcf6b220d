"""Owns the proof that every write of a run names its token: a replaced run tries each of them, and the row stays as it was."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import asyncpg
import pytest

from body_broker.calls import Json
from body_broker.errors import BadInput, Denied, InternalError, OutcomeUnknown
from body_broker.storage.postgres import LOST, Connection
from body_broker.work.ending import Backoff, perform
from body_broker.work.lease import claim, renew, sweep
from body_broker.work.model import LeaseLost
from body_broker.work.run import Run
from tests.body_broker.work.bench import Bench
from tests.waiting import wait_until

BACKOFF = Backoff(first_s=0.0, max_s=0.0)


class Broken(Exception):
    """What a handler or an effect of these tests fails with."""


class Replaced:
    """A run that lapsed, and the one that replaced it; both of one piece of work, which the second still holds."""

    def __init__(self, bench: Bench, connection: Connection, work_id: str) -> None:
        self.bench, self.connection, self.work_id = bench, connection, work_id

    async def claim(self, lease_s: float) -> Run:
        run = await claim(self.connection, self.bench.pool, ["kind"], "worker", lease_s)
        assert run is not None
        return run

    async def lapse(self) -> Run:
        """A run whose lease is over and whose work has been claimed anew; every later claim has a higher token."""
        old = await self.claim(60.0)
        await self.connection.execute("UPDATE work SET lease_until = now() - interval '1 s'")
        await sweep(self.connection)
        await self.claim(60.0)
        return old


@pytest.fixture
async def replaced(bench: Bench) -> AsyncIterator[Replaced]:
    async with bench.pool.acquire() as connection:
        yield Replaced(bench, connection, await bench.add("kind"))


async def report(run: Run) -> None:
    await run.progress(1)


async def take_a_step(run: Run) -> None:
    await run.step("effect", _outcome)


async def begin_once(run: Run) -> None:
    await run.once("effect", _never)


async def commit(run: Run) -> None:
    await run.commit("effect", _never)


async def write_fenced(run: Run) -> None:
    async with run.fenced() as connection:
        await _never(connection)


async def _outcome() -> Json:
    return "done"


async def _never(*_: Connection) -> Json:
    pytest.fail("an effect was begun by a run that had been replaced")


@pytest.mark.parametrize("write", [report, take_a_step, begin_once, commit, write_fenced], ids=lambda f: f.__name__)
async def test_a_replaced_run_is_refused_each_write_of_its_handler(
    replaced: Replaced, write: Callable[[Run], Awaitable[None]]
) -> None:
    old = await replaced.lapse()
    before = await replaced.bench.row(replaced.work_id)
    with pytest.raises(LeaseLost):
        await write(old)
    assert await replaced.bench.row(replaced.work_id) == before


async def returns(_: Run) -> Json:
    return "late"


async def raises(_: Run) -> Json:
    raise Broken


async def refuses(_: Run) -> Json:
    raise Denied("no")


async def is_cancelled(run: Run) -> Json:
    run.interrupt("cancelled")
    raise asyncio.CancelledError


async def is_stopped(run: Run) -> Json:
    run.interrupt("stopping")
    raise asyncio.CancelledError


@pytest.mark.parametrize("handler", [returns, raises, refuses, is_cancelled, is_stopped], ids=lambda f: f.__name__)
async def test_a_replaced_run_cannot_end_the_work_in_any_way(
    replaced: Replaced, handler: Callable[[Run], Awaitable[Json]]
) -> None:
    old = await replaced.lapse()
    before = await replaced.bench.row(replaced.work_id)
    await perform(old, handler, BACKOFF)
    assert await replaced.bench.row(replaced.work_id) == before


async def test_a_replaced_run_cannot_call_unknown_the_effect_that_another_is_in(replaced: Replaced) -> None:
    async def began_an_effect(run: Run) -> Json:
        run.open_effect = "effect"  # before it was replaced

    old = await replaced.lapse()
    await replaced.connection.execute("UPDATE work SET open_effect = 'effect'")  # now it is the other's
    before = await replaced.bench.row(replaced.work_id)
    await perform(old, began_an_effect, BACKOFF)
    assert await replaced.bench.row(replaced.work_id) == before


async def test_a_replaced_run_renews_nothing_and_is_interrupted(replaced: Replaced) -> None:
    old = await replaced.lapse()
    lease = "SELECT lease_until FROM work WHERE id = $1"
    before = await replaced.connection.fetchval(lease, replaced.work_id)
    await renew(replaced.connection, [old], 3600.0)
    assert old.interrupted == "lost"
    assert await replaced.connection.fetchval(lease, replaced.work_id) == before


async def test_work_that_has_expired_is_not_claimed_even_before_anybody_swept_it(bench: Bench) -> None:
    work = await bench.add("kind", expires_in_s=0.0)
    async with bench.pool.acquire() as connection:
        assert await claim(connection, bench.pool, ["kind"], "worker", 60.0) is None
    assert (await bench.row(work))["state"] == "queued"


async def test_two_claims_at_once_cannot_both_take_the_last_place_under_a_limit(bench: Bench) -> None:
    for _ in range(2):
        await bench.add("kind", limit_key="gpu", limit_max=1)
    waiting = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
    async with bench.pool.acquire() as one, bench.pool.acquire() as two:
        async with one.transaction():
            assert await claim(one, bench.pool, ["kind"], "one", 60.0) is not None
            second = asyncio.create_task(claim(two, bench.pool, ["kind"], "two", 60.0))
            await wait_until(lambda: _is_waiting(bench, second, waiting), "the second claim waits or is through")
        assert await second is None


async def _is_waiting(bench: Bench, second: asyncio.Task[Run | None], query: str) -> bool:
    return second.done() or await bench.pool.fetchval(query) > 0


async def test_a_heartbeat_does_not_wait_for_a_row_that_its_own_transaction_holds(bench: Bench) -> None:
    async with bench.pool.acquire() as connection:
        runs: list[Run] = []
        for _ in range(2):
            await bench.add("kind")
            run = await claim(connection, bench.pool, ["kind"], "worker", 5.0)
            assert run is not None
            runs.append(run)
        lease = "SELECT lease_until FROM work WHERE id = $1"
        before = [await connection.fetchval(lease, run.id) for run in runs]
        async with runs[0].fenced():
            await connection.execute("SET statement_timeout = '3s'")
            await renew(connection, runs, 60.0)
        after = [await connection.fetchval(lease, run.id) for run in runs]
    assert after[0] == before[0]
    assert after[1] > before[1]
    assert [run.interrupted for run in runs] == [None, None]


async def test_an_effect_that_fails_or_whose_outcome_is_no_json_leaves_nothing_in_the_database(
    replaced: Replaced,
) -> None:
    run = await replaced.claim(60.0)

    async def fails(connection: Connection) -> Json:
        await connection.execute("INSERT INTO effect (work) VALUES ($1)", run.id)
        raise Broken

    async def answers_nonsense(connection: Connection) -> Json:
        await connection.execute("INSERT INTO effect (work) VALUES ($1)", run.id)
        return object()

    with pytest.raises(Broken):
        await run.commit("effect", fails)
    with pytest.raises(BadInput):
        await run.commit("effect", answers_nonsense)
    assert await replaced.bench.effects(run.id) == 0
    assert (await replaced.bench.row(run.id))["steps"] is None


async def test_a_commit_whose_answer_was_lost_does_not_happen_twice_when_the_handler_repeats_it(
    replaced: Replaced,
) -> None:
    run = await replaced.claim(60.0)

    async def effect(connection: Connection) -> Json:
        await connection.execute("INSERT INTO effect (work) VALUES ($1)", run.id)

    await run.commit("effect", effect)
    forgetful = Run(run.fence, run.work)  # as after a lost connection: it does not know what was committed
    with pytest.raises(asyncpg.UniqueViolationError):
        await forgetful.commit("effect", effect)
    assert await replaced.bench.effects(run.id) == 1


async def test_recording_a_step_again_after_its_answer_was_lost_is_harmless(replaced: Replaced) -> None:
    run = await replaced.claim(60.0)
    await run.step("effect", _outcome)
    assert await Run(run.fence, run.work).step("effect", _outcome) == "done"
    assert (await replaced.bench.row(run.id))["steps"] == ["effect"]


async def test_after_an_unknown_effect_the_handler_can_begin_no_other(replaced: Replaced) -> None:
    run = await replaced.claim(60.0)

    async def fails() -> Json:
        raise Broken

    with pytest.raises(OutcomeUnknown):
        await run.once("first", fails)
    for write in (take_a_step, begin_once, commit, write_fenced):
        with pytest.raises(OutcomeUnknown):
            await write(run)
    assert (await replaced.bench.row(run.id))["open_effect"] == "first"


@pytest.mark.parametrize("state", ["queued", "succeeded", "failed", "cancelled", "waiting", "expired"])
async def test_the_database_itself_refuses_to_forget_an_open_effect(replaced: Replaced, state: str) -> None:
    run = await replaced.claim(60.0)

    async def fails() -> Json:
        raise Broken

    with pytest.raises(OutcomeUnknown):
        await run.once("effect", fails)
    ended = "NULL" if state in ("queued", "waiting") else "now()"
    with pytest.raises(asyncpg.CheckViolationError, match="work_open_effect"):
        await replaced.connection.execute(
            f"UPDATE work SET state = $2, lease_until = NULL, finished_at = {ended} WHERE id = $1",  # noqa: S608 - of two literals
            run.id,
            state,
        )


async def test_progress_inside_a_fenced_transaction_is_refused_instead_of_waiting_for_itself(
    replaced: Replaced,
) -> None:
    run = await replaced.claim(60.0)
    async with run.fenced():
        with pytest.raises(InternalError):
            await run.progress(1)
    await run.progress(1)


async def test_a_row_held_by_a_paused_transaction_is_free_again_after_its_lease(replaced: Replaced) -> None:
    run = await replaced.claim(0.2)
    taken: list[str] = []

    async def wait_for_the_row(_: Connection) -> Json:
        # Ends when the server has ended the session of the transaction in which nothing happens.
        taken.append(await replaced.connection.fetchval("SELECT id FROM work WHERE id = $1 FOR UPDATE", run.id))

    with pytest.raises((*LOST, asyncpg.PostgresError)):
        await run.commit("effect", wait_for_the_row)
    assert taken == [run.id]
    assert (await replaced.bench.row(run.id))["steps"] is None
