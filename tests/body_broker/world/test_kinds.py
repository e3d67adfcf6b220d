"""Owns the proof of what entities are made of."""

from __future__ import annotations

from typing import Any

import pytest

from body_broker.errors import BadInput
from body_broker.world.kinds import KINDS, OUTSIDE_FIELDS, check, name_of, references
from tests.body_broker.world.scene import entities


def test_checked_data_is_whole_and_stays_as_it_is_when_checked_again() -> None:
    for entity in entities().values():
        assert check(entity.kind, entity.data) == entity.data


@pytest.mark.parametrize(
    ("kind", "data", "problems"),
    [
        ("npc", {"name": "A", "health": float("nan")}, ["data.health"]),
        ("npc", {"name": "A", "position": [float("inf"), 0.0]}, ["data.position.0"]),
        ("npc", {"name": "", "place": "The Morgue", "wings": 2}, ["data.name", "data.place", "data.wings"]),
        ("npc", {"name": "A", "memories": [{"text": "x"}] * 51}, ["data.memories"]),
        ("npc", {"name": "A", "driver": "gold"}, ["data.driver"]),
        ("region", {"name": "A", "weather": "frogs", "danger": 11}, ["data.weather", "data.danger"]),
        ("quest", {"title": "A", "requires": [{"entity": "x", "field": "value"}]}, ["data.requires.0.equals"]),
        ("faction", {"name": "A", "stance": {"ben": 101}}, ["data.stance.ben"]),
        ("item", [], ["data"]),
    ],
)
def test_every_problem_is_named_at_its_place(kind: str, data: Any, problems: list[str]) -> None:
    with pytest.raises(BadInput) as caught:
        check(kind, data)

    found = caught.value.details["problems"]
    assert isinstance(found, list)
    assert [each.partition(":")[0] for each in found] == problems


def test_an_unknown_kind_is_told_those_that_there_are() -> None:
    with pytest.raises(BadInput) as caught:
        check("dragon", {})
    assert all(kind in caught.value.next_step for kind in KINDS)


def test_text_is_cleaned() -> None:
    assert check("flag", {"value": "a\u202eb", "description": "c\x00"}) == {"value": "ab", "description": "c"}


def test_references_are_found_wherever_they_stand() -> None:
    quest = {**entities()["ledger"].data, "players": ["anna"]}
    npc = {**entities()["mara"].data, "disposition": {"ben": 3}}

    assert references("quest", quest) == {"mara", "bell-rung", "anna"}
    assert references("npc", npc) == {"morgue", "brokers", "brass-key", "ben"}
    assert references("place", entities()["vault"].data) == {"alley", "brass-key"}
    assert references("flag", entities()["bell-rung"].data) == set()


def test_everything_has_a_name() -> None:
    assert name_of(entities()["ledger"]) == "The ledger"
    assert name_of(entities()["bell-rung"]) == "bell-rung"


def test_where_outside_text_lies_is_a_field_of_some_kind() -> None:
    assert {field for model in KINDS.values() for field in model.model_fields} >= OUTSIDE_FIELDS
