"""The executor: nothing twice, nothing told otherwise than it happened, whatever stops it on the way."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

import pytest

from approvals.desk import Desk
from approvals.executor import Executor, Perform
from approvals.model import WORK_KIND, Approval
from body_broker.calls import Caller, Effect, Json, Progress
from body_broker.errors import (
    BadInput,
    BodyBrokerError,
    Conflict,
    DeadlineExceeded,
    Denied,
    InternalError,
    NotConfigured,
    NotFound,
    RateLimited,
    Unauthenticated,
    Unavailable,
    UnknownTool,
)
from body_broker.storage.postgres import Pool
from body_broker.work import lease
from body_broker.work.ending import Backoff, perform
from body_broker.work.worker import Worker
from policies.decision import Approval as Given
from policies.engine import Policy
from tests.approvals.scene import subject, yes
from tests.waiting import wait_until

REFUSALS = (BadInput, Conflict, Denied, NotConfigured, NotFound)
PASSING = (Unavailable, DeadlineExceeded, RateLimited)


@dataclass
class Gate:
    """Stands where the hub's gate stands: says who may, and does the deed."""

    refuses: BodyBrokerError | None = None
    raises: list[Exception] = field(default_factory=list[Exception])
    done: int = 0
    asked: int = 0
    resumed: int = 0
    gone: BodyBrokerError | None = None
    given: Given | None = None
    holds: asyncio.Event | None = None
    begun: asyncio.Event = field(default_factory=asyncio.Event)
    result: Json = "done"

    async def standing(
        self, chain: Sequence[str], sessions: Sequence[str], since: datetime, tokens: Sequence[str]
    ) -> Caller:
        assert (since.tzinfo, tokens) == (UTC, ("tok_of-bronze",))
        return Caller(tuple(chain), {}, sessions[0])

    async def authorise(self, approval: Approval, caller: Caller, given: Given, /) -> Perform:
        assert caller.requester == approval.requester
        self.asked, self.given = self.asked + 1, given
        if self.refuses is not None:
            raise self.refuses
        return self.performing()

    async def resume(self, approval: Approval, /) -> Perform:
        assert approval.standing == "executing"
        self.resumed += 1
        if self.gone is not None:
            raise self.gone
        return self.performing()

    def performing(self) -> Perform:
        async def perform(progress: Progress) -> Json:
            await progress(1, 2, "half way")
            self.begun.set()
            if self.holds is not None:
                await self.holds.wait()
            if self.raises:
                raise self.raises.pop(0)
            self.done += 1
            return {"result": self.result, "outside": False}

        return perform


@dataclass
class Bench:
    """A desk, its executor's gate, and workers."""

    desk: Desk
    policy: Policy
    database_url: str
    gate: Gate

    async def approve(self, effect: Effect) -> Approval:
        tool = "publish" if effect == "once" else "ingest"
        found = await yes(
            self.desk, (await self.desk.ask(replace(subject(self.policy, tool), tokens=("tok_of-bronze",)))).approval
        )
        assert (found.standing, found.effect) == ("approved", effect)
        return found

    @asynccontextmanager
    async def laboring(self) -> AsyncGenerator[Worker]:
        executor = Executor(self.desk, self.gate.standing, self.gate.authorise, self.gate.resume)
        worker = Worker(
            self.desk.pool, executor.handlers(), database_url=self.database_url, backoff_s=0.01, grace_s=0.05
        )
        task = asyncio.create_task(worker.run())
        try:
            yield worker
        finally:
            worker.stop()
            await task

    async def ends(self, approval: Approval) -> Approval:
        async def find() -> Approval | None:
            found = await self.desk.get(approval.id)
            return found if found.standing not in {"approved", "executing"} else None

        found = await wait_until(find, "it ends")
        assert found is not None
        return found


@pytest.fixture
def bench(desk: Desk, policy: Policy, database_url: str) -> Bench:
    return Bench(desk, policy, database_url, Gate())


@pytest.mark.parametrize("effect", ["once", "repeatable"])
async def test_what_was_approved_is_done_once_with_the_yes_that_was_given(bench: Bench, effect: Effect) -> None:
    approval = await bench.approve(effect)
    async with bench.laboring():
        found = await bench.ends(approval)
    assert (found.standing, found.result) == ("done", {"result": "done", "outside": False})
    assert bench.gate.given == Given(frozenset({"slack"}), 1, frozenset({"sre"}))
    assert (bench.gate.done, bench.gate.asked) == (1, 1)


@pytest.mark.parametrize("effect", ["once", "repeatable"])
@pytest.mark.parametrize("kind", [*REFUSALS, Unauthenticated])
async def test_what_refuses_it_now_ends_it_before_anything_is_done(
    bench: Bench,
    kind: type[BodyBrokerError],
    effect: Effect,
) -> None:
    bench.gate.refuses = kind("No more.")
    approval = await bench.approve(effect)
    async with bench.laboring():
        found = await bench.ends(approval)
    assert (found.standing, found.error["code"], bench.gate.done) == ("failed", kind.code, 0)


@pytest.mark.parametrize("kind", PASSING)
async def test_what_may_be_repeated_is_tried_again_after_what_passes(
    bench: Bench,
    kind: type[BodyBrokerError],
) -> None:
    bench.gate.raises = [kind("Later."), kind("Later.")]
    approval = await bench.approve("repeatable")
    async with bench.laboring():
        assert (await bench.ends(approval)).standing == "done"
    assert (bench.gate.asked, bench.gate.resumed, bench.gate.done) == (1, 2, 1)


@pytest.mark.parametrize("kind", REFUSALS)
async def test_what_does_not_pass_ends_what_may_be_repeated_at_once(
    bench: Bench,
    kind: type[BodyBrokerError],
) -> None:
    bench.gate.raises = [kind("Never.")]
    approval = await bench.approve("repeatable")
    async with bench.laboring():
        found = await bench.ends(approval)
    assert (found.standing, found.error["code"], bench.gate.asked) == ("failed", kind.code, 1)


@pytest.mark.parametrize("kind", REFUSALS)
async def test_a_once_effect_that_answers_that_it_did_nothing_has_failed(
    bench: Bench,
    kind: type[BodyBrokerError],
) -> None:
    bench.gate.raises = [kind("Nothing was done.")]
    approval = await bench.approve("once")
    async with bench.laboring():
        found = await bench.ends(approval)
    assert (found.standing, found.error["code"]) == ("failed", kind.code)
    assert found.error["message"] == "Nothing was done."


@pytest.mark.parametrize("kind", [*PASSING, InternalError])
async def test_a_once_effect_that_breaks_off_is_unknown_and_never_tried_again(
    bench: Bench,
    kind: type[BodyBrokerError],
) -> None:
    bench.gate.raises = [kind("Broken off.")]
    approval = await bench.approve("once")
    async with bench.laboring():
        assert (await bench.ends(approval)).standing == "unknown"
    assert bench.gate.asked == 1


@pytest.mark.parametrize("effect", ["once", "repeatable"])
async def test_an_effect_that_is_taken_back_while_it_is_done_is_told_as_done(bench: Bench, effect: Effect) -> None:
    bench.gate.holds = asyncio.Event()
    approval = await bench.approve(effect)
    async with bench.laboring():
        await bench.gate.begun.wait()
        await bench.desk.cancel(approval.id, caller=Caller(approval.chain, {}, "s"))
        bench.gate.holds.set()
        assert (await bench.ends(approval)).standing == "done"
    assert bench.gate.done == 1


async def test_a_worker_that_stops_leaves_what_it_had_not_finished_to_the_next(bench: Bench) -> None:
    bench.gate.holds = asyncio.Event()
    approval = await bench.approve("repeatable")
    async with bench.laboring():
        await bench.gate.begun.wait()
    assert ((await bench.desk.get(approval.id)).standing, bench.gate.done) == ("executing", 0)
    bench.gate.holds.set()
    async with bench.laboring():
        assert (await bench.ends(approval)).standing == "done"
    assert (bench.gate.asked, bench.gate.resumed, bench.gate.done) == (1, 1, 1)


async def test_what_has_happened_is_told_and_not_decided_again(bench: Bench, pool: Pool) -> None:
    bench.gate.refuses = Denied("Not any more.")
    approval = await bench.approve("repeatable")
    step = '{"result": "of the first attempt", "outside": true}'
    await pool.execute(
        "INSERT INTO work_step (work, name, outcome) VALUES ($1, 'call', $2::text::jsonb)", approval.id, step
    )
    async with bench.laboring():
        found = await bench.ends(approval)
    assert (found.standing, found.result["result"]) == ("done", "of the first attempt")
    assert bench.gate.asked == 0


async def test_what_has_begun_does_not_expire(bench: Bench, pool: Pool) -> None:
    bench.gate.holds = asyncio.Event()
    approval = await bench.approve("repeatable")
    async with bench.laboring():
        await bench.gate.begun.wait()
        assert await pool.fetchval("SELECT expires_at FROM work WHERE id = $1", approval.id) is None
        bench.gate.holds.set()
        assert (await bench.ends(approval)).standing == "done"


@pytest.mark.parametrize("effect", ["once", "repeatable"])
@pytest.mark.parametrize("result", ["x" * 5_000_000, "a NUL: \0"])
async def test_a_result_that_cannot_be_kept_does_not_make_a_failure_of_what_was_done(
    bench: Bench,
    effect: Effect,
    result: str,
) -> None:
    bench.gate.result = result
    approval = await bench.approve(effect)
    async with bench.laboring():
        found = await bench.ends(approval)
    assert (found.standing, found.result["result"], bench.gate.done) == ("done", None, 1)
    assert "result of the work" in found.result["lost"]


async def killed_after_its_effect(bench: Bench, approval: Approval) -> None:
    """A worker that is killed when the effect has happened and is recorded nowhere; its lease lapses."""
    bench.gate.holds = asyncio.Event()
    executor = Executor(bench.desk, bench.gate.standing, bench.gate.authorise, bench.gate.resume)
    async with bench.desk.pool.acquire() as connection:
        run = await lease.claim(connection, bench.desk.pool, [WORK_KIND], "killed", 30)
    assert run is not None
    attempt = asyncio.ensure_future(executor.handlers()[WORK_KIND](run))  # nobody writes what becomes of it
    await bench.gate.begun.wait()
    attempt.cancel()
    await asyncio.wait({attempt})
    bench.gate.holds = None
    bench.gate.begun.clear()
    await lapse(bench, approval)


async def lapse(bench: Bench, approval: Approval) -> None:
    await bench.desk.pool.execute(
        "UPDATE work SET lease_until = clock_timestamp() - interval '1 second' WHERE id = $1", approval.id
    )
    async with bench.desk.pool.acquire() as connection:
        await lease.sweep(connection)


async def test_what_has_begun_is_not_taken_back_between_two_attempts_and_ends_as_it_ends(bench: Bench) -> None:
    approval = await bench.approve("repeatable")
    await killed_after_its_effect(bench, approval)
    assert (await bench.desk.get(approval.id)).standing == "executing"
    taken_back = await bench.desk.cancel(approval.id, caller=Caller(approval.chain, {}, "s"))
    assert taken_back.standing == "executing"
    async with bench.laboring():
        assert (await bench.ends(approval)).standing == "done"


async def test_what_is_taken_back_while_a_worker_has_it_and_is_killed_is_brought_to_its_end(bench: Bench) -> None:
    approval = await bench.approve("repeatable")
    bench.gate.holds = asyncio.Event()
    async with bench.laboring():
        await bench.gate.begun.wait()
        await bench.desk.cancel(approval.id, caller=Caller(approval.chain, {}, "s"))
    assert (await bench.desk.get(approval.id)).standing == "executing"
    bench.gate.holds.set()
    async with bench.laboring():
        assert (await bench.ends(approval)).standing == "done"


async def test_what_is_taken_back_before_its_effect_begins_is_never_done(bench: Bench, pool: Pool) -> None:
    approval = await bench.approve("repeatable")
    executor = Executor(bench.desk, bench.gate.standing, bench.gate.authorise, bench.gate.resume)
    async with pool.acquire() as connection:
        run = await lease.claim(connection, pool, [WORK_KIND], "w", 30)
    assert run is not None
    await bench.desk.cancel(approval.id, caller=Caller(approval.chain, {}, "s"))
    await run.begin(perform(run, executor.handlers()[WORK_KIND], Backoff(1, 1)))
    assert ((await bench.desk.get(approval.id)).standing, bench.gate.done) == ("cancelled", 0)


async def test_what_has_begun_is_repeated_under_its_key_and_not_decided_again(bench: Bench) -> None:
    approval = await bench.approve("repeatable")
    await killed_after_its_effect(bench, approval)
    bench.gate.refuses = Unauthenticated("The token was revoked.")
    async with bench.laboring():
        assert (await bench.ends(approval)).standing == "done"
    assert (bench.gate.asked, bench.gate.resumed) == (1, 1)


async def test_what_has_begun_and_cannot_be_repeated_here_is_unknown_and_never_failed(bench: Bench) -> None:
    approval = await bench.approve("repeatable")
    await killed_after_its_effect(bench, approval)
    bench.gate.gone = UnknownTool("There is no such tool.")
    async with bench.laboring():
        assert (await bench.ends(approval)).standing == "unknown"
    bench.gate.gone = None
    await bench.desk.settle(approval.id, by="person:ben", verdict="again", note="The tool is back.")
    async with bench.laboring():
        assert (await bench.ends(approval)).standing == "done"
    assert (bench.gate.asked, bench.gate.resumed, bench.gate.done) == (1, 2, 1)


async def test_a_repeatable_effect_that_breaks_off_is_unknown(bench: Bench) -> None:
    bench.gate.raises = [InternalError("Broken off.")]
    approval = await bench.approve("repeatable")
    async with bench.laboring():
        assert (await bench.ends(approval)).standing == "unknown"


@pytest.mark.parametrize("how", ["lost", "told"])
async def test_what_has_begun_and_used_up_its_attempts_is_unknown(bench: Bench, pool: Pool, how: str) -> None:
    approval = await bench.approve("repeatable")
    await pool.execute("UPDATE work SET attempts_max = 1 WHERE id = $1", approval.id)
    if how == "lost":
        await killed_after_its_effect(bench, approval)
        found = await bench.desk.get(approval.id)
    else:
        bench.gate.raises = [Unavailable("Away.")]
        async with bench.laboring():
            found = await bench.ends(approval)
    assert (found.standing, found.ended_at) == ("unknown", None)
