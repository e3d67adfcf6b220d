from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, cast

import cedarpy
import pytest

from policies.catalogue import GROUPS, Catalogue
from policies.cedar import validate
from policies.decision import Question
from policies.engine import Policy
from policies.probes import with_probes
from policies.reads import actions_named, read_by
from policies.rules import Rule
from policies.schema import emit
from tests.policies.oracle import IDENTITIES, oracle, outcome, questions
from tests.policies.rooms import WIDE

CATALOGUE = with_probes(Catalogue(WIDE))
SCHEMA = cedarpy.Schema.from_str(emit(CATALOGUE))
RULES = Policy.load(CATALOGUE).rules

MARKS = {entry.name: {entry.group, *entry.modifiers} for entry in CATALOGUE.entries.values()}

# Shuffled, so that a mutant meets the question that tells it apart early; always the same order.
CASES = [(asked, oracle(asked)) for identity in IDENTITIES for asked in questions((identity,))]
random.Random(1).shuffle(CASES)  # noqa: S311 - an order, not a secret

# Mutants that decide as the rule does, each with its reason.
EQUIVALENT = {
    **{
        f"engineer-scans-registered: with {group}": "the rule `engineer` permits it already"
        for group in ("state_read", "retrieval", "config_read", "security_read", "draft", "queued", "write")
    },
    **{
        f"writers-ask-for-their-kinds: with {group}": "all three roles have it already"
        for group in ("retrieval", "draft", "write")
    },
    **{
        f"hub-asks-about-upstreams: with {group}": "its condition names one tool, which is in none of these"
        for group in GROUPS
        if group not in {"own", "admin_change"}
    },
}

TYPES = ("Hub::Tier", "Hub::Service", "Hub::Person")
NAMES = {"Hub::Tier": ("gold", "silver", "bronze"), "Hub::Service": ("hub", "game")}
ROLES = ("designer", "engineer", "sre", "security", "admin")
ACTIONS = {"Hub::Action": ("probe:approve_change", "accept_upstream_definition", "write", "destructive")}
NEIGHBOURS = {
    ">": ">=",
    ">=": ">",
    "<": "<=",
    "<=": "<",
    "==": "!=",
    "!=": "==",
    "containsAny": "containsAll",
    "containsAll": "containsAny",
    "&&": "||",
    "||": "&&",
}

Case = tuple[Question, tuple[str, frozenset[str]]]
Mutant = tuple[str, dict[str, Any]]


def mutants(body: dict[str, Any]) -> Iterator[Mutant]:
    """Every way this rule could be weakened or mistyped by one place."""
    yield from conditions(body)
    yield from scopes(body)
    for place, node in nodes(body["conditions"], "conditions"):
        for name, change in changes(node):
            mutant = copy.deepcopy(body)
            target, key = find(mutant, place)
            target[key] = change(target[key])
            yield f"{name} at {place}", mutant


def conditions(body: dict[str, Any]) -> Iterator[Mutant]:
    for index, condition in enumerate(body["conditions"]):
        left = [c for i, c in enumerate(body["conditions"]) if i != index]
        yield f"without {condition['kind']} {index}", {**body, "conditions": left}


def scopes(body: dict[str, Any]) -> Iterator[Mutant]:
    if body["principal"]["op"] != "All":
        yield "for every principal", {**body, "principal": {"op": "All"}}
    for who, principal in others(body["principal"]):
        yield f"for {who}", {**body, "principal": principal}
    yield "turned round", {**body, "effect": "forbid" if body["effect"] == "permit" else "permit"}
    named = list(actions_named(body))
    for name in named if len(named) > 1 else []:
        yield f"without {name}", {**body, "action": action([n for n in named if n != name])}
    if body["effect"] == "permit":
        for group in GROUPS:
            if group not in [*named, "own"]:  # which everyone has
                yield f"with {group}", {**body, "action": action([*named, group])}
    elif named:
        yield "for every action", {**body, "action": {"op": "All"}}


def others(principal: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The same kind of scope for somebody else."""
    if principal["op"] == "is":
        yield from ((kind, {**principal, "entity_type": kind}) for kind in TYPES if kind != principal["entity_type"])
        return
    entity = principal.get("entity")
    known = {"in": {"Hub::Role": ROLES}, "==": NAMES}.get(principal["op"], {})
    for kind, names in known.items():
        for name in names:
            other = {"type": kind, "id": name}
            if other != entity:
                yield f"{kind} {name}", {**principal, "entity": other}


def action(names: list[str]) -> dict[str, Any]:
    return {"op": "in", "entities": [{"type": "Hub::Action", "id": name} for name in names]}


def nodes(node: Any, place: str) -> Iterator[tuple[str, Any]]:
    yield place, node
    if isinstance(node, dict):
        inner = list(cast("dict[str, Any]", node).items())
    else:
        inner = [(str(i), item) for i, item in enumerate(cast("list[Any]", node) if isinstance(node, list) else [])]
    for key, value in inner:
        yield from nodes(value, f"{place}/{key}")


def find(body: dict[str, Any], place: str) -> tuple[Any, Any]:
    *path, last = [int(part) if part.isdigit() else part for part in place.split("/")]
    target: Any = body
    for part in path:
        target = target[part]
    return target, last


def changes(node: Any) -> Iterator[tuple[str, Callable[[Any], Any]]]:
    if isinstance(node, dict):
        yield from other_operators(cast("dict[str, Any]", node))
        yield from other_names(cast("dict[str, Any]", node))
        yield from other_values(cast("dict[str, Any]", node).get("Value"))


def other_operators(node: dict[str, Any]) -> Iterator[tuple[str, Callable[[Any], Any]]]:
    for operator in {"&&", "||"} & node.keys():
        yield "left alone", lambda n, o=operator: n[o]["left"]
        yield "right alone", lambda n, o=operator: n[o]["right"]
    for operator in NEIGHBOURS.keys() & node.keys():
        other = NEIGHBOURS[operator]
        yield f"{other} for {operator}", lambda n, o=operator, other=other: {other: n[o]}
    if "!" in node:
        yield "not denied", lambda n: n["!"]["arg"]
    if "Set" in node:
        for index in range(len(node["Set"])):
            yield f"set without {index}", lambda n, i=index: {"Set": [v for j, v in enumerate(n["Set"]) if j != i]}


def other_names(node: dict[str, Any]) -> Iterator[tuple[str, Callable[[Any], Any]]]:
    for operator in {"has", "."} & node.keys():
        yield f"{operator} of another", lambda n, o=operator: {o: {**n[o], "attr": f"{n[o]['attr']}x"}}
    if "is" in node:
        for kind in TYPES:
            if kind != node["is"]["entity_type"]:
                yield f"is {kind}", lambda n, k=kind: {"is": {**n["is"], "entity_type": k}}


def other_values(value: Any) -> Iterator[tuple[str, Callable[[Any], Any]]]:
    if isinstance(value, int):
        yield "one more", lambda _: {"Value": value + 1}
        yield "one less", lambda _: {"Value": value - 1}
    if isinstance(value, str):
        yield "misspelt", lambda _: {"Value": f"{value}x"}
    if isinstance(value, dict) and (entity := cast("dict[str, Any]", value).get("__entity")):
        for name in (NAMES | ACTIONS).get(entity["type"], ()):
            if name != entity["id"]:
                yield f"{name} for {entity['id']}", lambda _, n=name: {"Value": {"__entity": {**entity, "id": n}}}


def survives(rules: list[Rule], cases: list[Case], killers: list[Case]) -> bool:
    """Whether the validator takes these rules and they decide every case as the oracle does.

    The case that tells them apart joins the killers, which are tried first: it may tell the rule's next mutant apart.
    """
    policy = Policy(CATALOGUE, rules)
    for case in (*killers, *cases):
        asked, expected = case
        if outcome(policy.decide(asked)) != expected:
            killers[:] = [case, *(killer for killer in killers if killer is not case)]
            return False
    bodies = {rule.id: rule.body for rule in rules}
    text = cedarpy.policies_from_json_str(json.dumps({"staticPolicies": bodies, "templates": {}, "templateLinks": []}))
    return not validate(text, SCHEMA)[1]


def test_the_rules_as_they_are_survive() -> None:
    assert survives(list(RULES.values()), CASES, [])
    assert {mutant.partition(":")[0] for mutant in EQUIVALENT} <= RULES.keys()


@pytest.mark.parametrize("name", RULES)
def test_dropping_weakening_or_mistyping_a_rule_changes_an_outcome(name: str) -> None:
    rule, others = RULES[name], [rule for rule in RULES.values() if rule.id != name]
    killers: list[Case] = []
    assert not survives(others, CASES, killers), "dropped"
    survivors: set[str] = set()
    for what, body in mutants(rule.body):
        mutant = replace(rule, body=body, actions=frozenset(actions_named(body)), reads=read_by(body))
        touched = rule.actions | mutant.actions if rule.actions and mutant.actions else frozenset[str]()
        cases = [case for case in CASES if not touched or touched & MARKS[case[0].action]]
        if survives([*others, mutant], cases, killers):
            survivors.add(f"{name}: {what}")
    assert survivors == {mutant for mutant in EQUIVALENT if mutant.startswith(f"{name}: ")}
