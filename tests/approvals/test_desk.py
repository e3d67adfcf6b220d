"""What can be done with an approval: asked for, joined, read, taken back, told once, settled."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from approvals.desk import Desk
from approvals.model import Subject
from body_broker.errors import BadInput, Conflict, Denied, NotFound, RateLimited
from body_broker.storage.postgres import Pool
from body_broker.work import queue
from policies.engine import Policy
from tests.approvals.conftest import MakeDesk
from tests.approvals.scene import ANNA, BRONZE, Counted, caller, no, past_its_time, records, subject, verdicts, yes


async def test_asking_opens_a_request_and_the_work_that_waits_for_its_yes(
    desk: Desk, policy: Policy, pool: Pool
) -> None:
    ticket = await desk.ask(subject(policy, reason="the lore is old"), call="call_1")
    found, work = ticket.approval, await queue.get(pool, ticket.approval.id, owner="tier:bronze")
    assert (ticket.joined, found.standing, found.reason, found.rules) == (
        False,
        "pending",
        "the lore is old",
        ("writes-need-approval",),
    )
    assert (work.state, work.kind, work.input) == ("waiting", "approved_call", {"approval": found.id})
    assert (work.origin.session, work.origin.receipt) == ("session of tier:bronze", found.receipt)
    assert found.values() == {"name": "lore", "count": 1}
    assert (found.expires_at - found.created_at).total_seconds() == pytest.approx(900, abs=1)


async def test_people_are_asked_only_after_the_audit_has_it(desk: Desk, policy: Policy, pool: Pool) -> None:
    approval = (await desk.ask(subject(policy), call="call_1")).approval
    (record,) = await records(pool, approval.id)
    assert (record.kind, record.verdict, record.call, record.requester) == ("asked", "ask", "call_1", "tier:bronze")
    assert record.rules == ("writes-need-approval",)


async def test_the_shortest_of_the_rules_says_how_long_it_stays_open(desk: Desk, policy: Policy) -> None:
    found = (await desk.ask(subject(policy, "remove"))).approval
    assert {each.ttl_s for each in found.requirements} == {600, 900}
    assert (found.expires_at - found.created_at).total_seconds() == pytest.approx(600, abs=1)


async def test_the_same_call_joins(desk: Desk, policy: Policy, counted: Counted) -> None:
    first = await desk.ask(subject(policy))
    again = await desk.ask(subject(policy, reason="other words are in no digest"))
    assert (again.joined, again.approval.id) == (True, first.approval.id)
    assert counted.asked == [False, True]


async def test_eight_same_calls_at_once_make_one_request(
    desk: Desk, make_desk: MakeDesk, policy: Policy, pool: Pool
) -> None:
    other = make_desk()
    tickets = await asyncio.gather(*((desk if n % 2 else other).ask(subject(policy)) for n in range(8)))
    assert sorted(ticket.joined for ticket in tickets) == [False] + [True] * 7
    assert len({ticket.approval.id for ticket in tickets}) == 1
    assert await verdicts(pool, tickets[0].approval.id) == ["ask"]


OTHERS: dict[str, Callable[[Policy], Subject]] = {
    "argument": lambda p: subject(p, count=2),
    "tool": lambda p: subject(p, "reindex"),
    "requester": lambda p: subject(p, chain=("person:anna", "tier:bronze")),
    "definition": lambda p: subject(p, definition="another"),
    "rules": lambda p: subject(p, tainted=True),
}


@pytest.mark.parametrize("what", sorted(OTHERS))
async def test_another_call_is_another_request(desk: Desk, policy: Policy, what: str) -> None:
    first = await desk.ask(subject(policy))
    other = await desk.ask(OTHERS[what](policy))
    assert (other.joined, other.approval.id == first.approval.id) == (False, False)


async def test_nobody_has_more_pending_than_they_may_and_joins_never_count(make_desk: MakeDesk, policy: Policy) -> None:
    desk = make_desk(open_max=2)
    asked = [subject(policy, count=n) for n in range(8)]
    outcomes = await asyncio.gather(*(desk.ask(each) for each in asked), return_exceptions=True)
    refused = [each for each in outcomes if isinstance(each, RateLimited)]
    opened = [each for each in outcomes if not isinstance(each, BaseException)]
    assert (len(opened), len(refused)) == (2, 6)
    assert "list_my_approvals" in refused[0].next_step
    assert 0 < (refused[0].retry_after_s or 0) <= 900
    open_call = next(each for each in asked if each.digest == opened[0].approval.digest)
    assert (await desk.ask(open_call)).joined
    assert not (await desk.ask(subject(policy, chain=("person:anna", "tier:bronze")))).joined


async def test_who_is_refused_or_takes_back_cannot_wear_people_down_with_the_next(
    make_desk: MakeDesk, policy: Policy, pool: Pool
) -> None:
    desk = make_desk(open_max=3)
    denied = (await desk.ask(subject(policy, count=1))).approval
    await no(desk, denied)
    taken_back = (await desk.ask(subject(policy, count=2))).approval
    await desk.cancel(taken_back.id, caller=caller(BRONZE))
    approved = (await desk.ask(subject(policy, count=3))).approval
    await yes(desk, approved)  # what people wanted burdens nobody
    await desk.ask(subject(policy, count=4))
    with pytest.raises(RateLimited, match="refused or taken back"):
        await desk.ask(subject(policy, count=5))
    await past_its_time(pool, denied.id)
    assert (await desk.ask(subject(policy, count=5))).approval.standing == "pending"


async def test_a_request_past_its_time_is_ended_by_whoever_reads_it_and_recorded_once(
    desk: Desk, policy: Policy, pool: Pool, counted: Counted
) -> None:
    approval = (await desk.ask(subject(policy))).approval
    await past_its_time(pool, approval.id)
    found = await asyncio.gather(*(desk.get(approval.id) for _ in range(4)), desk.expire(approval.id))
    assert {each.standing for each in found} == {"expired"}
    assert (await desk.get(approval.id)).decided_by == "service:body-broker"
    assert await verdicts(pool, approval.id) == ["ask", "expired"]
    assert [outcome for outcome, _ in counted.ended] == ["expired"]
    assert (await queue.get(pool, approval.id, owner=None)).state == "cancelled"


async def test_what_was_approved_and_not_begun_in_time_expires_too(desk: Desk, policy: Policy, pool: Pool) -> None:
    approval = await yes(desk, (await desk.ask(subject(policy))).approval)
    await past_its_time(pool, approval.id)
    assert (await desk.get(approval.id)).standing == "expired"
    assert (await queue.get(pool, approval.id, owner=None)).state == "expired"


async def test_an_effect_that_has_begun_no_longer_expires(desk: Desk, policy: Policy, pool: Pool) -> None:
    approval = await yes(desk, (await desk.ask(subject(policy))).approval)
    await pool.fetchrow("SELECT * FROM work_claim(ARRAY['approved_call'], 'w', interval '1 minute')")
    async with pool.acquire() as connection:
        assert await desk.begin(connection, approval.id, "call")
    assert (await desk.get(approval.id)).standing == "executing"
    assert (await queue.get(pool, approval.id, owner=None)).expires_at is None


async def test_who_repeats_the_call_after_its_end_is_told_once_and_then_asks_anew(desk: Desk, policy: Policy) -> None:
    first = (await desk.ask(subject(policy))).approval
    await no(desk, first, reason="not today")
    told = await desk.ask(subject(policy))
    assert (told.joined, told.approval.id, told.approval.why) == (True, first.id, "not today")
    assert [await desk.take(first.id), await desk.take(first.id)] == [True, False]
    anew = await desk.ask(subject(policy))
    assert (anew.joined, anew.approval.earlier, anew.approval.standing) == (False, first.id, "pending")


async def test_nothing_is_taken_before_it_has_ended(desk: Desk, policy: Policy) -> None:
    approval = (await desk.ask(subject(policy))).approval
    assert not await desk.take(approval.id)
    await yes(desk, approval)
    assert not await desk.take(approval.id)


async def test_an_end_that_nobody_came_for_in_a_day_is_not_told_any_more(
    desk: Desk, policy: Policy, pool: Pool
) -> None:
    first = (await desk.ask(subject(policy))).approval
    await no(desk, first)
    await pool.execute("UPDATE approval SET ended_at = ended_at - interval '25 hours'")
    anew = await desk.ask(subject(policy))
    assert (anew.joined, anew.approval.earlier) == (False, first.id)
    assert (await desk.get(first.id)).delivered_at is not None


async def test_the_requester_finds_their_own_and_the_asker_what_was_asked_for_them(desk: Desk, policy: Policy) -> None:
    chain = ("person:anna", "tier:bronze")
    approval = (await desk.ask(subject(policy, chain=chain))).approval
    for who in (chain, ANNA):
        assert (await desk.find(approval.id, caller=caller(who))).id == approval.id
        assert [each.id for each in await desk.list_mine(caller(who))] == [approval.id]


@pytest.mark.parametrize(
    "who", [BRONZE, ("person:ben",), ("person:anna", "tier:silver"), ("tier:bronze", "person:anna")]
)
async def test_what_is_somebody_elses_looks_like_what_is_not_there(
    desk: Desk, policy: Policy, who: tuple[str, ...]
) -> None:
    approval = (await desk.ask(subject(policy, chain=("person:anna", "tier:bronze")))).approval
    told: list[tuple[str, str, object]] = []
    for approval_id in (approval.id, "apr_" + "x" * 24):
        for act in (desk.find, desk.cancel):
            with pytest.raises(NotFound) as refusal:
                await act(approval_id, caller=caller(who))
            told.append((refusal.value.message, refusal.value.next_step, refusal.value.details))
    assert len({str(each) for each in told}) == 1
    assert await desk.list_mine(caller(who)) == []


async def test_lists_go_on_where_they_ended_and_narrow_by_standing(desk: Desk, policy: Policy) -> None:
    made = [(await desk.ask(subject(policy, count=n))).approval for n in range(5)]
    await no(desk, made[0])
    mine = caller(BRONZE)
    first = await desk.list_mine(mine, limit=3)
    rest = await desk.list_mine(mine, limit=3, before=first[-1].ordinal)
    assert [each.id for each in (*first, *rest)] == [each.id for each in reversed(made)]
    assert [each.id for each in await desk.list_mine(mine, standings=["denied"])] == [made[0].id]
    assert len(await desk.everything(standings=["pending"])) == await desk.count_pending() == 4


async def test_taken_back_before_the_yes_it_never_runs(desk: Desk, policy: Policy, pool: Pool) -> None:
    approval = (await desk.ask(subject(policy))).approval
    found = await desk.cancel(approval.id, caller=caller(BRONZE))
    assert (found.standing, found.decided_by, found.why) == ("cancelled", "tier:bronze", "Its requester took it back.")
    assert (await queue.get(pool, approval.id, owner=None)).state == "cancelled"
    assert await verdicts(pool, approval.id) == ["ask", "cancelled"]
    with pytest.raises(Conflict, match="it is cancelled"):
        await desk.cancel(approval.id, caller=caller(BRONZE))


async def test_taken_back_after_the_yes_it_ends_where_it_has_not_begun(desk: Desk, policy: Policy, pool: Pool) -> None:
    approval = await yes(desk, (await desk.ask(subject(policy))).approval)
    assert (await desk.cancel(approval.id, caller=caller(BRONZE))).standing == "cancelled"
    assert await pool.fetchrow("SELECT * FROM work_claim(ARRAY['approved_call'], 'w', interval '1 minute')") is None


async def test_taken_back_while_it_runs_it_is_asked_to_stop(desk: Desk, policy: Policy, pool: Pool) -> None:
    approval = await yes(desk, (await desk.ask(subject(policy))).approval)
    await pool.fetchrow("SELECT * FROM work_claim(ARRAY['approved_call'], 'w', interval '1 minute')")
    assert (await desk.cancel(approval.id, caller=caller(BRONZE))).standing == "executing"
    assert (await queue.get(pool, approval.id, owner=None)).cancel_requested


async def test_an_inbox_shows_what_one_person_can_still_bring_nearer(desk: Desk, policy: Policy) -> None:
    write = (await desk.ask(subject(policy))).approval
    own = (await desk.ask(subject(policy, chain=ANNA))).approval
    scan = (await desk.ask(subject(policy, "scan"))).approval
    remove = (await desk.ask(subject(policy, "remove"))).approval
    await yes(desk, remove, "ben")

    async def inbox(person: str) -> set[str]:
        return {each.id for each in await desk.waiting_for(person)}

    assert await inbox("person:anna") == {write.id, own.id, remove.id}
    assert await inbox("person:ben") == {write.id, own.id}
    assert await inbox("person:sam") == {scan.id}
    assert await inbox("person:eve") == await inbox("person:nobody") == set()


async def test_the_page_of_an_approval_is_named_by_the_hub_that_has_pages(desk: Desk, make_desk: MakeDesk) -> None:
    assert desk.approve_at("apr_1") == "http://localhost:8484/approve/apr_1"
    assert make_desk(pages=lambda: None).approve_at("apr_1") is None


async def left_unknown(desk: Desk, policy: Policy, pool: Pool) -> str:
    approval = await yes(desk, (await desk.ask(subject(policy, "publish"))).approval)
    await pool.fetchrow("SELECT * FROM work_claim(ARRAY['approved_call'], 'w', interval '1 minute')")
    await pool.execute(
        "UPDATE work SET open_effect = 'call', state = 'unknown', lease_until = NULL WHERE id = $1", approval.id
    )
    return approval.id


async def test_an_unknown_effect_is_joined_until_a_person_settles_it(desk: Desk, policy: Policy, pool: Pool) -> None:
    approval_id = await left_unknown(desk, policy, pool)
    joined = await desk.ask(subject(policy, "publish"))
    assert (joined.joined, joined.approval.standing, joined.approval.id) == (True, "unknown", approval_id)
    assert not await desk.take(approval_id)
    settled = await desk.settle(approval_id, by="person:ben", verdict="failed", note="it never arrived")
    assert settled.standing == "failed"
    assert (await verdicts(pool, approval_id))[-1] == "settled"
    with pytest.raises(Conflict, match="it is failed"):
        await desk.settle(approval_id, by="person:ben", verdict="again", note="once more")


async def test_without_a_note_nothing_is_settled_and_nothing_said(desk: Desk, policy: Policy, pool: Pool) -> None:
    approval_id = await left_unknown(desk, policy, pool)
    with pytest.raises(BadInput, match="with a note"):
        await desk.settle(approval_id, by="person:ben", verdict="failed", note=" \x00 ")
    assert "settled" not in await verdicts(pool, approval_id)
    assert (await desk.get(approval_id)).standing == "unknown"


async def test_of_two_who_settle_at_once_one_does_and_the_audit_has_one(
    desk: Desk, make_desk: MakeDesk, policy: Policy, pool: Pool
) -> None:
    approval_id = await left_unknown(desk, policy, pool)
    both = await asyncio.gather(
        desk.settle(approval_id, by="person:ben", verdict="failed", note="it never arrived"),
        make_desk().settle(approval_id, by="person:anna", verdict="again", note="nothing was there"),
        return_exceptions=True,
    )
    assert sorted(type(each).__name__ for each in both) == ["Approval", "Conflict"]
    assert (await verdicts(pool, approval_id)).count("settled") == 1


async def test_again_runs_an_unknown_effect_once_more(desk: Desk, policy: Policy, pool: Pool) -> None:
    approval_id = await left_unknown(desk, policy, pool)
    settled = await desk.settle(approval_id, by="person:anna", verdict="again", note="nothing was there")
    assert settled.standing == "approved"
    assert (await queue.get(pool, approval_id, owner=None)).state == "queued"


@pytest.mark.parametrize("by", ["person:eve", "person:nobody"])
async def test_only_an_approver_settles(desk: Desk, policy: Policy, pool: Pool, by: str) -> None:
    approval_id = await left_unknown(desk, policy, pool)
    with pytest.raises(Denied, match="admin, sre"):
        await desk.settle(approval_id, by=by, verdict="again", note="trust me")
    assert (await desk.get(approval_id)).standing == "unknown"


async def test_a_result_is_read_as_often_as_wanted_for_a_day(desk: Desk, policy: Policy, pool: Pool) -> None:
    approval = await yes(desk, (await desk.ask(subject(policy))).approval)
    await pool.fetchrow("SELECT * FROM work_claim(ARRAY['approved_call'], 'w', interval '1 minute')")
    await pool.execute(
        "UPDATE work SET state = 'succeeded', result = '{\"result\": 1}', finished_at = clock_timestamp(), lease_until = NULL"
    )
    for _ in range(2):
        assert (await desk.find(approval.id, caller=caller(BRONZE))).result == {"result": 1}
    await pool.execute("UPDATE approval SET ended_at = ended_at - interval '25 hours'")
    found = await desk.find(approval.id, caller=caller(BRONZE))
    assert (found.standing, found.result) == ("done", None)
