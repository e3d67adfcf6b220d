"""The executor: nothing twice, nothing told otherwise than it happened, whatever stops it on the way."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime

import pytest

from approvals.desk import Desk
from approvals.executor import Executor, Perform
from approvals.model import Approval
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
)
from body_broker.storage.postgres import Pool
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
    given: Given | None = None
    holds: asyncio.Event | None = None
    begun: asyncio.Event = field(default_factory=asyncio.Event)
    result: Json = "done"

    async def standing(self, chain: Sequence[str], sessions: Sequence[str], since: datetime) -> Caller:
        assert since.tzinfo is not None
        return Caller(tuple(chain), {}, sessions[0])

    async def authorise(self, approval: Approval, caller: Caller, given: Given, /) -> Perform:
        assert caller.requester == approval.requester
        self.asked, self.given = self.asked + 1, given
        if self.refuses is not None:
            raise self.refuses

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
        found = await yes(self.desk, (await self.desk.ask(subject(self.policy, tool))).approval)
        assert (found.standing, found.effect) == ("approved", effect)
        return found

    @asynccontextmanager
    async def laboring(self) -> AsyncGenerator[Worker]:
        executor = Executor(self.desk, self.gate.standing, self.gate.authorise)
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
    assert (bench.gate.asked, bench.gate.done) == (3, 1)


@pytest.mark.parametrize("kind", [*REFUSALS, InternalError])
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
    assert ((await bench.desk.get(approval.id)).standing, bench.gate.done) == ("approved", 0)
    bench.gate.holds.set()
    async with bench.laboring():
        assert (await bench.ends(approval)).standing == "done"
    assert (bench.gate.asked, bench.gate.done) == (2, 1)


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
