"""Who may say yes or no to what: what counts, and every way in which it does not."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest

from approvals import voting
from approvals.desk import Desk
from approvals.model import Approval, Verdict, Via, Voter
from body_broker.audit.auditor import open_auditor
from body_broker.errors import Conflict, Denied, NotFound, Unavailable
from body_broker.storage.postgres import Pool
from body_broker.work import queue
from policies.catalogue import Catalogue
from policies.engine import Policy
from policies.rules import Source, parse, sources
from tests.approvals.conftest import KEY, MakeDesk
from tests.approvals.scene import (
    ANNA,
    BRONZE,
    DEFINITIONS,
    Counted,
    caller,
    no,
    past_its_time,
    records,
    subject,
    verdicts,
    vote,
    voter,
    yes,
)
from tests.waiting import wait_until

CHANNELS: tuple[Via, ...] = ("slack", "mfa", "local")
Edited = Callable[..., Awaitable[Policy]]


@pytest.fixture
def edited(catalogue: Catalogue, tmp_path: Path) -> Edited:
    """Our policies after an edit of one file, or with a studio's own beside them."""

    def edit(old: str = "", new: str = "", studio: str = "") -> Policy:
        if studio:
            (tmp_path / "studio.cedar").write_text(studio, encoding="utf-8")
            return Policy.load(catalogue, tmp_path)
        files = [Source(each.file, each.text.replace(old, new)) for each in sources(None)]
        assert [each.text for each in files] != [each.text for each in sources(None)], "the edit met nothing"
        return Policy(catalogue, [rule for file in files for rule in parse(file)])

    async def edit_aside(*given: str, **named: str) -> Policy:
        return await asyncio.to_thread(edit, *given, **named)

    return edit_aside


async def test_one_yes_where_one_is_wanted_lets_the_work_go(
    desk: Desk, policy: Policy, pool: Pool, counted: Counted
) -> None:
    approval = await yes(desk, (await desk.ask(subject(policy))).approval)
    assert (approval.standing, approval.decided_by) == ("approved", "person:anna")
    assert (await queue.get(pool, approval.id, owner=None)).state == "queued"
    assert [outcome for outcome, _ in counted.ended] == ["approved"]


async def test_a_vote_is_on_the_audit_with_who_and_how(desk: Desk, policy: Policy, pool: Pool) -> None:
    approval = (await desk.ask(subject(policy))).approval
    await yes(desk, approval, "anna", "mfa")
    asked, approved = await records(pool, approval.id)
    assert (approved.kind, approved.verdict, approved.requester) == ("approval", "approved", "person:anna")
    assert approved.refers_to == approval.receipt
    told = {name: approved.details[name] for name in ("approval", "fingerprint", "asked_by", "via", "factor", "groups")}
    assert told == {
        "approval": approval.id,
        "fingerprint": approval.fingerprint,
        "asked_by": "tier:bronze",
        "via": "mfa",
        "factor": "totp",
        "groups": ["sre"],
    }
    row = await pool.fetchrow("SELECT * FROM approval_vote")
    assert row is not None
    assert row["receipt_writer"] == approval.receipt.writer
    assert row["receipt_sequence"] > approval.receipt.sequence
    assert asked.kind == "asked"


async def test_destruction_by_an_agent_takes_two_people(desk: Desk, policy: Policy, pool: Pool) -> None:
    approval = (await desk.ask(subject(policy, "remove"))).approval
    first = await yes(desk, approval, "anna")
    assert (first.standing, [each.voter for each in first.votes]) == ("pending", ["person:anna"])
    assert (await queue.get(pool, approval.id, owner=None)).state == "waiting"
    assert (await yes(desk, approval, "cleo", "mfa")).standing == "approved"
    assert await verdicts(pool, approval.id) == ["ask", "voted", "approved"]


async def test_each_rule_is_counted_for_itself(desk: Desk, policy: Policy) -> None:
    approval = (await desk.ask(subject(policy, "carry_out", tainted=True))).approval
    assert set(approval.rules) == {"external-by-bronze-needs-approval", "tainted-needs-approval"}
    # sre meets the rule about taint and not the one about carrying data out.
    assert (await yes(desk, approval, "anna")).standing == "pending"
    with pytest.raises(Denied, match="admin, security"):
        await yes(desk, approval, "ben")
    assert (await yes(desk, approval, "sam")).standing == "approved"


async def test_two_people_of_whom_one_belongs_to_another_rule_are_not_two(desk: Desk, policy: Policy) -> None:
    """The condition of the rule counts heads of any group; its annotations say whose."""
    approval = (await desk.ask(subject(policy, "remove", tainted=True))).approval
    assert {each.rule: each.quorum for each in approval.requirements}["destruction-by-agents-needs-two"] == 2
    assert (await yes(desk, approval, "sam")).standing == "pending"
    assert (await yes(desk, approval, "anna")).standing == "pending"
    assert (await yes(desk, approval, "ben")).standing == "approved"


async def test_a_quorum_that_was_lowered_in_the_table_voids_it(desk: Desk, policy: Policy, pool: Pool) -> None:
    approval = (await desk.ask(subject(policy, "remove"))).approval
    await pool.execute(
        "UPDATE approval SET requirements = (SELECT jsonb_agg(jsonb_set(r, '{quorum}', '1')) FROM jsonb_array_elements(requirements) r)"
    )
    await void(desk, approval, "The rule destruction-by-agents-needs-two, which asked for it, was changed")


async def test_the_whole_policy_has_the_last_word_on_whether_votes_are_enough(desk: Desk, policy: Policy) -> None:
    approval = await yes(desk, (await desk.ask(subject(policy, "remove"))).approval)
    lowered = replace(approval, requirements=tuple(replace(each, quorum=1) for each in approval.requirements))
    assert not voting.is_enough(lowered, lowered.votes, policy)


async def test_one_no_ends_it_and_its_reason_is_kept(desk: Desk, policy: Policy, pool: Pool) -> None:
    approval = (await desk.ask(subject(policy, "remove"))).approval
    await yes(desk, approval, "anna")
    denied = await no(desk, approval, "ben", reason="not before the\u202e release\x00")
    assert (denied.standing, denied.decided_by, denied.why) == ("denied", "person:ben", "not before the release")
    assert (await queue.get(pool, approval.id, owner=None)).state == "cancelled"
    with pytest.raises(Conflict, match="already been denied"):
        await yes(desk, approval, "cleo")


async def test_who_has_no_more_to_say_yes_to_may_still_say_no(desk: Desk, policy: Policy) -> None:
    approval = (await desk.ask(subject(policy, "carry_out", tainted=True))).approval
    await yes(desk, approval, "anna")
    assert (await no(desk, approval, "ben")).standing == "denied"


async def test_a_person_alone_steps_up_for_their_own_call(desk: Desk, policy: Policy) -> None:
    ways: list[tuple[str, Via]] = [("ingest", "mfa"), ("remove", "mfa"), ("reindex", "local")]
    for tool, via in ways:
        approval = (await desk.ask(subject(policy, tool, ANNA))).approval
        assert (await vote(desk, approval, "anna", "approve", via=via)).standing == "approved"


async def test_without_the_second_factor_nobody_decides_their_own_call(desk: Desk, policy: Policy) -> None:
    approval = (await desk.ask(subject(policy, chain=ANNA))).approval
    with pytest.raises(Denied, match="only your second factor counts"):
        await yes(desk, approval, "anna", "slack")
    bare = Voter(person="person:anna", via="mfa")
    with pytest.raises(Denied, match="needs your second factor"):
        await desk.vote(approval.id, digest=approval.digest, voter=bare, verdict="approve")
    assert (await desk.get(approval.id)).votes == ()


@pytest.mark.parametrize("via", CHANNELS)
@pytest.mark.parametrize("verdict", ["approve", "deny"])
async def test_whoever_an_agent_asks_for_never_decides_it_by_any_way(
    desk: Desk, policy: Policy, pool: Pool, via: Via, verdict: Verdict
) -> None:
    approval = (await desk.ask(subject(policy, chain=("person:anna", "tier:bronze")))).approval
    with pytest.raises(Denied, match="nobody decides their own request"):
        await vote(desk, approval, "anna", verdict, via=via)
    assert (await desk.get(approval.id)).standing == "pending"
    assert (await verdicts(pool, approval.id))[-1:] == ["refused"]


async def test_a_person_anywhere_in_the_chain_is_one_of_those_who_ask(desk: Desk, policy: Policy) -> None:
    approval = (await desk.ask(subject(policy, chain=("tier:bronze", "person:anna")))).approval
    with pytest.raises(Denied, match="nobody decides their own request"):
        await yes(desk, approval, "anna", "mfa")


@pytest.mark.parametrize("name", ["eve", "nora", "stranger", "sam"])
@pytest.mark.parametrize("verdict", ["approve", "deny"])
async def test_who_is_in_none_of_the_groups_has_no_say(desk: Desk, policy: Policy, name: str, verdict: Verdict) -> None:
    approval = (await desk.ask(subject(policy))).approval
    with pytest.raises(Denied, match="somebody of admin, sre"):
        await vote(desk, approval, name, verdict)
    assert (await desk.get(approval.id)).standing == "pending"


async def test_a_way_that_the_rule_does_not_name_does_not_count(desk: Desk, policy: Policy) -> None:
    approval = (await desk.ask(subject(policy, "scan"))).approval
    with pytest.raises(Denied, match="does not take a decision by local, only by mfa or slack"):
        await yes(desk, approval, "sam", "local")
    assert (await yes(desk, approval, "sam", "slack")).standing == "approved"


async def test_a_vote_after_its_time_is_refused_and_ends_it(desk: Desk, policy: Policy, pool: Pool) -> None:
    approval = (await desk.ask(subject(policy))).approval
    await past_its_time(pool, approval.id)
    with pytest.raises(Conflict, match="expired"):
        await yes(desk, approval)
    assert await pool.fetchval("SELECT state FROM approval") == "expired"
    assert await verdicts(pool, approval.id) == ["ask", "expired", "refused"]


async def test_a_vote_in_the_moment_in_which_its_work_expired_is_refused(
    desk: Desk, policy: Policy, pool: Pool
) -> None:
    approval = (await desk.ask(subject(policy))).approval
    await pool.execute("UPDATE work SET expires_at = clock_timestamp() WHERE id = $1", approval.id)
    with pytest.raises(Conflict, match="expired"):
        await yes(desk, approval)
    assert (await desk.get(approval.id)).votes == ()


async def test_a_click_on_another_call_does_not_count(desk: Desk, policy: Policy) -> None:
    shown = (await desk.ask(subject(policy))).approval
    other = (await desk.ask(subject(policy, count=999))).approval
    with pytest.raises(Conflict, match="another call"):
        await desk.vote(other.id, digest=shown.digest, voter=voter("anna"), verdict="approve")
    assert (await desk.get(other.id)).votes == ()


async def test_a_click_on_nothing_is_refused_and_recorded(desk: Desk, pool: Pool) -> None:
    unknown = "apr_" + "x" * 24
    with pytest.raises(NotFound):
        await desk.vote(unknown, digest="0" * 64, voter=voter("anna"), verdict="approve")
    assert await verdicts(pool, unknown) == ["refused"]


async def test_one_person_has_one_vote(desk: Desk, policy: Policy) -> None:
    approval = (await desk.ask(subject(policy, "remove"))).approval
    await yes(desk, approval, "anna", "slack")
    more: list[tuple[Via, Verdict]] = [("slack", "approve"), ("mfa", "approve"), ("mfa", "deny")]
    for via, verdict in more:
        with pytest.raises(Conflict, match="already said yes"):
            await vote(desk, approval, "anna", verdict, via=via)
    assert (await desk.get(approval.id)).standing == "pending"


async def test_one_person_by_two_ways_at_once_is_one_vote(desk: Desk, make_desk: MakeDesk, policy: Policy) -> None:
    approval = (await desk.ask(subject(policy, "remove"))).approval
    both = await asyncio.gather(
        yes(desk, approval, "anna", "slack"), yes(make_desk(), approval, "anna", "mfa"), return_exceptions=True
    )
    assert sorted(type(each).__name__ for each in both) == ["Approval", "Conflict"]
    assert len((await desk.get(approval.id)).votes) == 1


async def test_of_two_votes_at_once_one_decides(desk: Desk, make_desk: MakeDesk, policy: Policy, pool: Pool) -> None:
    approval = (await desk.ask(subject(policy))).approval
    both = await asyncio.gather(yes(desk, approval, "anna"), yes(make_desk(), approval, "ben"), return_exceptions=True)
    assert sorted(type(each).__name__ for each in both) == ["Approval", "Conflict"]
    assert await verdicts(pool, approval.id) == ["ask", "approved", "refused"]


async def test_two_first_votes_at_once_are_two(desk: Desk, make_desk: MakeDesk, policy: Policy, pool: Pool) -> None:
    approval = (await desk.ask(subject(policy, "remove"))).approval
    both = await asyncio.gather(yes(desk, approval, "anna"), yes(make_desk(), approval, "ben"))
    assert sorted(each.standing for each in both) == ["approved", "pending"]
    assert await verdicts(pool, approval.id) == ["ask", "voted", "approved"]


async def test_a_yes_against_a_no_at_once_is_one_of_them(desk: Desk, make_desk: MakeDesk, policy: Policy) -> None:
    approval = (await desk.ask(subject(policy))).approval
    await asyncio.gather(yes(desk, approval, "anna"), no(make_desk(), approval, "ben"), return_exceptions=True)
    found = await desk.get(approval.id)
    assert (len(found.votes), found.standing) in {(1, "approved"), (1, "denied")}


async def test_eight_workers_at_once_are_one_claim(desk: Desk, policy: Policy, pool: Pool) -> None:
    await yes(desk, (await desk.ask(subject(policy))).approval)
    claim = "SELECT id FROM work_claim(ARRAY['approved_call'], $1, interval '1 minute')"
    claims = await asyncio.gather(*(pool.fetchval(claim, f"worker {n}") for n in range(8)))
    assert len([each for each in claims if each]) == 1


async def test_a_yes_is_used_once(desk: Desk, policy: Policy, pool: Pool) -> None:
    approval = await yes(desk, (await desk.ask(subject(policy))).approval)
    claim = "SELECT id FROM work_claim(ARRAY['approved_call'], 'w', interval '1 minute')"
    assert await pool.fetchval(claim) == approval.id
    await pool.execute(
        "UPDATE work SET state = 'succeeded', finished_at = clock_timestamp(), lease_until = NULL WHERE id = $1",
        approval.id,
    )
    with pytest.raises(Conflict, match="approved and carried out"):
        await yes(desk, approval, "ben")
    assert await pool.fetchval(claim) is None
    assert await desk.take(approval.id)
    again = await desk.ask(subject(policy))
    assert (again.approval.id != approval.id, again.approval.standing) == (True, "pending")


async def void(desk: Desk, approval: Approval, why: str) -> None:
    """The vote is refused, and nobody can say yes to it any more."""
    with pytest.raises(Conflict, match=why):
        await yes(desk, approval, "anna")
    found = await desk.get(approval.id)
    assert (found.standing, found.decided_by, found.votes) == ("cancelled", "service:body-broker", ())
    assert why in (found.why or "")
    assert (await queue.get(desk.pool, approval.id, owner=None)).state == "cancelled"
    assert await verdicts(desk.pool, approval.id) == ["ask", "cancelled", "refused"]


async def test_a_rule_that_fired_and_was_changed_voids_it(
    desk: Desk, make_desk: MakeDesk, policy: Policy, edited: Edited
) -> None:
    approval = (await desk.ask(subject(policy))).approval
    changed = await edited('@approvers("sre,admin")\n@ttl("15m")', '@approvers("sre,admin,art")\n@ttl("15m")')
    await void(make_desk(policy=changed), approval, "The rule writes-need-approval, which asked for it, was changed")


WRITES = 'forbid (principal, action in Hub::Action::"write", resource)\nunless {\n  context has approval &&'


@pytest.mark.parametrize(
    "condition",
    [
        WRITES.replace("\nunless", "\nwhen { context.depth < 9 }\nunless"),
        WRITES.replace("context has", "context.depth < 9 && context has"),
    ],
    ids=["when", "unless"],
)
async def test_a_rule_that_fired_and_whose_condition_alone_was_changed_voids_it(
    desk: Desk, make_desk: MakeDesk, policy: Policy, edited: Edited, condition: str
) -> None:
    approval = (await desk.ask(subject(policy))).approval
    changed = await edited(WRITES, condition)
    await void(make_desk(policy=changed), approval, "The rule writes-need-approval, which asked for it, was changed")


async def test_a_rule_that_fired_and_is_gone_voids_it(
    desk: Desk, make_desk: MakeDesk, policy: Policy, edited: Edited
) -> None:
    approval = (await desk.ask(subject(policy))).approval
    gone = await edited('@id("writes-need-approval")', '@id("writes-want-approval")')
    await void(make_desk(policy=gone), approval, "The rule writes-need-approval, which asked for it, is gone")


async def test_a_rule_that_asks_only_now_voids_it(
    desk: Desk, make_desk: MakeDesk, policy: Policy, edited: Edited
) -> None:
    approval = (await desk.ask(subject(policy))).approval
    more = await edited(
        studio="""
        @id("lore-is-arts") @approval("slack") @approvers("art") @quorum("1")
        forbid (principal, action == Hub::Action::"ingest", resource)
        unless { context has approval && context.approval.groups.contains("art") };"""
    )
    await void(make_desk(policy=more), approval, "The rule lore-is-arts asks for it too now")


async def test_another_definition_of_the_tool_voids_it(desk: Desk, make_desk: MakeDesk, policy: Policy) -> None:
    approval = (await desk.ask(subject(policy))).approval
    changed = make_desk(definitions={**DEFINITIONS, "ingest": "another"})
    await void(changed, approval, "The tool ingest is defined otherwise")


async def test_a_tool_that_is_gone_voids_it(desk: Desk, make_desk: MakeDesk, policy: Policy) -> None:
    approval = (await desk.ask(subject(policy))).approval
    await void(make_desk(definitions={}), approval, "The tool ingest is no longer there")


async def test_a_no_counts_for_what_is_void_too(desk: Desk, make_desk: MakeDesk, policy: Policy) -> None:
    approval = (await desk.ask(subject(policy))).approval
    assert (await no(make_desk(definitions={}), approval)).standing == "denied"


async def test_an_unrelated_edit_of_the_policies_voids_nothing(
    desk: Desk, make_desk: MakeDesk, policy: Policy, edited: Edited
) -> None:
    approval = (await desk.ask(subject(policy))).approval
    other = await edited('@ttl("1h")', '@ttl("2h")')
    assert other.digest != policy.digest
    assert (await yes(make_desk(policy=other), approval)).standing == "approved"


async def test_what_the_policy_refuses_by_now_nobody_can_allow(
    desk: Desk, make_desk: MakeDesk, policy: Policy, edited: Edited
) -> None:
    approval = (await desk.ask(subject(policy))).approval
    frozen = await edited(
        studio='@id("freeze") forbid (principal, action == Hub::Action::"ingest", resource) when { context.depth >= 0 };'
    )
    with pytest.raises(Denied, match="now refuses ingest by rule freeze") as refusal:
        await yes(make_desk(policy=frozen), approval)
    assert refusal.value.details == {"rules": ["freeze"]}
    assert (await desk.get(approval.id)).votes == ()
    assert (await yes(desk, approval)).standing == "approved"  # a hub that has not read the new policy yet


async def test_who_lost_the_role_that_asked_is_refused_at_the_vote(
    desk: Desk, make_desk: MakeDesk, policy: Policy, edited: Edited
) -> None:
    approval = (await desk.ask(subject(policy, chain=("person:dora",)))).approval
    without = await edited(
        'Hub::Action::"queued", Hub::Action::"write"\n  ],\n  resource\n);\n\n@id("engineer")',
        'Hub::Action::"queued"\n  ],\n  resource\n);\n\n@id("engineer")',
    )
    with pytest.raises(Denied, match="default-deny:write"):
        await yes(make_desk(policy=without), approval)


async def test_what_the_audit_does_not_take_does_not_happen(
    desk: Desk, make_desk: MakeDesk, policy: Policy, pool: Pool
) -> None:
    approval = (await desk.ask(subject(policy))).approval
    async with open_auditor(pool, KEY) as closed:
        pass
    deaf = make_desk(auditor=closed)
    for act in (
        yes(deaf, approval),
        deaf.ask(subject(policy, count=2)),
        deaf.cancel(approval.id, caller=caller(BRONZE)),
    ):
        with pytest.raises(Unavailable):
            await act
    found = await desk.get(approval.id)
    assert (found.standing, found.votes, await desk.count_pending()) == ("pending", (), 1)
    assert (await queue.get(pool, approval.id, owner=None)).state == "waiting"


async def test_until_the_audit_has_it_nobody_is_asked_and_no_vote_counts(
    desk: Desk, policy: Policy, pool: Pool
) -> None:
    approval = (await desk.ask(subject(policy))).approval
    blocked = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
    async with pool.acquire() as other, other.transaction():
        await other.execute("LOCK TABLE audit_record IN SHARE MODE")
        voted = asyncio.create_task(yes(desk, approval))
        asked = asyncio.create_task(desk.ask(subject(policy, count=2)))
        await wait_until(lambda: pool.fetchval(blocked), "the audit waits")
        for _ in range(50):  # time enough for what would not wait
            assert await pool.fetchval("SELECT count(*) FROM approval") == 1
            assert await pool.fetchval("SELECT count(*) FROM approval_vote") == 0
        assert (voted.done(), asked.done()) == (False, False)
    assert ((await voted).standing, (await asked).joined) == ("approved", False)
    assert await pool.fetchval("SELECT count(*) FROM approval") == 2


async def test_every_refusal_says_what_to_do_next_and_is_recorded(desk: Desk, policy: Policy, pool: Pool) -> None:
    approval = (await desk.ask(subject(policy))).approval
    with pytest.raises(Denied) as refusal:
        await yes(desk, approval, "eve")
    assert "approvers.toml" in refusal.value.next_step
    record = (await records(pool, approval.id))[-1]
    assert (record.verdict, record.requester, record.details["code"]) == ("refused", "person:eve", "denied")
