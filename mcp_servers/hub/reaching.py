"""Owns whether anybody could say yes to a request at all, and what would mend it where nobody can."""

from __future__ import annotations

from dataclasses import dataclass

from approvals.model import Approval
from approvals.people import PEOPLE_FILE
from mcp_servers.hub.approving import Approvals
from policies.decision import Requirement


@dataclass(frozen=True, slots=True)
class Lacking:
    """Why nobody can say yes, and what to do: two sentences."""

    what: str
    mend: str


async def missing(approvals: Approvals, approval: Approval) -> Lacking | None:
    """What keeps anybody from ever saying yes to one of its rules; None where somebody can."""
    for requirement in approval.requirements:
        if (found := await _missing(approvals, approval, requirement)) is not None:
            return found
    return None


async def _missing(approvals: Approvals, approval: Approval, requirement: Requirement) -> Lacking | None:
    own = requirement.own and approval.alone
    if own and await _has_factor(approvals, approval.asker):
        return None
    groups = " or ".join(requirement.approvers)
    others = approvals.people.in_groups(frozenset(requirement.approvers)) - set(approval.chain)
    mend_own = f"`body-broker mfa enroll --as {approval.asker}` lets you confirm it yourself. " if own else ""
    if len(others) < requirement.quorum:
        named = "nobody" if not others else f"{len(others)} of the {requirement.quorum} people needed"
        return Lacking(
            f"{PEOPLE_FILE} names {named} of the group {groups}, beside who asks.",
            f"{mend_own}{'Or an' if own else 'An'} operator adds people to {PEOPLE_FILE} and starts the hub again.",
        )
    reached = 0
    for person in sorted(others):
        in_slack = approvals.asked_in_slack and approvals.people.persons[person].slack is not None
        if ("slack" in requirement.via and in_slack) or await _has_factor(approvals, person):
            reached += 1
        if reached >= requirement.quorum:
            return None
    example = min(others)
    return Lacking(
        f"too few people of the group {groups} can be asked: Slack does not reach them, and they have no second factor.",
        f"{mend_own}{'Or they' if own else 'They'} enrol one: `body-broker mfa enroll --as {example}`.",
    )


async def _has_factor(approvals: Approvals, person: str) -> bool:
    return any(each.standing == "counts" for each in await approvals.factors.of(person))
