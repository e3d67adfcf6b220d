"""Definitions: everything counts but what changes by itself, and people see what is hidden in them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest

from body_broker.calls import Json
from body_broker.errors import Unavailable
from mcp_servers.upstreams.defining import definitions_of, difference
from mcp_servers.upstreams.model import Definition


@dataclass
class Lists:
    tools: list[Json] = field(default_factory=list[Json])
    prompts: list[Json] = field(default_factory=list[Json])
    resources: list[Json] = field(default_factory=list[Json])
    templates: list[Json] = field(default_factory=list[Json])


def tool(**body: Any) -> Definition:
    return definitions_of(Lists(tools=[{"name": "echo", "inputSchema": {"type": "object"}, **body}]))[0]


@pytest.mark.parametrize(
    "changed",
    [
        {"description": "says it again "},
        {"title": "Echo"},
        {"annotations": {"readOnlyHint": True}},
        {"inputSchema": {"type": "object", "required": ["a"]}},
        {"outputSchema": {"type": "object"}},
        {"unknownToUs": 1},
    ],
)
def test_whatever_is_said_otherwise_is_another_definition(changed: dict[str, Json]) -> None:
    assert tool(**{"description": "says it again", **changed}).digest != tool(description="says it again").digest


def test_the_order_of_keys_and_what_changes_by_itself_do_not_count() -> None:
    one = {
        "uri": "a://b",
        "name": "b",
        "size": 1,
        "_meta": {"x": 1},
        "annotations": {"lastModified": "2026", "priority": 1},
    }
    other = {"annotations": {"priority": 1, "lastModified": "2027"}, "size": 2, "name": "b", "uri": "a://b"}

    first, second = (definitions_of(Lists(resources=[each]))[0] for each in (one, other))

    assert first.digest == second.digest


@pytest.mark.parametrize(
    "rows",
    [
        [{"name": "a"}, {"name": "a", "description": "x"}],
        [{"description": "x"}],
        ["a"],
        [{"name": "\ud800"}],
        [{"name": ""}],
        [{"name": "a", "inputSchema": {"maximum": 2**64}}],
    ],
)
def test_lists_that_nobody_can_rely_on_are_refused_whole(rows: list[Json]) -> None:
    with pytest.raises(Unavailable):
        definitions_of(Lists(tools=rows))


def test_a_large_number_is_a_part_of_a_definition_and_of_its_digest() -> None:
    def bounded(maximum: Json) -> Definition:
        return definitions_of(Lists(tools=[{"name": "a", "inputSchema": {"maximum": maximum}}]))[0]

    found = [bounded(each) for each in (2**64 - 1, 2**64 - 2, str(2**64 - 1), float(2**64), -(2**63))]

    assert len({each.digest for each in found}) == len(found)
    assert str(2**64 - 2) in difference(found[0], found[1])


def test_people_see_what_cannot_be_seen() -> None:
    text = difference(tool(description="echo"), tool(description="echo\u202e\u200b\x1b[2J\U000e0041"))

    assert "-description: echo\n" in f"{text}\n"
    assert "+description: echo\\u202e\\u200b\\u001b[2J\\U000e0041" in text


def test_an_escape_that_was_written_out_is_not_taken_for_a_hidden_character() -> None:
    assert "+description: \\\\u202e" in difference(None, tool(description="\\u202e"))


def test_a_difference_is_bounded_and_says_so() -> None:
    text = difference(None, tool(description="word " * 100_000))

    assert len(text) < 13_000
    assert "more characters are not shown" in text
