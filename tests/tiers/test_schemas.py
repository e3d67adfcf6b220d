"""Somebody's schema: values are held to it, and it holds up nobody."""

from __future__ import annotations

from typing import Any

import pytest

from tiers.schemas import STEPS_MAX, Schema, TooCostly, is_schema

NESTED: dict[str, Any] = {"type": "object", "properties": {"next": {"$ref": "#"}}, "additionalProperties": False}


def nested(depth: int) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for _ in range(depth):
        value = {"next": value}
    return value


def test_values_are_held_to_a_schema_and_to_what_it_refers_to() -> None:
    schema = Schema(NESTED)
    assert schema.problems(nested(20), 5) == []
    assert [error.validator for error in schema.problems({"next": {"next": {"other": 1}}}, 5)] == [
        "additionalProperties"
    ]


def test_no_more_problems_are_looked_for_than_are_wanted() -> None:
    assert len(Schema({"items": {"type": "string"}}).problems(list(range(100)), 3)) == 3


@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "http://127.0.0.1:9/elsewhere"},
        {"$ref": "#/$defs/nowhere"},
        {"$defs": {"a": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"},
    ],
)
def test_nothing_is_fetched_and_no_circle_walked(schema: dict[str, Any]) -> None:
    with pytest.raises(TooCostly):
        Schema(schema).problems(1, 1)


def test_a_short_schema_that_means_an_endless_one_is_given_up_after_so_many_references() -> None:
    twice = {f"a{n}": {"anyOf": [{"$ref": f"#/$defs/a{n + 1}"}] * 2} for n in range(40)}
    schema = Schema({"$defs": {**twice, "a40": {"type": "string"}}, "$ref": "#/$defs/a0"})
    with pytest.raises(TooCostly):
        schema.problems(1, 1)


def test_the_count_is_of_one_value_and_not_of_the_schemas_life() -> None:
    many = Schema({"items": {"$ref": "#/$defs/a"}, "$defs": {"a": {"type": "integer"}}})
    for _ in range(3):
        assert many.problems([1] * (STEPS_MAX // 20), 1) == []


ONE_OF_MANY = [{"const": number} for number in range(1_000)]


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        ({"items": {"anyOf": ONE_OF_MANY}}, [999] * 100),
        ({"items": {"oneOf": ONE_OF_MANY}}, [999] * 100),
        ({"items": {"anyOf": [*[False] * 2_500, True]}}, [1] * 100),
        ({"items": {"enum": list(range(3_000))}}, [2_999] * 100),
        ({"items": True}, [1] * 1_000_000),
        ({"anyOf": [*[{"type": "number"}] * 700, {}]}, "x" * 1_000_000),  # each error would hold all of it
        ({"items": {"uniqueItems": True}}, [[[number] for number in range(1_000)]] * 100),
    ],
    ids=["anyOf", "oneOf", "false", "enum", "items", "text", "unique"],
)
def test_a_schema_that_would_keep_the_process_busy_is_given_up(schema: dict[str, Any], value: Any) -> None:
    with pytest.raises(TooCostly):
        Schema(schema).problems(value, 1)


def test_of_unlike_items_only_their_number_counts_and_not_its_square() -> None:
    schema = Schema({"uniqueItems": True})

    assert schema.problems([[number] for number in range(5_000)], 1) == []
    assert [error.validator for error in schema.problems([{"a": 1, "b": 2}, {"b": 2, "a": 1}], 1)] == ["uniqueItems"]


def test_an_answer_of_many_objects_is_held_to_its_schema() -> None:
    fields = {f"f{number}": {"type": "string"} for number in range(5)}
    row = {"type": "object", "properties": fields, "required": [*fields], "additionalProperties": False}
    rows = [dict.fromkeys(fields, f"text {number}") for number in range(200)]

    assert Schema({"type": "array", "items": row}).problems(rows, 1) == []
    assert Schema({"type": "array", "items": row}).problems([*rows, {}], 1) != []


def test_no_part_of_a_schema_chooses_other_keywords_than_those_that_are_counted() -> None:
    part = {"$schema": "http://json-schema.org/draft-07/schema#", "pattern": "^(a+)+$"}

    assert Schema({"properties": {"x": part}}).problems({"x": "a" * 60 + "!"}, 1) == []


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "string", "pattern": "^(a+)+$"},
        {"patternProperties": {"^(a+)+$": False}},
        {"patternProperties": {"^(a+)+$": True}, "additionalProperties": False},
        {"unevaluatedProperties": False},
    ],
)
def test_what_costs_without_bound_is_left_to_others(schema: dict[str, Any]) -> None:
    assert Schema(schema).problems("a" * 60 + "!" if "type" in schema else {"a" * 60 + "!": 1}, 1) == []


def test_what_is_no_schema_is_known_as_none() -> None:
    assert is_schema(NESTED)
    assert not is_schema({"type": "nonsense"})
    assert not is_schema({"properties": 3})
    assert not is_schema({"required": [*range(3_000), "a"]})
