"""Which yeses count at the moment that decides: of people who still belong to the group, each rule for itself, no rule unheard of."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from approvals import voting
from approvals.desk import Desk
from approvals.people import People, load_people
from body_broker.errors import Conflict, Denied
from policies.catalogue import Catalogue
from policies.engine import Policy
from tests.approvals.conftest import MakeDesk
from tests.approvals.scene import APPROVERS, BRONZE, question, subject, yes

# Two yeses of whom one is of sre satisfy its condition, and not its quorum.
TWO_OF_SRE = """
@id("removing-needs-two-of-sre") @approval("slack,mfa") @approvers("sre") @quorum("2") @ttl("10m")
forbid (principal, action == Hub::Action::"remove", resource)
unless {
  context has approval && context.approval.count >= 2 && context.approval.groups.contains("sre") &&
  context.approval.via.containsAny(["slack", "mfa"])
};
"""


@pytest.fixture
async def stricter(catalogue: Catalogue, tmp_path: Path) -> Policy:
    def load() -> Policy:
        (tmp_path / "studio.cedar").write_text(TWO_OF_SRE, encoding="utf-8")
        return Policy.load(catalogue, tmp_path)

    return await asyncio.to_thread(load)


@pytest.fixture
async def without_ben(tmp_path: Path) -> People:
    """The file of approvers after Ben has left the group."""

    def load() -> People:
        file = tmp_path / "later.toml"
        file.write_text(APPROVERS.replace('[people.ben]\ngroups = ["sre"]', "[people.ben]"), encoding="utf-8")
        return load_people(file)

    return await asyncio.to_thread(load)


async def test_a_rule_that_did_not_ask_voids_it_even_where_the_yeses_would_satisfy_its_condition(
    desk: Desk, make_desk: MakeDesk, policy: Policy, stricter: Policy
) -> None:
    approval = await yes(desk, (await desk.ask(subject(policy, "remove"))).approval, "anna")
    with pytest.raises(Conflict, match="removing-needs-two-of-sre asks for it too now"):
        await yes(make_desk(policy=stricter), approval, "cleo")
    assert (await desk.get(approval.id)).standing == "cancelled"


async def test_at_execution_too_a_rule_that_did_not_ask_voids_it(desk: Desk, policy: Policy, stricter: Policy) -> None:
    approval = await yes(desk, (await desk.ask(subject(policy, "remove"))).approval, "anna")
    approval = await yes(desk, approval, "cleo")
    asked = question("remove", BRONZE, approval.values())
    voting.check_given(approval, policy, asked, desk.given(approval))
    with pytest.raises(voting.Void, match="removing-needs-two-of-sre"):
        voting.check_given(approval, stricter, asked, desk.given(approval))


async def test_at_execution_each_rule_is_counted_for_itself(make_desk: MakeDesk, stricter: Policy) -> None:
    desk = make_desk(policy=stricter)
    approval = await yes(desk, (await desk.ask(subject(stricter, "remove"))).approval, "anna")
    approval = await yes(desk, approval, "cleo")
    assert approval.standing == "pending"
    asked = question("remove", BRONZE, approval.values())
    with pytest.raises(Denied, match="not allowed now by rule removing-needs-two-of-sre"):
        voting.check_given(approval, stricter, asked, desk.given(approval))


async def test_the_yes_of_somebody_who_has_left_the_group_no_longer_counts(
    desk: Desk, make_desk: MakeDesk, policy: Policy, without_ben: People
) -> None:
    approval = await yes(desk, (await desk.ask(subject(policy, "remove"))).approval, "ben")
    later = make_desk(people=without_ben)
    approval = await yes(later, approval, "anna")
    assert approval.standing == "pending"
    assert [each.id for each in await later.waiting_for("person:cleo")] == [approval.id]
    assert (await yes(later, approval, "cleo")).standing == "approved"


async def test_at_execution_the_yes_of_somebody_who_has_left_the_group_is_not_given(
    desk: Desk, make_desk: MakeDesk, policy: Policy, without_ben: People
) -> None:
    approval = await yes(desk, (await desk.ask(subject(policy))).approval, "ben")
    later = make_desk(people=without_ben)
    found = await later.get(approval.id)
    asked = question("ingest", BRONZE, found.values())
    with pytest.raises(Denied, match="not allowed now by rule writes-need-approval"):
        voting.check_given(found, policy, asked, later.given(found))
