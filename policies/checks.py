"""Owns what is proved of policy files before any call: they fit the schema, and every approval opens its own gate."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace

import cedarpy

from policies.catalogue import Catalogue
from policies.cedar import RuleSet, anything, approval_json, entities_of, validate
from policies.decision import Approval, Requirement
from policies.probes import PROBES, with_probes
from policies.reads import reads_approval
from policies.rules import Rule, Source, fault
from policies.schema import emit

_EVERYTHING = {"op": "All"}


def check_rules(files: Sequence[Source], rules: Sequence[Rule], catalogue: Catalogue) -> None:
    """Returns where the rules may be used.

    They are checked against the operations and the probes: a rule may speak of a group that no operation is in yet.

    Raises:
        PolicyError: Two rules share an @id, Cedar's validator refuses one, one reads an argument that no operation has, or
            the approval that one asks for would not satisfy it.
    """
    known = with_probes(catalogue)
    _check_ids(rules)
    schema = cedarpy.Schema.from_str(emit(known))
    for source in files:
        _validate(source, schema)
    arguments = {attribute.name for entry in known.entries.values() for attribute in entry.attributes}
    nobody = entities_of([], schema)
    for rule in rules:
        if strange := sorted(rule.reads.arguments - arguments):
            raise fault(rule.file, rule.id, f"reads the argument {strange[0]}, which no operation has")
        if rule.requirement is not None:
            _check_promises(rule, rule.requirement, nobody)


def _check_ids(rules: Iterable[Rule]) -> None:
    for name, times in Counter(rule.id for rule in rules).items():
        if times > 1:
            places = sorted({rule.file for rule in rules if rule.id == name})
            raise fault(" and ".join(places), name, "has an @id that another rule has too")


def _validate(source: Source, schema: cedarpy.Schema) -> None:
    rule, problems = validate(source.text, schema)
    if problems:
        raise fault(source.file, rule, "does not fit the schema", problems)


def promises(requirement: Requirement) -> list[Approval]:
    """Each approval that the annotations of a rule promise to be enough, the smallest ones."""
    found = [
        Approval(frozenset({channel}), requirement.quorum, frozenset({group}))
        for channel in requirement.via
        for group in requirement.approvers
    ]
    return [*found, Approval(frozenset({"mfa"}), 0, frozenset(), own=True)] if requirement.own else found


def _check_promises(rule: Rule, requirement: Requirement, nobody: cedarpy.Entities) -> None:
    gate = [condition for condition in rule.body["conditions"] if reads_approval(condition)]
    open_scope = dict.fromkeys(("principal", "action", "resource"), _EVERYTHING)
    held = replace(rule, body={**rule.body, **open_scope, "conditions": gate})
    permit = replace(rule, id="permit", body={**held.body, "effect": "permit", "conditions": []})
    alone = RuleSet([held, permit])
    for approval in promises(requirement):
        context = anything(approval=approval_json(approval, alone=True))
        if alone.foresee(None, PROBES[0], context, nobody) == cedarpy.Decision.Deny:
            who = "the asker's own second factor" if approval.own else f"{approval.count} of {_one(approval.groups)}"
            raise fault(rule.file, rule.id, f"would not be satisfied by {who} through {_one(approval.via)}, as its "
                        "annotations promise")  # fmt: skip


def _one(names: frozenset[str]) -> str:
    return ", ".join(sorted(names))
