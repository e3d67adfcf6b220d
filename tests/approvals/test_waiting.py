"""Waiting for people: woken by what happens anywhere, told whom it waits for, and never holding what others need."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from approvals.desk import Desk
from approvals.model import Approval
from approvals.waiting import Waiters, is_settled, open_waiters, waits_for
from body_broker.storage.postgres import Pool
from policies.engine import Policy
from tests.approvals.scene import ANNA, no, subject, yes
from tests.waiting import wait_until


@pytest.fixture
async def waiters(desk: Desk, database_url: str) -> AsyncIterator[Waiters]:
    async with open_waiters(desk.get, database_url) as found:
        yield found


@pytest.fixture
async def approval(desk: Desk, policy: Policy) -> Approval:
    return (await desk.ask(subject(policy))).approval


async def begun(waiters: Waiters, approval: Approval, number: int = 1) -> None:
    await wait_until(lambda: waiters.waiting(approval.id) == number, f"{number} wait")


async def test_a_wait_ends_with_what_people_decide(desk: Desk, waiters: Waiters, approval: Approval) -> None:
    waiting = asyncio.create_task(waiters.wait(approval.id, timeout_s=60))
    await begun(waiters, approval)
    await no(desk, approval)
    assert (await waiting).standing == "denied"
    assert waiters.waiting() == 0


async def test_a_yes_alone_ends_no_wait_for_nothing_has_been_done_yet(
    desk: Desk, waiters: Waiters, approval: Approval, pool: Pool
) -> None:
    waiting = asyncio.create_task(waiters.wait(approval.id, timeout_s=60))
    await begun(waiters, approval)
    await yes(desk, approval)
    await asyncio.wait({waiting}, timeout=0.1)
    assert not waiting.done()
    await pool.execute("UPDATE work SET state = 'succeeded', finished_at = now() WHERE id = $1", approval.id)
    assert (await waiting).standing == "done"


async def test_who_has_no_patience_only_looks(waiters: Waiters, approval: Approval) -> None:
    assert (await waiters.wait(approval.id, timeout_s=0)).standing == "pending"


async def test_what_happens_while_the_connection_is_lost_is_still_seen(
    desk: Desk, waiters: Waiters, approval: Approval, pool: Pool
) -> None:
    waiting = asyncio.create_task(waiters.wait(approval.id, timeout_s=60))
    await begun(waiters, approval)
    lost = (
        "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE application_name = 'body-broker approvals'"
    )
    await wait_until(lambda: pool.fetchval(f"{lost} AND datname = current_database()"), "its connection is cut")
    await no(desk, approval)
    assert (await waiting).standing == "denied"


async def test_one_that_leaves_takes_nothing_from_the_others(desk: Desk, waiters: Waiters, approval: Approval) -> None:
    leaving, staying = (asyncio.create_task(waiters.wait(approval.id, timeout_s=60)) for _ in range(2))
    await begun(waiters, approval, 2)
    leaving.cancel()
    await begun(waiters, approval, 1)
    await no(desk, approval)
    assert (await staying).standing == "denied"


async def test_whoever_waits_is_told_for_whom_and_again_with_every_vote(
    desk: Desk, waiters: Waiters, policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("approvals.waiting.TELL_EVERY_S", 600.0)  # it is told of votes, and of nothing else
    heard: list[tuple[float, float | None, str | None]] = []

    async def hear(done: float, total: float | None = None, message: str | None = None) -> None:
        heard.append((done, total, message))

    approval = (await desk.ask(subject(policy, "remove"))).approval
    waiting = asyncio.create_task(waiters.wait(approval.id, timeout_s=60, progress=hear))
    await wait_until(lambda: heard, "it is told")
    assert heard[0][1:] == (60, "waiting for sre or admin: 0 of 2")
    await yes(desk, approval)
    await wait_until(lambda: len(heard) > 1, "it is told of the vote")
    assert heard[1][2] == "waiting for sre or admin: 1 of 2"
    assert heard[1][0] > heard[0][0]
    waiters.close()
    assert (await waiting).standing == "pending"


async def test_nobody_waits_where_the_hub_stops(waiters: Waiters, approval: Approval) -> None:
    waiters.close()
    assert (await waiters.wait(approval.id, timeout_s=60)).standing == "pending"


async def test_a_person_alone_hears_that_their_own_factor_is_enough(desk: Desk, policy: Policy) -> None:
    approval = (await desk.ask(subject(policy, chain=ANNA))).approval
    assert waits_for(approval) == "waiting for your own second factor or sre or admin: 0 of 1"
    assert not is_settled(approval)
