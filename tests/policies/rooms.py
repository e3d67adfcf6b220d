"""Rooms of the tests: rows with every shape of argument that policies can and cannot see."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from body_broker.calls import Arguments, Call, Json, Prompt, PromptText, Resource, ResourceText, Result, Room, Run, Tool
from policies.arguments import Attribute
from policies.catalogue import GROUPS, Entry


class Below(Arguments):
    too_deep: str


class Deepest(Arguments):
    bottom: str
    below: Below


class Deep(Arguments):
    level: int
    deepest: Deepest


class ReadState(Arguments):
    npc_id: str
    fresh: bool = False
    region: str | None = None
    fields: list[Literal["mood", "health"]] = Field(default=[])
    limit: int = 10
    radius: float = 1.0
    weights: list[float] = Field(default=[])
    tags: list[str] = Field(default_factory=list)
    mixed: str | int = 0
    either: str | Below = ""
    deep: Deep | None = None


class Change(Arguments):
    entity_id: str
    op: Literal["move", "delete"]
    payload: dict[str, Json] = Field(default={})


class QueueChange(Arguments):
    change: Change
    reason: str | None = None


class ConfigChange(Arguments):
    kind: Literal["config"]
    key: str


class PauseChange(Arguments):
    kind: Literal["pause"]
    minutes: int


class ApproveChange(Arguments):
    change_request: Annotated[ConfigChange | PauseChange, Field(discriminator="kind")]


class Nothing(Arguments):
    pass


async def read_state(arguments: ReadState, call: Call, services: object) -> Result:
    raise AssertionError(arguments, call, services)


async def queue_change(arguments: QueueChange, call: Call, services: object) -> Result:
    raise AssertionError(arguments, call, services)


async def approve_change(arguments: ApproveChange, call: Call, services: object) -> Result:
    raise AssertionError(arguments, call, services)


async def take_nothing(arguments: Nothing, call: Call, services: object) -> Result:
    raise AssertionError(arguments, call, services)


async def read_page(arguments: Nothing, call: Call, services: object) -> ResourceText:
    raise AssertionError(arguments, call, services)


async def fill_prompt(arguments: Nothing, call: Call, services: object) -> PromptText:
    raise AssertionError(arguments, call, services)


def tool(name: str, group: str | None, run: Run = take_nothing, *modifiers: str) -> Tool:
    return Tool(name=name, run=run, title=name, description=name, group=group, modifiers=frozenset(modifiers))


def room(name: str, *tools: Tool) -> Room:
    return Room(name=name, title=name, description=name, tools=tools)


# One operation of each group that has every argument our rules speak of, so that a rule that meets the wrong group shows.
WIDE = [
    Entry(
        f"wide:{group}",
        "wide",
        group,
        attributes=(
            Attribute(("change_request", "kind"), "String", required=False),
            Attribute(("fresh",), "Bool", required=False),
        ),
    )
    for group in GROUPS
]

WORLD = Room(
    name="world",
    title="World",
    description="World",
    tools=(
        tool("read_state", "state_read", read_state),
        tool("queue_change", "queued", queue_change),
        tool("approve_change", "admin_change", approve_change),
        tool("carry_out", "draft", take_nothing, "external"),
        tool("remove_document", "write", take_nothing, "destructive"),
        tool("nobody_said_what_this_is", None),
    ),
    resources=(
        Resource(
            name="page", run=read_page, title="Page", description="Page", group="retrieval", uri="lore://doc/{id}"
        ),
    ),
    prompts=(Prompt(name="greeting", run=fill_prompt, title="Greeting", description="Greeting", group="retrieval"),),
)
