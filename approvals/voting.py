"""Owns who may say yes or no to what, and when it is enough; pure, so that every refusal has one place and one sentence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from approvals.model import Approval, Standing, Verdict, Vote, Voter, given_by, met
from approvals.people import People
from body_broker.errors import ApprovalCancelled, Conflict, Denied
from policies.decision import Allow, Ask, Decision, Deny, Identity, Question, Requirement
from policies.decision import Approval as Given
from policies.engine import Policy

_ENDED: Mapping[Standing, str] = {
    "approved": "It has already been approved, and will run.",
    "executing": "It has already been approved, and is being carried out.",
    "done": "It has already been approved and carried out.",
    "failed": "It has already been approved; carrying it out failed.",
    "unknown": "It has already been approved; whether it was carried out is to be found out.",
    "denied": "It has already been denied.",
    "expired": "It has expired: nobody's say counts any more.",
    "cancelled": "It was cancelled before it was decided.",
}


_NOTHING_TO_DO = "There is nothing more to do here."


class Void(ApprovalCancelled):
    """What people were asked is no longer what would happen: nobody can ever say yes to it."""


@dataclass(frozen=True, slots=True)
class Ballot:
    """One vote as it is handed in.

    Attributes:
        shown: Digest of what the voter was shown.
        voter: Who, as the channel proved them.
        verdict: What they say.
        reason: Why, clean and bounded.
    """

    shown: str
    voter: Voter
    verdict: Verdict
    reason: str | None


def unmet(approval: Approval, wanted: Sequence[Requirement] = ()) -> tuple[Requirement, ...]:
    """The rules that still want something; `wanted` are those that ask now, where they are not the approval's own."""
    return tuple(r for r in wanted or approval.requirements if not met(r, approval.votes, asker=approval.own_asker))


def check_standing(approval: Approval, policy: Policy, definitions: Mapping[str, str]) -> None:
    """Return where the tool is defined as it was asked for, and each rule that fired is still the same.

    Raises:
        Void: It is not; the sentence says what changed. An unrelated edit of the policies changes nothing.
    """
    present = definitions.get(approval.tool)
    if present is None:
        raise _void(f"The tool {approval.tool} is no longer there.")
    if present != approval.definition:
        raise _void(f"The tool {approval.tool} is defined otherwise than when it was asked for.")
    for requirement in approval.requirements:
        rule = policy.rules.get(requirement.rule)
        if rule is None or rule.requirement is None:
            raise _void(f"The rule {requirement.rule}, which asked for it, is gone.")
        # Whole, not by its digest alone: the row of an approval is no place to lower a quorum.
        if replace(rule.requirement, own=rule.requirement.own and approval.alone) != requirement:
            raise _void(f"The rule {requirement.rule}, which asked for it, was changed.")


def check_shown(approval: Approval, digest: str) -> None:
    """Return where what the voter was shown is this very call, and it still waits.

    Raises:
        Conflict: It is another call, or was decided, or is past its time.
    """
    if digest != approval.digest:
        raise Conflict(
            "What you were shown is another call than this approval is for.",
            next_step="Open the approval again, and compare its fingerprint.",
        )
    if approval.standing != "pending":
        raise Conflict(_ENDED[approval.standing], next_step=_NOTHING_TO_DO)


def too_late() -> Conflict:
    """The refusal of a vote on what has expired."""
    return Conflict(_ENDED["expired"], next_step=_NOTHING_TO_DO)


def check_voter(approval: Approval, voter: Voter, verdict: Verdict, groups: frozenset[str]) -> None:
    """Return where this person may say this, by this way.

    Args:
        approval: Pending.
        voter: As the channel proved them.
        verdict: What they say.
        groups: The approver groups they belong to now.

    Raises:
        Denied: They may not.
        Conflict: They have already had their say.
    """
    if said := next((vote.verdict for vote in approval.votes if vote.voter == voter.person), None):
        raise Conflict(
            f"You have already said {'yes' if said == 'approve' else 'no'} to this; a person has one vote.",
            next_step="It now needs somebody else.",
        )
    if voter.via != "slack" and voter.factor is None:
        raise Denied(
            "Here a yes or no needs your second factor, and none was given.",
            next_step="Give your code, or use your passkey.",
        )
    if voter.person in approval.chain:
        _check_own(approval, voter)
    else:
        _check_other(approval, voter, verdict, groups)


def _check_own(approval: Approval, voter: Voter) -> None:
    if voter.person != approval.own_asker:
        raise Denied(
            "This was asked for on your behalf, and nobody decides their own request.",
            next_step="Somebody else of the approvers decides it; you can take it back with cancel_approval.",
        )
    own = [r for r in unmet(approval) if r.own]
    if not own:
        raise Denied(
            "This is your own request, and the rule wants somebody else's yes.",
            next_step="Somebody else of the approvers decides it; you can take it back with cancel_approval.",
        )
    if voter.factor is None or not any(voter.via in r.via for r in own):
        raise Denied(
            "This is your own request: only your second factor counts for it, on the approval page or where the rule says local.",
            next_step="Open the approval page and use your passkey or your code.",
        )


def _check_other(approval: Approval, voter: Voter, verdict: Verdict, groups: frozenset[str]) -> None:
    # A no counts from whoever may say yes to any of it; a yes only where it brings the call nearer.
    asked = unmet(approval) if verdict == "approve" else approval.requirements
    theirs = [r for r in asked if not groups.isdisjoint(r.approvers)]
    if not theirs:
        wanted = sorted({group for r in asked for group in r.approvers})
        raise Denied(
            f"This needs somebody of {', '.join(wanted)}, and you are in none of these groups.",
            next_step="Leave it to them; approvers.toml says who belongs to which group.",
            details={"approvers": wanted},
        )
    if not any(voter.via in r.via for r in theirs):
        ways = sorted({via for r in theirs for via in r.via})
        raise Denied(
            f"The rule {theirs[0].rule} does not take a decision by {voter.via}, only by {' or '.join(ways)}.",
            next_step="Open the approval page." if "mfa" in ways else "Decide it in Slack.",
            details={"via": ways},
        )


def with_vote(approval: Approval, ballot: Ballot, *, groups: frozenset[str], at: datetime) -> tuple[Vote, ...]:
    """The votes, and this one."""
    voter = ballot.voter
    vote = Vote(
        voter=voter.person,
        verdict=ballot.verdict,
        via=voter.via,
        factor=voter.factor,
        groups=groups,
        reason=ballot.reason,
        at=at,
    )
    return (*approval.votes, vote)


def is_enough(approval: Approval, votes: Sequence[Vote], policy: Policy) -> bool:
    """Whether these votes let the call run: each rule has what it wants, and the whole policy, asked with them, says Allow.

    It is asked with the roles and facts of when the call was made; the executor asks again with those of then. Each rule that asks
    now is counted for itself: together the votes could satisfy two rules of which neither has what it wants.

    Raises:
        Denied: The policy now refuses the call, whatever people say.
        Void: A rule that did not ask then asks now: the call must be asked for anew.
    """
    asker = approval.own_asker
    question = Question(
        action=approval.tool,
        identities=tuple(Identity(p, approval.roles.get(p, frozenset())) for p in approval.chain),
        arguments=approval.values(),
        tainted=approval.tainted,
        depth=approval.depth,
        history=approval.history,
        facts=approval.facts,
    )
    now = wanted_now(approval, policy.decide(question))
    decision = policy.decide(question._replace(approval=given_by(votes, asker=asker)))
    if isinstance(decision, Deny):
        rules = list(decision.rules)
        raise Denied(
            f"The policy now refuses {approval.tool} by rule {', '.join(rules)}, whatever people say.",
            next_step="`body-broker policy explain` shows the rule.",
            details={"rules": rules},
        )
    everybody = all(met(r, votes, asker=asker) for r in (*approval.requirements, *now))
    return everybody and isinstance(decision, Allow)


def check_given(approval: Approval, policy: Policy, question: Question, given: Given) -> None:
    """Return where the call may run now with the yeses it got; each rule that asks now is counted for itself.

    Args:
        approval: Whose votes are counted.
        policy: Of now.
        question: With the roles and facts of now, and no approval.
        given: The yeses, as the policies read them.

    Raises:
        Denied: It may not.
        Void: A rule that did not ask then asks now.
    """
    lacking = unmet(approval, wanted_now(approval, policy.decide(question)))
    decision = policy.decide(question._replace(approval=given))
    if isinstance(decision, Allow) and not lacking:
        return
    rules = [each.rule for each in lacking] if isinstance(decision, Allow) else list(decision.rules)
    raise Denied(
        f"{approval.tool} was approved, but is not allowed now by rule {', '.join(rules)}.", details={"rules": rules}
    )


def wanted_now(approval: Approval, decision: Decision) -> tuple[Requirement, ...]:
    """What the rules that ask for this call now want, by a decision that knew of no yes.

    Raises:
        Void: A rule that did not ask then asks now: the call must be asked for anew.
    """
    asks = decision.requirements if isinstance(decision, Ask) else ()
    if new := sorted({each.rule for each in asks}.difference(approval.rules)):
        raise _void(f"The rule {new[0]} asks for it too now, and did not then.")
    return asks


def as_now(approval: Approval, people: People) -> Approval:
    """The approval with each vote counting for those of its groups that the voter still belongs to, as long as it has not ended."""
    if approval.ended_at is not None:
        return approval
    votes = tuple(replace(v, groups=v.groups & people.groups_of(v.voter)) for v in approval.votes)
    return replace(approval, votes=votes)


def could_help(approval: Approval, person: str, groups: frozenset[str]) -> bool:
    """Whether a yes of this person, by the right way, would bring the call nearer."""
    if person in approval.chain:
        return person == approval.own_asker and any(r.own for r in unmet(approval))
    return any(not groups.isdisjoint(r.approvers) for r in unmet(approval))


def check_settler(approval: Approval, by: str, groups: frozenset[str], *, again: bool) -> None:
    """Return where this person may say what became of an effect.

    An approver of it may, and an operator, who may not have it done again where others had to say yes. Who asked may where their
    own second factor was all that any rule wanted, and have it done again where it was they who said yes.

    Raises:
        Conflict: Nothing about it is unknown.
        Denied: They may not.
    """
    if approval.standing != "unknown":
        raise Conflict(f"Nothing is to be settled: it is {approval.standing}.", next_step=_NOTHING_TO_DO)
    own = all(each.own for each in approval.requirements)
    if own and by == approval.own_asker and (not again or approval.decided_by == by):
        return
    if by.startswith("operator:") and (own or not again):
        return
    approvers = {group for r in approval.requirements for group in r.approvers}
    if by in approval.chain or groups.isdisjoint(approvers):
        raise Denied(
            f"What became of it is said by somebody of {', '.join(sorted(approvers))} who did not ask for it.",
            next_step="Leave it to them.",
        )


def _void(what: str) -> Void:
    return Void(what, next_step="Make the call again: it is then asked for as it is now.")
