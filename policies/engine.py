"""Owns the decision: policies loaded and checked once, then Allow, Deny or Ask for each call, remembered by what they read."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple, Self, cast

import cedarpy
import orjson

from body_broker.calls import Json
from body_broker.text import digest
from policies.catalogue import Catalogue, Entry
from policies.cedar import Principal, Principals, RuleSet, Verdict, approval_json
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
    """One policy set over one catalogue; immutable but for what it remembers, until it becomes another. Make one with `load`.

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
        self._sets = _compiled(catalogue, tuple(self.rules.values()))
        self._reads = {
            entry.name: tuple(attribute for attribute in entry.attributes if attribute.name in read)
            for entry in catalogue.entries.values()
        }
        self._askable = frozenset(
            entry.name
            for entry in catalogue.entries.values()
            for rule in self.rules.values()
            if rule.requirement and (not rule.actions or rule.actions & {entry.name, entry.group, *entry.modifiers})
        )
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

    def become(self, other: Self) -> None:
        """Decide as `other` from now on, for everybody who holds this one: the catalogue has other rows than before.

        Call it on the event loop, which nothing decides beside.
        """
        vars(self).clear()
        vars(self).update(vars(other))

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

    def askable(self, action: str) -> bool:
        """Whether some rule may ask people about this operation; what may not be asked for needs no reason."""
        return action in self._askable

    def visible(self, identities: Sequence[Identity]) -> frozenset[str]:
        """The operations that some arguments and circumstances would let this chain call, or ask for.

        Computed once for each kind of identity. For a chain, what each of its identities sees.
        """
        if not identities:
            return frozenset()
        seen = [self._visibility.of(self.principals.find(identity)) for identity in identities]
        return seen[0] if len(seen) == 1 else seen[0].intersection(*seen[1:])

    def explain(self, question: Question) -> Explanation:
        """Why this call is decided as it is, and what would change that."""
        return explain(self, question)

    def judge(self, identity: Identity, question: Question, *, permits: bool) -> Verdict:
        """What our permits alone, or our forbids alone, say of one identity; for explanations, not for calls."""
        entry, context = self.catalogue.entries[question.action], self._context(question, question.approval)
        sets = self._sets[question.action]
        return self._ask(sets.permits if permits else sets.forbids, self.principals.find(identity), entry, context)

    def foresee(self, action: str, identity: Identity | None, context: Mapping[str, Json]) -> cedarpy.Decision:
        """What partial evaluation knows of a call of which not everything is known; for proofs, not for calls.

        Args:
            action: An operation of the catalogue.
            identity: Who; None for anybody at all.
            context: As `policies.cedar.anything` makes it.
        """
        principal = self.principals.find(identity) if identity else None
        if identity and principal is None:
            return cedarpy.Decision.Deny
        entry = self.catalogue.entries[action]
        return self._sets[action].every.foresee(principal, entry, context, self.principals.nobody)

    @cached_property
    def best_approval(self) -> Approval:
        """An approval that meets every requirement there is: with it a call gets as far as people can let it."""
        return promise(rule.requirement for rule in self.rules.values() if rule.requirement)

    @cached_property
    def _visibility(self) -> Visibility:
        rules = {name: sets.every for name, sets in self._sets.items()}
        return Visibility(rules, self.catalogue, self._reads, self.best_approval)

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
                value = _text_key(cast("list[Json]", value))
                if value is None:
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
        every = self._sets[entry.name].every
        verdicts = [self._ask(every, principal, entry, context) for principal in principals]
        if all(verdict.allowed for verdict in verdicts):
            return Allow(_unique(rule for verdict in verdicts for rule in verdict.rules))
        requirements = self._requirements(question, verdicts)
        if requirements is not None:
            promised = self._context(question, promise(requirements, question.approval))
            verdicts = [self._ask(every, principal, entry, promised) for principal in principals]
            if all(verdict.allowed for verdict in verdicts):
                return Ask(requirements)
        refused = [pair for pair in zip(principals, verdicts, strict=True) if not pair[1].allowed]
        final = [rule for principal, verdict in refused for rule in self._refusals(principal, entry, context, verdict)]
        return Deny(_unique(final or (rule for _, verdict in refused for rule in verdict.rules)))

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
        """The rules that no approval lifts: that nothing permits, and the forbids nobody can be asked about."""
        if verdict.error:
            return [POLICY_ERROR]
        final = [name for name in verdict.rules if self.rules[name].requirement is None]
        # Cedar names forbids and is silent on whether anything permits; a Deny without a forbid says it by itself.
        if verdict.rules and self._ask(self._sets[entry.name].permits, principal, entry, context).allowed:
            return final
        return [f"default-deny:{entry.group}", *final]

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
            context["approval"] = approval_json(approval, alone=_alone(question))
        try:
            return orjson.dumps(context).decode()
        except TypeError:  # orjson's own error is one: an integer beyond 64 bits, a lone surrogate
            return None


class _Sets(NamedTuple):
    every: RuleSet
    permits: RuleSet
    forbids: RuleSet


def _compiled(catalogue: Catalogue, rules: Sequence[Rule]) -> dict[str, _Sets]:
    """For each operation the rules whose action scope can meet it: half of Cedar's time goes into the others."""
    found: dict[tuple[str, ...], _Sets] = {}
    by_name: dict[str, _Sets] = {}
    for entry in catalogue.entries.values():
        known_as = {entry.name, entry.group, *entry.modifiers}
        meeting = [rule for rule in rules if not rule.actions or rule.actions & known_as]
        key = tuple(rule.id for rule in meeting)
        if key not in found:
            permits = [rule for rule in meeting if rule.permits]
            forbids = [rule for rule in meeting if not rule.permits]
            found[key] = _Sets(RuleSet(meeting), RuleSet(permits), RuleSet(forbids))
        by_name[entry.name] = found[key]
    return by_name


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


def _text_key(values: list[Json]) -> tuple[str, ...] | None:
    """A list of strings as part of a key; None where it is anything else, or long."""
    if not all(isinstance(value, str) for value in values):
        return None
    return tuple(values) if sum(map(len, values)) + len(values) <= MEMO_TEXT_MAX else None


def _alone(question: Question) -> bool:
    return len(question.identities) == 1 and question.identities[0].is_person


def _unique(rules: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(rules))
