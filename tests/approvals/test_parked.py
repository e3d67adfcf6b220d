"""Work that waits for an approval goes on by itself once nothing more will come of it, whoever or whatever ended it, and no sooner."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest

from approvals.desk import Desk
from approvals.model import Approval
from body_broker.calls import Json
from body_broker.errors import BadInput
from body_broker.storage.postgres import Pool
from body_broker.work import lease, queue
from body_broker.work.ending import Backoff, perform
from body_broker.work.model import Origin, State
from body_broker.work.parking import Park
from body_broker.work.run import Run
from policies.engine import Policy
from tests.approvals.scene import BRONZE, caller, no, past_its_time, subject, yes

JOB = "job"


async def parked_on(pool: Pool, approval: Approval) -> str:
    async def handler(_run: Run) -> Json:
        raise Park(approval.id, message="people are asked")

    work = await queue.enqueue(pool, JOB, {}, origin=Origin(chain=("person:anna",), session="s"))
    async with pool.acquire() as connection:
        run = await lease.claim(connection, pool, [JOB], "A", 30.0)
    assert run is not None
    await run.begin(perform(run, handler, Backoff(60.0, 60.0)))
    assert await state_of(pool, work) == "waiting"
    return work


async def state_of(pool: Pool, work: str) -> State:
    return (await queue.get(pool, work, owner=None)).state


async def claim(pool: Pool, approval: Approval) -> Run:
    """A worker takes the approved call."""
    async with pool.acquire() as connection:
        run = await lease.claim(connection, pool, ["approved_call"], "A", 30.0)
    assert run is not None
    assert run.id == approval.id
    return run


@pytest.fixture
async def approval(desk: Desk, policy: Policy) -> Approval:
    return (await desk.ask(subject(policy))).approval


async def _denied(desk: Desk, approval: Approval) -> None:
    await no(desk, approval)


async def _cancelled(desk: Desk, approval: Approval) -> None:
    await desk.cancel(approval.id, caller=caller(BRONZE))


async def _expired(desk: Desk, approval: Approval) -> None:
    await past_its_time(desk.pool, approval.id)
    await desk.expire(approval.id)


async def _expired_after_a_yes(desk: Desk, approval: Approval) -> None:
    await yes(desk, approval)
    await past_its_time(desk.pool, approval.id)
    async with desk.pool.acquire() as connection:
        await lease.sweep(connection)


End = Callable[[Desk, Approval], Awaitable[None]]


@pytest.mark.parametrize("end", [_denied, _cancelled, _expired, _expired_after_a_yes])
async def test_what_will_not_be_done_is_waited_for_no_more(
    desk: Desk, approval: Approval, pool: Pool, end: End
) -> None:
    work = await parked_on(pool, approval)
    await end(desk, approval)
    assert await state_of(pool, work) == "queued"


@pytest.mark.parametrize("fails", [False, True])
async def test_a_yes_is_not_the_end_what_came_of_it_is(
    desk: Desk, approval: Approval, pool: Pool, *, fails: bool
) -> None:
    work = await parked_on(pool, approval)
    await yes(desk, approval)
    assert await state_of(pool, work) == "waiting"

    async def handler(_run: Run) -> Json:
        assert await state_of(pool, work) == "waiting"
        if fails:
            raise BadInput("It does not fit.")
        return {"result": {}}

    run = await claim(pool, approval)
    await run.begin(perform(run, handler, Backoff(60.0, 60.0)))
    assert (await desk.get(approval.id)).standing == ("failed" if fails else "done")
    assert await state_of(pool, work) == "queued"


async def test_what_nobody_knows_is_waited_for_until_a_person_has_looked(
    desk: Desk, policy: Policy, pool: Pool
) -> None:
    approval = (await desk.ask(subject(policy, "publish"))).approval
    work = await parked_on(pool, approval)
    await yes(desk, approval)
    await pool.execute("UPDATE work SET open_effect = 'call', state = 'unknown' WHERE id = $1", approval.id)
    assert (await desk.get(approval.id)).standing == "unknown"
    assert await state_of(pool, work) == "waiting"
    await desk.settle(approval.id, by="person:ben", verdict="succeeded", note="It is there.")
    assert await state_of(pool, work) == "queued"


async def test_another_approvals_end_wakes_nobody(desk: Desk, policy: Policy, approval: Approval, pool: Pool) -> None:
    other = (await desk.ask(subject(policy, "reindex"))).approval
    work = await parked_on(pool, approval)
    await no(desk, other)
    assert await state_of(pool, work) == "waiting"
