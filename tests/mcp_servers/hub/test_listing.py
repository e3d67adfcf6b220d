"""What callers are shown: few tokens, every name said, schemas that mean what the models mean."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import jsonschema
import pytest
from pydantic import Field

from body_broker.calls import Arguments, Caller, Result
from body_broker.errors import NotFound
from body_broker.settings import load_settings
from mcp_servers.hub.listing import Listings, lean_schema, uri_pattern
from mcp_servers.hub.rooms import ROOMS
from mcp_servers.hub.runtime import load_policy, profiled
from mcp_servers.hub.wire import tool_error
from mcp_servers.rag.models import GetDocument, SearchLore

CHARACTERS_A_TOKEN = 4  # of JSON and English, roughly; no tokenizer is shipped


@pytest.fixture
def listings() -> Listings:
    return Listings(profiled(ROOMS, "core"), load_policy(load_settings({})), frozenset())


def seen_by(principal: str, *roles: str) -> Caller:
    return Caller(chain=(principal,), roles={principal: frozenset(roles)}, session="s")


def test_tools_list_costs_silver_3k_tokens_and_nobody_more_than_8k(listings: Listings) -> None:
    assert len(listings.of(seen_by("tier:silver")).tools_json) / CHARACTERS_A_TOKEN <= 3000
    for caller in (seen_by("tier:bronze"), seen_by("person:a", "designer", "engineer", "sre", "security", "admin")):
        assert len(listings.of(caller).tools_json) / CHARACTERS_A_TOKEN <= 8000


def test_every_tool_says_when_to_use_it_and_carries_all_four_annotations(listings: Listings) -> None:
    for tool in listings.of(seen_by("person:a", "admin", "engineer")).tools:
        assert tool.title, tool.name
        assert tool.description, tool.name
        assert tool.output_schema, tool.name
        assert tool.annotations is not None
        assert None not in tool.annotations.model_dump(exclude={"title"}).values(), tool.name


def test_an_error_fits_every_tool_s_output_schema_for_clients_of_the_typescript_sdk_hold_it_to_that(
    listings: Listings,
) -> None:
    error = tool_error(NotFound("There is none."))["structuredContent"]
    for tool in listings.of(seen_by("person:a", "admin", "engineer")).tools:
        assert tool.output_schema is not None
        jsonschema.validate(error, tool.output_schema)


@pytest.mark.parametrize("model", [SearchLore, GetDocument])
@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"query": "x"},
        {"query": 5},
        {"query": "x", "persona": 1},
        {"query": "x", "filters": {"source": "canon"}},
        {"query": "x", "filters": {"source": "nowhere"}},
        {"query": "x", "k": 51},
        {"id": "x"},
        {"no": 1},
    ],
)
def test_a_lean_schema_accepts_what_the_full_one_does_but_for_lengths_nulls_and_what_few_calls_reach(
    model: type[SearchLore], arguments: dict[str, Any]
) -> None:
    full = model.model_json_schema()
    lean = lean_schema(full)
    assert accepts(lean, arguments) is accepts(full, arguments)
    assert len(str(lean)) < len(str(full))


def accepts(schema: dict[str, Any], arguments: dict[str, Any]) -> bool:
    try:
        jsonschema.validate(arguments, schema)
    except jsonschema.ValidationError:
        return False
    return True


def test_a_uri_s_field_is_one_segment() -> None:
    pattern = uri_pattern("lore://doc/{id}")
    found = pattern.fullmatch("lore://doc/doc_1")
    assert found is not None
    assert found["id"] == "doc_1"
    assert not pattern.fullmatch("lore://doc/a/b")
    assert not pattern.fullmatch("lore://doc/")
    assert not pattern.fullmatch("lore://docs/a")


class Part(Result):
    """A part of a result."""

    name: str
    note: str | None = None


class Whole(Result):
    """A result with every kind of field that may be empty."""

    part: Part | None = None
    parts: tuple[Part, ...] = ()
    text_or_none: str | None = None
    state: Literal["a", "b"] | None = None


def test_a_result_with_nulls_fits_its_lean_schema_for_clients_hold_it_to_that() -> None:
    lean = lean_schema(Whole.model_json_schema(mode="serialization"), output=True)
    for whole in (Whole(), Whole(part=Part(name="x"), parts=(Part(name="y"),), text_or_none="t", state="a")):
        jsonschema.validate(whole.model_dump(mode="json"), lean)
    assert set(lean["properties"]) == {"part", "parts", "text_or_none", "state"}


class Tree(Arguments):
    """Holds itself."""

    name: Annotated[str, Field(max_length=10)]
    left: Tree | None = None
    leaves: list[Leaf] = Field(default_factory=list["Leaf"])


class Leaf(Arguments):
    """Stands at an end."""

    weight: int = 0


def test_a_definition_that_holds_itself_stays_apart_and_others_stand_where_they_are_used() -> None:
    lean = lean_schema(Tree.model_json_schema())
    assert "Leaf" not in str(lean)
    for tree, fits in (
        ({"name": "a", "left": {"name": "b", "left": {"name": "c"}}, "leaves": [{"weight": 1}]}, True),
        ({"name": "a", "left": {"left": {"name": "c"}}}, False),
        ({"name": "a", "leaves": [{"weight": "much"}]}, False),
    ):
        assert accepts(lean, tree) is fits
