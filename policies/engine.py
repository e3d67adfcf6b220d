"""Owns the decision: policies loaded and checked once, then Allow, Deny or Ask for each call, remembered by what they read."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Self

import cedarpy
import orjson

from body_broker.calls import Json
from body_broker.text import digest
from policies.catalogue import Catalogue, Entry
from policies.cedar import Principal, Principals, RuleSet, Verdict
from policies.checks import check_rules
from policies.decision import FACTS, Allow, Approval, Ask, Decision, Deny, Identity, Question, Requirement
from policies.explain import Explanation, explain
from policies.rules import NO_IDENTITY, POLICY_ERROR, UNKNOWN_ACTION, Rule, parse, sources
from policies.schema import emit
from policies.visibility import Visibility

MEMO_MAX = 10_000
MEMO_TEXT_MAX = 256  # characters of one value; longer ones, which are free text, are decided each time

_NO_APPROVAL = Approval(frozenset(), 0, frozenset())


class Policy:
    """One policy set over one catalogue; immutable but for what it remembers. Make one with `load`.

    Attributes:
        catalogue: The operations it decides on.
        rules: Every rule by its @id.
        digest: SHA-256 over the rules and the schema: what audit and approvals name the policy by.
    """

    def __init__(self, catalogue: Catalogue, rules: Iterable[Rule]) -> None:
        self.catalogue = catalogue
        self.rules: Mapping[str, Rule] = MappingProxyType({rule.id: rule for rule in rules})
        read = {name for rule in self.rules.values() for name in rule.reads.arguments}
        schema_text = emit(catalogue, keep=read)
        self.digest = digest({"schema": schema_text, "rules": {name: rule.body for name, rule in self.rules.items()}})
        self._schema = cedarpy.Schema.from_str(schema_text)
        self._all = RuleSet(self.rules.values())
        self._permits = RuleSet(rule for rule in self.rules.values() if rule.permits)
        self._reads = {
            entry.name: tuple(attribute for attribute in entry.attributes if attribute.name in read)
            for entry in catalogue.entries.values()
        }
        self._reads_history = any("history" in rule.reads.context for rule in self.rules.values())
        self.principals = Principals(
            self._schema, (entity for rule in self.rules.values() for entity in rule.reads.entities)
        )
        self._memo: OrderedDict[tuple[Json, ...], Decision] = OrderedDict()

    @classmethod
    def load(cls, catalogue: Catalogue, extra_dir: Path | None = None) -> Self:
        """Our policies and a studio's own, all of them checked.

        Args:
            catalogue: Every operation of the hub.
            extra_dir: A studio's directory of .cedar files, which are added to ours.

        Raises:
            PolicyError: Anything at all is wrong with a file; it names the file and the rule, and nothing may be served.
        """
        files = sources(extra_dir)
        rules = [rule for file in files for rule in parse(file)]
        check_rules(files, rules, catalogue)
        return cls(catalogue, rules)

    def decide(self, question: Question) -> Decision:
        """Whether this call may run, may be asked for, or neither. Whatever goes wrong is a Deny, never an exception."""
        entry = self.catalogue.entries.get(question.action)
        if entry is None:
            return Deny((UNKNOWN_ACTION,))
        if not question.identities:
            return Deny((NO_IDENTITY,))
        key = self._key(question)
        if key is None:
            return self._decide(entry, question)
        try:
            found = self._memo.get(key)
        except TypeError:  # a list or object where a scalar belongs: nothing to remember
            return self._decide(entry, question)
        if found is not None:
            self._memo.move_to_end(key)
            return found
        found = self._memo[key] = self._decide(entry, question)
        if len(self._memo) > MEMO_MAX:
            self._memo.popitem(last=False)
        return found

    def visible(self, identities: Sequence[Identity]) -> frozenset[str]:
        """The operations that some arguments and circumstances would let this chain call, or ask for.

        Computed once for each kind of identity. For a chain, what each of its identities sees.
        """
        if not identities:
            return frozenset()
        return frozenset.intersection(*(self._visibility.of(self.principals.find(who)) for who in identities))

    def explain(self, question: Question) -> Explanation:
        """Why this call is decided as it is, and what would change that."""
        return explain(self, question)

    def judge(self, identity: Identity, question: Question, rules: Iterable[Rule]) -> Verdict:
        """What some of the rules alone say of one identity; for explanations, not for calls."""
        entry, context = self.catalogue.entries[question.action], self._context(question, question.approval)
        return self._ask(RuleSet(rules), self.principals.find(identity), entry, context)

    @cached_property
    def _visibility(self) -> Visibility:
        asked = [rule.requirement for rule in self.rules.values() if rule.requirement]
        return Visibility(self._all, self.catalogue, self._reads, promise(asked))

    def _key(self, question: Question) -> tuple[Json, ...] | None:
        """All that a decision hangs on; None where it is not worth or not safe to remember."""
        if question.approval is not None:
            return None
        parts: list[Json] = [
            question.identities,
            question.action,
            question.tainted,
            question.depth,
            question.facts,
            question.history if self._reads_history else None,
        ]
        for attribute in self._reads[question.action]:
            value = attribute.pick(question.arguments)
            if isinstance(value, list):
                value = tuple(value)  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]  # any JSON
                if not all(isinstance(item, str) for item in value):
                    return None
                if sum(map(len, value)) + len(value) > MEMO_TEXT_MAX:
                    return None
            elif isinstance(value, str):
                if len(value) > MEMO_TEXT_MAX:
                    return None
            elif value is not None:
                value = (value.__class__, value)  # True, 1 and 1.0 are one key otherwise, and three types to Cedar
            parts.append(value)
        return tuple(parts)

    def _decide(self, entry: Entry, question: Question) -> Decision:
        principals = [self.principals.find(identity) for identity in question.identities]
        context = self._context(question, question.approval)
        verdicts = [self._ask(self._all, principal, entry, context) for principal in principals]
        if all(verdict.allowed for verdict in verdicts):
            return Allow(_unique(rule for verdict in verdicts for rule in verdict.rules))
        requirements = self._requirements(question, verdicts)
        if requirements is not None:
            promised = self._context(question, promise(requirements, question.approval))
            verdicts = [self._ask(self._all, principal, entry, promised) for principal in principals]
            if all(verdict.allowed for verdict in verdicts):
                return Ask(requirements)
        return Deny(
            _unique(
                rule
                for principal, verdict in zip(principals, verdicts, strict=True)
                if not verdict.allowed
                for rule in self._refusals(principal, entry, context, verdict)
            )
        )

    def _requirements(self, question: Question, verdicts: list[Verdict]) -> tuple[Requirement, ...] | None:
        """What people are to be asked; None where something refuses that nobody can be asked about."""
        alone = _alone(question)
        found: dict[str, Requirement] = {}
        for verdict in verdicts:
            if verdict.error or not (verdict.allowed or verdict.rules):
                return None
            for name in () if verdict.allowed else verdict.rules:
                requirement = self.rules[name].requirement
                if requirement is None:
                    return None
                found[name] = replace(requirement, own=requirement.own and alone)
        return tuple(found.values())

    def _refusals(self, principal: Principal | None, entry: Entry, context: str | None, verdict: Verdict) -> list[str]:
        """The rules to name: no permit, and the forbids that no approval lifts."""
        if verdict.error:
            return [POLICY_ERROR]
        found = [name for name in verdict.rules if self.rules[name].requirement is None]
        if not self._ask(self._permits, principal, entry, context).allowed:
            found.insert(0, f"default-deny:{entry.group}")
        return found or list(verdict.rules)

    def _ask(self, rules: RuleSet, principal: Principal | None, entry: Entry, context: str | None) -> Verdict:
        if principal is None or context is None:
            return Verdict(allowed=False, rules=(), error=True)
        return rules.ask(principal, entry, context, self._schema)

    def _context(self, question: Question, approval: Approval | None) -> str | None:
        """The context as JSON: of the arguments those that policies read. None where it cannot be written as JSON."""
        arguments: dict[str, Json] = {}
        for attribute in self._reads[question.action]:
            value = attribute.pick(question.arguments)
            if value is not None:
                arguments[attribute.name] = value
        context: dict[str, Json] = {
            "arguments": arguments,
            "facts": {fact: fact in question.facts for fact in FACTS},
            "tainted": question.tainted,
            "depth": question.depth,
            "history": list(question.history),
        }
        if approval is not None:
            own = approval.own and _alone(question)
            context["approval"] = approval._replace(
                via=list(approval.via), groups=list(approval.groups), own=own
            )._asdict()
        try:
            return orjson.dumps(context).decode()
        except TypeError:  # orjson's own error is one: an integer beyond 64 bits, a lone surrogate
            return None


def promise(requirements: Iterable[Requirement], given: Approval | None = None) -> Approval:
    """The approval that meets these requirements, on top of the one already given."""
    found = given or _NO_APPROVAL
    for requirement in requirements:
        found = Approval(
            via=found.via.union(requirement.via),
            count=max(found.count, requirement.quorum),
            groups=found.groups.union(requirement.approvers),
            own=found.own,
        )
    return found


def _alone(question: Question) -> bool:
    return len(question.identities) == 1 and question.identities[0].is_person


def _unique(rules: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(rules))
