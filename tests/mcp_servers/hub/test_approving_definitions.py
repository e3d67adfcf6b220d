"""An approval is bound to what people are told a tool is: whatever of that changes gives its definition another digest."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any

import pytest
from pydantic import ConfigDict, Field

from body_broker.calls import Arguments, Call, Result, Room, Tool
from mcp_servers.hub.approving import Definitions


class Target(Arguments):
    model_config = ConfigDict(title="Target")

    name: str
    count: Annotated[int, Field(le=10, description="How many.")] = 1


class MoreArguments(Target):
    model_config = ConfigDict(title="Target")

    force: bool = False


class HigherBound(Target):
    model_config = ConfigDict(title="Target")

    count: Annotated[int, Field(le=1_000, description="How many.")] = 1


class OtherWords(Target):
    model_config = ConfigDict(title="Target")

    count: Annotated[int, Field(le=10, description="How many are left.")] = 1


async def run(arguments: Target, call: Call, services: object) -> Result:
    raise AssertionError(arguments, call, services)


async def run_with_more(arguments: MoreArguments, call: Call, services: object) -> Result:
    raise AssertionError(arguments, call, services)


async def run_with_a_higher_bound(arguments: HigherBound, call: Call, services: object) -> Result:
    raise AssertionError(arguments, call, services)


async def run_with_other_words(arguments: OtherWords, call: Call, services: object) -> Result:
    raise AssertionError(arguments, call, services)


def remove() -> Tool:
    """The tool as it was when people were asked."""
    return Tool(
        name="remove",
        run=run,
        title="Remove",
        description="Removes what you name.",
        group="write",
        effect="repeatable",
    )


def digest_of(tool: Tool) -> str:
    """What an approval of it would be bound to."""
    other = replace(remove(), name="beside", title="Beside")
    return Definitions([Room(name="room", title="Room", description="Room", tools=(other, tool))])[tool.name]


@pytest.mark.parametrize(
    "changed",
    [
        {"title": "Keep"},
        {"description": "Removes what you name, and all beside it."},
        {"run": run_with_more},
        {"run": run_with_a_higher_bound},
        {"run": run_with_other_words},
        {"modifiers": frozenset({"destructive"})},
        {"group": None},
        {"effect": "once"},
        {"effect": "none"},
        {"open_world": True},
    ],
    ids=lambda changed: " ".join(getattr(value, "__name__", f"{name} {value}") for name, value in changed.items()),
)
def test_whatever_changes_of_what_people_are_told_gives_another_digest(changed: dict[str, Any]) -> None:
    assert digest_of(replace(remove(), **changed)) != digest_of(remove())


def test_another_name_gives_another_digest() -> None:
    assert digest_of(replace(remove(), name="removes")) != digest_of(remove())


@pytest.mark.parametrize("changed", [{}, {"profile": "all"}, {"reports_progress": True}], ids=str)
def test_a_tool_that_people_are_told_the_same_of_keeps_its_digest(changed: dict[str, Any]) -> None:
    assert digest_of(replace(remove(), **changed)) == digest_of(remove())


def test_every_tool_of_every_room_has_a_definition_and_no_other_name_has_one() -> None:
    one = Room(name="one", title="One", description="One", tools=(remove(),))
    two = Room(name="two", title="Two", description="Two", tools=(replace(remove(), name="keep"),))
    definitions = Definitions([one, two])
    assert (sorted(definitions), len(definitions)) == (["keep", "remove"], 2)
    assert definitions.get("gone") is None
