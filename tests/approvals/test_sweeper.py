"""What happens to approvals that nobody looks at."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta

import pytest

from approvals import sweeper
from approvals.desk import Desk
from body_broker.calls import Json
from body_broker.storage.postgres import Pool
from body_broker.work import queue
from body_broker.work.fence import Fence
from body_broker.work.model import Origin
from body_broker.work.run import Claimed, Run
from policies.engine import Policy
from tests.approvals.conftest import MakeDesk
from tests.approvals.scene import no, past_its_time, subject, verdicts, yes

Sweep = Callable[[Desk], Awaitable[Json]]
NOW = datetime(2026, 11, 22, tzinfo=UTC)
NOTICES = "SELECT count(*) FROM work WHERE kind = 'approval_notice' AND state = 'queued'"


def run_of(pool: Pool, kind: str) -> Run:
    origin = Origin(chain=("service:body-broker",), session="schedule")
    work = Claimed(kind=kind, origin=origin, input=None, attempt=1, attempts_max=1, created_at=NOW, steps={})
    return Run(Fence(pool, "job_of_the_test", 1, 30.0), work)


@pytest.fixture
def sweep(pool: Pool) -> Sweep:
    async def once(desk: Desk) -> Json:
        return await sweeper.handlers(desk)[sweeper.SWEEP](run_of(pool, sweeper.SWEEP))

    return once


@pytest.fixture
def tidy(pool: Pool) -> Sweep:
    async def once(desk: Desk) -> Json:
        return await sweeper.handlers(desk)[sweeper.TIDY](run_of(pool, sweeper.TIDY))

    return once


async def test_what_is_past_its_time_is_ended_and_recorded_once(
    desk: Desk, policy: Policy, pool: Pool, sweep: Sweep
) -> None:
    due = (await desk.ask(subject(policy))).approval
    other = (await desk.ask(subject(policy, count=2))).approval
    await past_its_time(pool, due.id)
    assert [(await sweep(desk))["expired"], (await sweep(desk))["expired"]] == [1, 0]
    assert await pool.fetchval("SELECT state FROM approval WHERE id = $1", due.id) == "expired"
    assert await verdicts(pool, due.id) == ["ask", "expired"]
    assert (await desk.get(other.id)).standing == "pending"


async def test_a_yes_that_nothing_ran_in_time_is_recorded_as_expired(
    desk: Desk, policy: Policy, pool: Pool, sweep: Sweep
) -> None:
    approval = await yes(desk, (await desk.ask(subject(policy))).approval)
    await past_its_time(pool, approval.id)
    await desk.get(approval.id)
    assert [(await sweep(desk))["recorded"], (await sweep(desk))["recorded"]] == [1, 0]
    assert await verdicts(pool, approval.id) == ["ask", "approved", "expired"]


async def test_what_a_killed_worker_left_is_recorded_and_again_after_it_was_settled(
    desk: Desk, policy: Policy, pool: Pool, sweep: Sweep
) -> None:
    approval = await yes(desk, (await desk.ask(subject(policy, "publish"))).approval)
    left_unknown = (
        "UPDATE work SET state = 'unknown', open_effect = 'call', lease_until = NULL, finished_at = NULL WHERE id = $1"
    )
    await pool.execute(left_unknown, approval.id)
    await sweep(desk)
    await desk.settle(approval.id, by="person:ben", verdict="again", note="nothing there")
    await pool.execute(left_unknown, approval.id)
    await sweep(desk)
    assert await verdicts(pool, approval.id) == ["ask", "approved", "unknown", "settled", "unknown"]


async def test_approved_work_that_still_waits_is_let_go(desk: Desk, policy: Policy, pool: Pool, sweep: Sweep) -> None:
    approval = await yes(desk, (await desk.ask(subject(policy))).approval)
    await pool.execute("UPDATE work SET state = 'waiting' WHERE id = $1", approval.id)
    assert (await sweep(desk))["released"] == 1
    assert (await queue.get(pool, approval.id, owner=None)).state == "queued"


async def test_a_notice_goes_out_with_each_move_and_is_sent_again_when_it_is_lost(
    make_desk: MakeDesk, policy: Policy, pool: Pool, sweep: Sweep
) -> None:
    desk = make_desk(notify=True)
    approval = (await desk.ask(subject(policy))).approval
    assert await pool.fetchval(NOTICES) == 1
    assert (await sweep(desk))["notices"] == 0  # one is on its way
    await pool.execute("DELETE FROM work WHERE kind = 'approval_notice'")
    assert [(await sweep(desk))["notices"], (await sweep(desk))["notices"]] == [1, 0]
    await pool.execute("DELETE FROM work WHERE kind = 'approval_notice'")
    await pool.execute("INSERT INTO approval_notice (approval_id, shown) VALUES ($1, 'pending')", approval.id)
    assert (await sweep(desk))["notices"] == 0
    await no(desk, approval)
    assert await pool.fetchval(NOTICES) == 1


async def test_a_notice_that_failed_for_good_is_tried_anew_after_a_while(
    make_desk: MakeDesk, policy: Policy, pool: Pool, sweep: Sweep
) -> None:
    desk = make_desk(notify=True)
    approval = (await desk.ask(subject(policy))).approval
    await pool.execute(
        "UPDATE work SET state = 'failed', finished_at = clock_timestamp() WHERE kind = 'approval_notice'"
    )
    await pool.execute(
        "INSERT INTO approval_notice (approval_id, failures, failed_at, failure) VALUES ($1, 8, now(), 'not_in_channel')",
        approval.id,
    )
    assert (await sweep(desk))["notices"] == 0
    await pool.execute("UPDATE approval_notice SET failed_at = now() - interval '2 minutes'")
    assert [(await sweep(desk))["notices"], (await sweep(desk))["notices"]] == [1, 0]


async def test_a_vote_that_does_not_decide_yet_is_shown_too(make_desk: MakeDesk, policy: Policy, pool: Pool) -> None:
    desk = make_desk(notify=True)
    approval = (await desk.ask(subject(policy, "remove"))).approval
    await yes(desk, approval)
    assert await pool.fetchval(NOTICES) == 2


async def test_without_notices_none_are_queued(desk: Desk, policy: Policy, pool: Pool, sweep: Sweep) -> None:
    await no(desk, (await desk.ask(subject(policy))).approval)
    assert (await sweep(desk))["notices"] == await pool.fetchval(NOTICES) == 0


async def test_old_results_logins_and_challenges_are_forgotten(
    desk: Desk, policy: Policy, pool: Pool, tidy: Sweep
) -> None:
    approval = await yes(desk, (await desk.ask(subject(policy))).approval)
    await pool.execute(
        "UPDATE work SET state = 'succeeded', result = '{\"result\": 1}', finished_at = now() - $1::interval WHERE id = $2",
        timedelta(hours=23),
        approval.id,
    )
    await pool.execute("INSERT INTO work_step (work, name, outcome) VALUES ($1, 'call', '{}')", approval.id)
    for minutes in (-1, 1):
        at = timedelta(minutes=minutes)
        key = str(minutes).encode()
        await pool.execute(
            "INSERT INTO page_login (id, person, how, expires_at) VALUES ($1, 'person:anna', 'oidc', now() + $2)",
            key,
            at,
        )
        await pool.execute(
            "INSERT INTO page_challenge (id, purpose, body, expires_at) VALUES ($1, 'used', '{}', now() + $2)", key, at
        )
    assert await tidy(desk) == {"logins": 1, "challenges": 1, "steps": 0, "results": 0, "sweeps": 0}
    await pool.execute("UPDATE work SET finished_at = now() - interval '25 hours' WHERE id = $1", approval.id)
    assert await tidy(desk) == {"logins": 0, "challenges": 0, "steps": 1, "results": 1, "sweeps": 0}
    assert (await queue.get(pool, approval.id, owner=None)).result is None
    assert (await desk.get(approval.id)).standing == "done"


async def test_sweeps_do_not_heap_up(desk: Desk, pool: Pool, tidy: Sweep) -> None:
    origin = Origin(chain=("service:body-broker",), session="schedule")
    for number in range(3):
        await queue.enqueue(pool, sweeper.SWEEP, {"slot": number}, origin=origin)
    await pool.execute(
        "UPDATE work SET state = 'succeeded', finished_at = now() - interval '2 hours' WHERE input ->> 'slot' < '2'"
    )
    assert (await tidy(desk))["sweeps"] == 2


async def test_the_sweeps_have_their_schedules_and_handlers(desk: Desk) -> None:
    planned = {each.kind for each in sweeper.schedules()}
    assert planned == set(sweeper.handlers(desk)) == {sweeper.SWEEP, sweeper.TIDY}
