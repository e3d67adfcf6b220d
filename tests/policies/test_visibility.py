from __future__ import annotations

from collections.abc import Iterator
from itertools import chain, combinations, product
from pathlib import Path
from typing import Any

import pytest

from policies.arguments import Attribute
from policies.catalogue import Catalogue, Entry
from policies.decision import Deny, Identity, Question
from policies.engine import Policy
from policies.probes import with_probes
from tests.policies.conftest import Studio
from tests.policies.oracle import ALL_FACTS, KINDS, call, person
from tests.policies.rooms import WORLD

ROLES = ("designer", "engineer", "sre", "security", "admin")
KINDS_OF_IDENTITY = [
    *(Identity(f"tier:{tier}") for tier in ("gold", "silver", "bronze")),
    Identity("service:game"),
    *(person(*roles) for roles in chain.from_iterable(combinations(ROLES, n) for n in range(len(ROLES) + 1))),
]
SOME_CHAINS = list(
    product(
        (person("designer"), person("engineer"), person("security"), person("admin"), Identity("service:game")),
        (Identity("tier:gold"), Identity("tier:silver"), Identity("tier:bronze")),
    )
)

ARGUMENT_RULES = """
@id("only-the-south") forbid (principal == Hub::Tier::"silver", action == Hub::Action::"read_state", resource)
unless { context.arguments has region && context.arguments.region == "south" };
@id("no-region-for-services") forbid (principal is Hub::Service, action == Hub::Action::"read_state", resource)
when { context.arguments has region };
@id("no-bottom-reads") forbid (principal in Hub::Role::"designer", action == Hub::Action::"read_state", resource)
unless { context.arguments has "deep.level" && context.arguments["deep.level"] > 3 };
@id("no-pages-for-bronze") forbid (principal == Hub::Tier::"bronze", action == Hub::Action::"page", resource)
unless { context.arguments has region };
@id("no-greeting-when-young") forbid (principal, action == Hub::Action::"greeting", resource)
unless { context.history.contains("own") };
"""


def some_arguments(name: str) -> list[dict[str, Any]]:
    """Arguments enough to reach every branch of a rule about this operation."""
    if name == "probe:state_read":
        return [{"fresh": fresh} for fresh in (False, True)]
    if name == "read_state":
        deep = {"level": 4, "deepest": {"bottom": "x"}}
        return [
            {"npc_id": "a", "fresh": fresh, "fields": [], "limit": 1, "region": region, "deep": below}
            for fresh, region, below in product((False, True), (None, "south", "north"), (None, deep))
        ]
    kinds = [{"change_request": {"kind": kind}} for kind in [*sorted(KINDS), "other"]]
    if name in {"probe:approve_change", "approve_change"}:
        return kinds
    if name.startswith("wide:"):
        return [{"fresh": fresh, **kind} for fresh in (False, True, None) for kind in [{}, *kinds]]
    if name == "queue_change":
        return [{"change": {"op": "move", "entity_id": "a"}}]
    return [{}]


def every_call(name: str, identities: tuple[Identity, ...]) -> Iterator[Question]:
    histories = (frozenset[str](), frozenset({"own"}))
    for arguments, tainted, facts, history in product(
        some_arguments(name), (False, True), (ALL_FACTS, frozenset[str]()), histories
    ):
        yield Question(name, identities, arguments, tainted, 0, history, facts)


def callable_by(policy: Policy, identities: tuple[Identity, ...]) -> set[str]:
    return {
        name
        for name in policy.catalogue.entries
        if any(not isinstance(policy.decide(asked), Deny) for asked in every_call(name, identities))
    }


@pytest.mark.parametrize("identity", KINDS_OF_IDENTITY, ids=lambda who: ":".join([who.principal, *sorted(who.roles)]))
def test_what_an_identity_sees_is_what_some_call_of_its_gets_through(policy: Policy, identity: Identity) -> None:
    assert policy.visible((identity,)) == callable_by(policy, (identity,))


@pytest.mark.parametrize("identities", SOME_CHAINS, ids=lambda who: ">".join(i.principal for i in who))
def test_what_a_chain_sees_is_what_some_call_of_its_gets_through(
    policy: Policy, identities: tuple[Identity, ...]
) -> None:
    assert policy.visible(identities) == callable_by(policy, identities)


def test_list_and_call_agree_on_a_studios_conditions_too(studio: Studio) -> None:
    policy = studio(ARGUMENT_RULES)
    for identity in KINDS_OF_IDENTITY:
        assert policy.visible((identity,)) == callable_by(policy, (identity,)), identity
    assert "page" not in policy.visible((Identity("tier:bronze"),)), "a page never has a region"
    assert "read_state" in policy.visible((Identity("service:game"),)), "a state may be read without one"


def test_a_row_of_the_design_a_tier(policy: Policy) -> None:
    real = {entry.name for entry in Catalogue.of([WORLD]).entries.values()}
    assert policy.visible((Identity("tier:gold"),)) & real == {"read_state"}
    assert policy.visible((Identity("tier:silver"),)) & real == {"read_state", "page", "greeting"}
    assert policy.visible((Identity("tier:bronze"),)) & real == real


def test_a_chain_without_anybody_sees_nothing(policy: Policy) -> None:
    assert policy.visible(()) == frozenset()


def test_it_is_worked_out_once_for_a_kind_of_identity(policy: Policy) -> None:
    first = policy.visible((person("designer"),))
    assert policy.visible((Identity("person:bob", frozenset({"designer"})),)) is first


@pytest.mark.parametrize(("optional", "listed"), [(6, False), (7, True)])
def test_more_optional_arguments_than_can_be_tried_are_listed_rather_than_hidden(
    tmp_path: Path, optional: int, *, listed: bool
) -> None:
    """No operation has that many which policies read; then a list may show what no call gets through, never less."""
    names = [f"a{number}" for number in range(optional)]
    attributes = tuple(Attribute((name,), "String", required=False) for name in names)
    present = " || ".join(f"context.arguments has {name}" for name in names)
    (tmp_path / "studio.cedar").write_text(
        f"""
        @id("never-with") forbid (principal, action == Hub::Action::"many", resource) when {{ {present} }};
        @id("never-without") forbid (principal, action == Hub::Action::"many", resource) unless {{ {present} }};
        """,
        encoding="utf-8",
    )
    policy = Policy.load(Catalogue([Entry("many", "world", "own", attributes=attributes)]), tmp_path)
    assert isinstance(policy.decide(call("many", person())), Deny)
    assert isinstance(policy.decide(call("many", person(), a0="x")), Deny)
    assert ("many" in policy.visible((person(),))) is listed


def test_the_catalogue_of_the_probes_is_never_listed_beside_real_operations() -> None:
    bare = Policy.load(Catalogue.of([WORLD]))
    assert not any(name.startswith("probe:") for name in bare.visible((Identity("tier:bronze"),)))
    assert with_probes(bare.catalogue).entries.keys() > bare.catalogue.entries.keys()
