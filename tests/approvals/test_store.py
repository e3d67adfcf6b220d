"""The rows of approvals: what they refuse, what follows by itself, and that nothing waits for itself."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable

import asyncpg
import pytest

from approvals import store
from approvals.desk import Desk
from body_broker.errors import BodyBrokerError
from body_broker.storage.postgres import Pool
from body_broker.work import queue
from policies.engine import Policy
from tests.approvals.conftest import MakeDesk
from tests.approvals.scene import BRONZE, caller, no, subject, verdicts, yes
from tests.waiting import wait_until

CLAIM = "SELECT id, token FROM work_claim(ARRAY['approved_call'], 'w', interval '1 minute')"
SUCCEED = """
UPDATE work SET state = 'succeeded', result = '{"result": {"done": "yes"}}', finished_at = clock_timestamp(), lease_until = NULL
WHERE id = $1 AND state = 'running'
"""
FAIL = """
UPDATE work SET state = 'failed', error = '{"code": "conflict"}', finished_at = clock_timestamp(), lease_until = NULL
WHERE id = $1 AND state = 'running'
"""

VOTE = """
INSERT INTO approval_vote (approval_id, voter, verdict, via, groups, evidence, receipt_writer, receipt_sequence)
SELECT id, '{voter}', 'approve', '{via}', '{{sre}}', '{{}}', 'w', 1 FROM approval
"""


async def test_arguments_come_back_to_the_byte(desk: Desk, policy: Policy, pool: Pool) -> None:
    name = 'Zwölf "Boxkämpfer"\u202e\x00\\u0000 \U0001f409'
    approval = (await desk.ask(subject(policy, name=name, count=2))).approval
    assert (approval.values(), approval.values()["name"]) == ({"name": name, "count": 2}, name)
    assert await pool.fetchval("SELECT arguments FROM approval") == approval.arguments
    assert list(approval.values()) == sorted(approval.values())


async def test_what_is_only_shown_holds_no_control_character_that_the_table_cannot(desk: Desk, policy: Policy) -> None:
    approval = (await desk.ask(subject(policy, name="a\x00b", reason="why\x00\u202e not"))).approval
    assert (approval.headline, approval.reason) == ("ingest ab", "why not")


async def test_whoever_waits_for_the_lock_reads_the_votes_of_who_held_it(
    desk: Desk, policy: Policy, pool: Pool
) -> None:
    approval = (await desk.ask(subject(policy, "remove"))).approval
    async with pool.acquire() as first, pool.acquire() as second:
        async with first.transaction():
            await store.lock(first, approval.id)

            async def wait() -> store.Kept | None:
                async with second.transaction():
                    return await store.lock(second, approval.id)

            waiting = asyncio.create_task(wait())
            blocked = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
            await wait_until(lambda: pool.fetchval(blocked), "the second one waits for the lock")
            await first.execute(VOTE.format(voter="person:anna", via="slack"))
        kept = await waiting
    assert kept is not None
    assert [vote.voter for vote in kept.approval.votes] == ["person:anna"]


async def test_the_end_of_the_work_is_the_end_of_the_approval(desk: Desk, policy: Policy, pool: Pool) -> None:
    for count, (move, standing) in enumerate([(SUCCEED, "done"), (FAIL, "failed")]):
        approval = await yes(desk, (await desk.ask(subject(policy, count=count))).approval)
        assert await pool.fetchval(CLAIM) == approval.id
        assert (await desk.get(approval.id)).standing == "executing"
        await pool.execute(move, approval.id)
        found = await desk.get(approval.id)
        assert (found.standing, found.ended_at is not None) == (standing, True)
        assert (found.result, found.error) == (
            ({"result": {"done": "yes"}}, None) if standing == "done" else (None, {"code": "conflict"})
        )


async def test_how_it_ended_outlives_its_work(desk: Desk, policy: Policy, pool: Pool) -> None:
    approval = await yes(desk, (await desk.ask(subject(policy))).approval)
    await pool.fetchval(CLAIM)
    await pool.execute(SUCCEED, approval.id)
    await pool.execute("DELETE FROM work WHERE id = $1", approval.id)
    found = await desk.get(approval.id)
    assert (found.standing, found.result) == ("done", None)


async def test_work_that_goes_back_to_the_queue_is_approved_again_not_lost(
    desk: Desk, policy: Policy, pool: Pool
) -> None:
    approval = await yes(desk, (await desk.ask(subject(policy))).approval)
    await pool.fetchval(CLAIM)
    await pool.execute("UPDATE work SET state = 'queued', lease_until = NULL WHERE id = $1", approval.id)
    assert (await desk.get(approval.id)).standing == "approved"


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE approval SET state = 'approved'",
        "UPDATE approval SET state = 'denied', decided_at = now()",
        "UPDATE approval SET outcome = 'done'",
        "UPDATE approval SET ended_at = now()",
        "UPDATE approval SET digest = 'short'",
        VOTE.format(voter="person:anna", via="mfa"),
        VOTE.format(voter="tier:bronze", via="slack"),
    ],
    ids=["undecided-yes", "endless-no", "outcome-without-yes", "ended-pending", "digest", "no-factor", "voting-tier"],
)
async def test_the_table_itself_refuses_what_cannot_be(desk: Desk, policy: Policy, pool: Pool, statement: str) -> None:
    await desk.ask(subject(policy))
    with pytest.raises(asyncpg.CheckViolationError):
        await pool.execute(statement)


async def test_whatever_happens_at_the_same_time_nothing_waits_for_itself(
    desk: Desk, make_desk: MakeDesk, policy: Policy, pool: Pool
) -> None:
    """Votes, cancels, expiries, claims and ends of the same requests, from two processes' desks and a worker."""
    seeded = random.Random(6)  # noqa: S311 - no secret
    desks = [desk, make_desk(notify=True)]
    made = [(await seeded.choice(desks).ask(subject(policy, count=n))).approval for n in range(6)]

    async def work() -> None:
        row = await pool.fetchrow(CLAIM)
        if row is not None:
            await pool.execute(seeded.choice([SUCCEED, FAIL]), row["id"])

    async def attempt(act: Callable[[], Awaitable[object]]) -> None:
        try:
            await act()
        except BodyBrokerError:
            return  # refused in words; a deadlock is no word of ours and fails the test

    def acts() -> list[Callable[[], Awaitable[object]]]:
        at, found = seeded.choice(desks), seeded.choice(made)
        return [
            lambda: yes(at, found, "anna"),
            lambda: no(at, found, "ben"),
            lambda: at.cancel(found.id, caller=caller(BRONZE)),
            lambda: at.expire(found.id),
            lambda: at.take(found.id),
            lambda: at.ask(subject(policy, count=found.values()["count"])),
            work,
        ]

    for _ in range(8):
        await asyncio.gather(*(attempt(seeded.choice(acts())) for _ in range(12)))
    for approval in made:
        told = await verdicts(pool, approval.id)
        assert len([each for each in told if each in {"approved", "denied", "cancelled", "expired"}]) <= 1
        state = await pool.fetchval("SELECT state FROM approval WHERE id = $1", approval.id)
        work_state = (await queue.get(pool, approval.id, owner=None)).state
        assert (work_state in {"waiting", "cancelled"}) or state == "approved"
