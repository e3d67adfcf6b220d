"""Saying what became of an effect that nobody knows of: who may, what stays on record, and what its requester is told."""

from __future__ import annotations

from dataclasses import replace

import pytest

from approvals import voting
from approvals.desk import Desk
from approvals.model import Approval
from body_broker.errors import Denied
from body_broker.storage.postgres import Pool
from body_broker.work.model import Verdict
from policies.engine import Policy
from tests.approvals.scene import ANNA, records, subject, yes


async def unknown(desk: Desk, policy: Policy, chain: tuple[str, ...] = ("tier:bronze",)) -> Approval:
    """An approved call whose worker was killed inside its effect."""
    approval = (await desk.ask(subject(policy, "publish", chain))).approval
    approval = await yes(desk, approval, "anna", "mfa") if chain == ANNA else await yes(desk, approval)
    await desk.pool.execute(
        "UPDATE work SET open_effect = 'call', state = 'unknown', lease_until = NULL WHERE id = $1", approval.id
    )
    return await desk.get(approval.id)


async def test_what_a_person_found_not_to_have_happened_is_told_with_their_note(desk: Desk, policy: Policy) -> None:
    approval = await unknown(desk, policy)
    settled = await desk.settle(approval.id, by="person:ben", verdict="failed", note="It never arrived.")
    assert (settled.standing, settled.error["code"]) == ("failed", "conflict")
    assert settled.error["message"].endswith("person:ben looked and found so. They say: It never arrived.")
    assert settled.error["next_step"].startswith("Make the call again")


async def test_who_found_that_it_had_happened_stands_on_the_approval(desk: Desk, policy: Policy) -> None:
    approval = await unknown(desk, policy)
    settled = await desk.settle(approval.id, by="person:ben", verdict="succeeded", note="It is there.")
    assert (settled.standing, settled.result) == ("done", None)
    assert (settled.finding["by"], settled.finding["verdict"]) == ("person:ben", "succeeded")


async def test_a_person_alone_settles_and_repeats_what_their_own_factor_allowed(desk: Desk, policy: Policy) -> None:
    approval = await unknown(desk, policy, ANNA)
    settled = await desk.settle(approval.id, by="person:anna", verdict="again", note="Nothing is there.")
    assert settled.standing == "approved"


@pytest.mark.parametrize("verdict", ["succeeded", "failed", "again"])
async def test_nobody_settles_their_own_request_where_a_rule_wanted_somebody_else(
    desk: Desk, policy: Policy, verdict: Verdict
) -> None:
    approval = await unknown(desk, policy, ANNA)
    strict = replace(approval, requirements=tuple(replace(r, own=False) for r in approval.requirements))
    with pytest.raises(Denied, match="who did not ask for it"):
        voting.check_settler(strict, "person:anna", frozenset({"sre"}), again=verdict == "again")


async def test_an_operator_says_what_became_of_it_and_does_not_repeat_it(desk: Desk, policy: Policy) -> None:
    approval = await unknown(desk, policy)
    with pytest.raises(Denied, match="admin, sre"):
        await desk.settle(approval.id, by="operator:root", verdict="again", note="Nothing is there.")
    settled = await desk.settle(approval.id, by="operator:root", verdict="failed", note="Nothing is there.")
    assert settled.standing == "failed"


async def test_who_may_not_settle_and_tried_is_recorded(desk: Desk, policy: Policy, pool: Pool) -> None:
    approval = await unknown(desk, policy)
    with pytest.raises(Denied):
        await desk.settle(approval.id, by="person:eve", verdict="again", note="Trust me.")
    record = (await records(pool, approval.id))[-1]
    assert (record.verdict, record.requester) == ("refused", "person:eve")
    assert (record.details["finding"], record.details["code"]) == ("again", "denied")
