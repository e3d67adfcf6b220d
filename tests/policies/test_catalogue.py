from __future__ import annotations

import pytest

from body_broker.errors import PolicyError
from policies.catalogue import Catalogue
from policies.decision import Ask, Identity
from policies.engine import Policy
from tests.policies.oracle import call
from tests.policies.rooms import WORLD, room, tool


def visible_arguments(catalogue: Catalogue, name: str) -> dict[str, tuple[str, bool]]:
    return {a.name: (a.type, a.required) for a in catalogue.entries[name].attributes}


def test_tools_resources_and_prompts_are_all_entries_of_their_server() -> None:
    entries = Catalogue.of([WORLD]).entries
    assert {"read_state", "page", "greeting"} <= entries.keys()
    assert {entry.server for entry in entries.values()} == {"world"}


def test_an_unclassified_operation_is_write_destructive_and_external() -> None:
    found = Catalogue.of([room("a", tool("mystery", None), tool("long_mystery", None))]).entries["mystery"]
    assert (found.group, found.modifiers) == ("write", {"destructive", "external"})


def test_an_unclassified_operation_keeps_the_modifiers_it_has() -> None:
    mystery = tool("mystery", None)
    found = Catalogue.of([room("a", tool("slow", "own", mystery.run, "spend"), mystery)]).entries
    assert found["slow"].modifiers == {"spend"}
    slow = Catalogue.of([room("a", tool("slow", None, mystery.run, "spend"))]).entries["slow"]
    assert slow.modifiers == {"spend", "destructive", "external"}


def test_an_unclassified_operation_asks_every_gate_it_might_belong_behind(policy: Policy) -> None:
    decision = policy.decide(call("nobody_said_what_this_is", Identity("tier:bronze")))
    assert isinstance(decision, Ask)
    assert set(decision.rules) == {
        "destruction-by-agents-needs-two",
        "destruction-needs-approval",
        "external-by-bronze-needs-approval",
        "writes-need-approval",
    }


@pytest.mark.parametrize(
    ("rooms", "complaint"),
    [
        ([room("a", tool("x", "wriet"))], "unknown granting group wriet"),
        ([room("a", tool("x", "spend"))], "unknown granting group spend"),
        ([room("a", tool("x", "write", tool("x", None).run, "write"))], "unknown modifier write"),
        ([room("a", tool("x", "own"), tool("x", "own"))], "already"),
        ([room("a", tool("x", "own")), room("b", tool("x", "own"))], "a name that a already has"),
        ([room("a", tool("write", "own"))], "the name of a group"),
        ([room("a", tool("destructive", "own"))], "the name of a group or modifier"),
    ],
)
def test_a_row_that_cannot_be_classified_stops_the_start(rooms: list[object], complaint: str) -> None:
    with pytest.raises(PolicyError, match=complaint):
        Catalogue.of(rooms)  # pyright: ignore[reportArgumentType]  # pytest's tables are untyped


def test_policies_see_scalars_and_lists_of_strings_and_nothing_else() -> None:
    assert visible_arguments(Catalogue.of([WORLD]), "read_state") == {
        "npc_id": ("String", True),
        "fresh": ("Bool", True),
        "region": ("String", False),
        "fields": ("Set<String>", True),
        "limit": ("Long", True),
        "tags": ("Set<String>", False),  # its default is not in the schema
        "deep.level": ("Long", False),
        "deep.deepest.bottom": ("String", False),
    }


def test_nested_arguments_are_seen_under_their_dotted_names() -> None:
    assert visible_arguments(Catalogue.of([WORLD]), "queue_change") == {
        "change.entity_id": ("String", True),
        "change.op": ("String", True),
        "reason": ("String", False),
    }


def test_a_union_shows_what_is_common_as_required_and_the_rest_as_optional() -> None:
    assert visible_arguments(Catalogue.of([WORLD]), "approve_change") == {
        "change_request.kind": ("String", True),
        "change_request.key": ("String", False),
        "change_request.minutes": ("Long", False),
    }


def test_a_nested_value_is_picked_by_its_path_and_absent_where_any_part_is_missing() -> None:
    found = {a.name: a for a in Catalogue.of([WORLD]).entries["read_state"].attributes}
    bottom = found["deep.deepest.bottom"]
    assert bottom.pick({"deep": {"level": 1, "deepest": {"bottom": "x"}}}) == "x"
    assert bottom.pick({"deep": {"level": 1, "deepest": "x"}}) is None
    assert bottom.pick({"deep": None}) is None
    assert bottom.pick({}) is None
