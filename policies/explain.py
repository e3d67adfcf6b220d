"""Owns why a call is decided as it is, in words: what permits it, what forbids it, what would change that."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import cedarpy

from policies.cedar import anything, approval_json
from policies.decision import FACTS, Allow, Ask, Decision, Deny, Identity, Question, Requirement
from policies.schema import ROLES, TIERS

if TYPE_CHECKING:
    from policies.engine import Policy  # which offers `explain`

_OTHERS = (
    *(Identity(f"tier:{tier}") for tier in TIERS),
    Identity("service:any"),
    *(Identity("person:any", frozenset({role})) for role in ROLES),
)


@dataclass(frozen=True, slots=True)
class Finding:
    """What the rules say of one identity of the chain, each permit and forbid that holds for this call."""

    principal: str
    permits: tuple[str, ...]
    forbids: tuple[str, ...]
    error: bool


@dataclass(frozen=True, slots=True)
class Explanation:
    """A decision and its reasons.

    Attributes:
        question: What was asked.
        decision: What a call would get.
        classified: The operation's granting group, then its modifiers; empty where there is no such operation.
        findings: One for each identity of the chain.
        changes: What would change the decision, each a sentence part.
    """

    question: Question
    decision: Decision
    classified: tuple[str, ...]
    findings: tuple[Finding, ...]
    changes: tuple[str, ...]

    def render(self) -> str:
        """Lines for a terminal; nothing of the arguments is repeated."""
        who = " > ".join(identity.principal for identity in self.question.identities)
        lines = [f"{who} -> {self.question.action}: {_outcome(self.decision)}"]
        if self.classified:
            lines.append(f"  is in {self.classified[0]}" + "".join(f", {word}" for word in self.classified[1:]))
        for finding in self.findings:
            lines += [
                f"  {finding.principal}",
                f"    permitted by: {_names(finding.permits) or 'nothing'}",
                f"    held back by: {_names(finding.forbids) or 'nothing'}",
            ]
            if finding.error:
                lines.append("    the policies could not be evaluated, which is a no")
        if isinstance(self.decision, Ask):
            lines += [f"  {line}" for line in map(_request, self.decision.requirements)]
        return "\n".join([*lines, *(f"  otherwise: {change}" for change in self.changes)])


def explain(policy: Policy, question: Question) -> Explanation:
    """Why the policy decides this call as it does."""
    entry, decision = policy.catalogue.entries.get(question.action), policy.decide(question)
    if entry is None:
        return Explanation(question, decision, (), (), ())
    findings: list[Finding] = []
    for identity in question.identities:
        permits = policy.judge(identity, question, permits=True)
        forbids = policy.judge(identity, question, permits=False)
        error = permits.error or forbids.error
        findings.append(Finding(identity.principal, permits.rules, forbids.rules, error))
    return Explanation(
        question=question,
        decision=decision,
        classified=(entry.group, *sorted(entry.modifiers)),
        findings=tuple(findings),
        changes=() if isinstance(decision, Allow) else tuple(_changes(policy, question, decision)),
    )


def _changes(policy: Policy, question: Question, decision: Decision) -> Iterator[str]:
    variants = {
        "in a session without taint": question._replace(tainted=False),
        "not so deep in calls that cause calls": question._replace(depth=0),
        **{f"were the fact {fact} established": question._replace(facts=question.facts | {fact}) for fact in FACTS},
    }
    for words, variant in variants.items():
        if _rank(found := policy.decide(variant)) > _rank(decision):
            yield f"{words}: {_outcome(found)}"
    if isinstance(decision, Deny) and (read := _read(policy, question)):
        yield f"with another value of {read}: may be possible"
    by_outcome: dict[str, list[str]] = {}
    for other in _OTHERS:
        if _rank(found := policy.decide(question._replace(identities=(other,)))) > _rank(decision):
            by_outcome.setdefault(type(found).__name__.lower(), []).append(_label(other))
    for outcome, names in by_outcome.items():
        yield f"as {_names(names)}: {outcome}"


def _read(policy: Policy, question: Question) -> str:
    """The arguments of this operation that rules read, where other values of them might not be denied."""
    read = {name for rule in policy.rules.values() for name in rule.reads.arguments}
    names = [a.name for a in policy.catalogue.entries[question.action].attributes if a.name in read]
    context = anything(
        tainted=question.tainted,
        depth=question.depth,
        history=sorted(question.history),
        facts={fact: fact in question.facts for fact in FACTS},
        approval=approval_json(policy.best_approval, alone=False),
    )
    possible = all(
        policy.foresee(question.action, identity, context) != cedarpy.Decision.Deny for identity in question.identities
    )
    return _names(names) if possible else ""


def _rank(decision: Decision) -> int:
    return 2 if isinstance(decision, Allow) else 1 if isinstance(decision, Ask) else 0


def _outcome(decision: Decision) -> str:
    return f"{type(decision).__name__.lower()} ({_names(decision.rules)})"


def _request(requirement: Requirement) -> str:
    own = ", or the asker's own second factor" if requirement.own else ""
    return (
        f"{requirement.rule} asks {requirement.quorum} of {_names(requirement.approvers)} "
        f"through {' or '.join(requirement.via)} within {requirement.ttl_s} s{own}"
    )


def _label(identity: Identity) -> str:
    kind, _, name = identity.principal.partition(":")
    return name if kind == "tier" else next(iter(identity.roles), kind)


def _names(names: tuple[str, ...] | list[str]) -> str:
    return ", ".join(names)
