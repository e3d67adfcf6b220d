"""A room of the tests: rows of every group and modifier that matters, whose functions tell what happened to them."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated

from pydantic import Field

from body_broker.calls import (
    Arguments,
    Call,
    Caller,
    Prompt,
    PromptText,
    Resource,
    ResourceText,
    Result,
    Room,
    Suggestions,
    Tool,
)


@dataclass
class Seen:
    """What the room's functions saw and what holds them back."""

    calls: list[str] = field(default_factory=list[str])
    started: asyncio.Event = field(default_factory=asyncio.Event)
    release: asyncio.Event = field(default_factory=asyncio.Event)
    cancelled: asyncio.Event = field(default_factory=asyncio.Event)
    finished: asyncio.Event = field(default_factory=asyncio.Event)


class Words(Arguments):
    text: Annotated[str, Field(max_length=5000)] = ""
    count: Annotated[int, Field(ge=0, le=10)] = 1
    weight: float = 1.0


class Echo(Result):
    said: str
    count: int
    tainted: bool


async def echo(arguments: Words, call: Call, seen: Seen) -> Echo:
    seen.calls.append(call.operation.name)
    return Echo(said=arguments.text, count=arguments.count, tainted=call.tainted)


async def wait(arguments: Words, call: Call, seen: Seen) -> Echo:
    await call.progress(1, 2, "begun")
    seen.started.set()
    try:
        await seen.release.wait()
    except asyncio.CancelledError:
        seen.cancelled.set()
        raise
    seen.finished.set()
    return Echo(said=arguments.text, count=arguments.count, tainted=call.tainted)


async def fail(_arguments: Words, _call: Call, _seen: Seen) -> Echo:
    raise RuntimeError("secret dsn=postgres://user:hunter2@db/prod at /root/keys")


async def page(arguments: Words, call: Call, seen: Seen) -> Echo:
    seen.calls.append(call.operation.name)
    state = call.open_cursor(arguments.text or None)
    return Echo(said=call.seal_cursor(arguments.count) or "", count=int(state or 0), tainted=call.tainted)


class Note(Arguments):
    id: Annotated[str, Field(max_length=80)]


async def read_note(arguments: Note, _call: Call, _seen: Seen) -> ResourceText:
    return ResourceText(content=f"note {arguments.id}", from_outside=False)


class Greeting(Note):
    tone: Annotated[str, Field(max_length=10)] = "warm"


async def greet(arguments: Greeting, _call: Call, _seen: Seen) -> PromptText:
    return PromptText(content=f"Greet {arguments.id}.", from_outside=False)


async def complete_id(value: str, given: Mapping[str, str], call: Call, seen: Seen) -> Suggestions:
    """Names that begin with the value; those in a rumour's tone came from outside, and "many" has more than may be shown."""
    seen.calls.append(f"{call.operation.name} {value}")
    names = [f"many {n}" for n in range(150)] if value == "many" else ["Osric", "Osmund", "Hale"]
    return Suggestions(
        values=[name for name in names if name.startswith(value)], from_outside=given.get("tone") == "rumour"
    )


async def own_npcs(arguments: Words, caller: Caller, seen: Seen) -> frozenset[str]:
    """The caller's own NPC is the one that is called as its principal."""
    seen.calls.append(f"whose {arguments.text}")
    return frozenset({"own_npc"}) if arguments.text == caller.chain[-1] else frozenset[str]()


def row(name: str, run: object, group: str | None, **more: object) -> Tool:
    return Tool(name=name, run=run, group=group, title=name, description=f"Fixture {name}.", **more)  # type: ignore[arg-type]


ROOM = Room(
    name="fixture",
    title="Fixture",
    description="Rows of the tests.",
    tools=(
        row("fx_echo", echo, "retrieval"),
        row("fx_outside", echo, "retrieval", output="outside"),
        row("fx_external", echo, "retrieval", modifiers=frozenset({"external"})),
        row("fx_wait", wait, "retrieval", reports_progress=True),
        row("fx_wait_plain", wait, "retrieval"),
        row("fx_wait_effect", wait, "draft", effect="repeatable"),
        row("fx_fail", fail, "retrieval"),
        row("fx_page", page, "retrieval"),
        row("fx_draft", echo, "draft", effect="once"),
        row("fx_write", echo, "write", effect="once"),
        row("fx_admin_read", echo, "admin_read"),
        row("fx_unclassified", echo, None, effect="once"),
        row("fx_needs", echo, "retrieval", needs="BODY_BROKER_NOT_THERE"),
        row("fx_costly", echo, "draft", needs="BODY_BROKER_NOT_THERE", modifiers=frozenset({"spend"})),
        row("fx_asked", echo, "write", needs="BODY_BROKER_NOT_THERE"),
        row("fx_unset", echo, "draft", needs="BODY_BROKER_AUDIT_ANCHOR", modifiers=frozenset({"spend"})),
        row("fx_intent", echo, "intent", establishes=own_npcs),
        row("fx_extra", echo, "retrieval", profile="all"),
    ),
    resources=(
        Resource(
            name="fx_note",
            run=read_note,
            group="retrieval",
            title="Note",
            description="A note.",
            uri="fx://note/{id}",
            completes={"id": complete_id},
        ),
        Resource(
            name="fx_secret",
            run=read_note,
            group="admin_read",
            title="Secret note",
            description="A note for operators.",
            uri="fx://secret/{id}",
            completes={"id": complete_id},
        ),
    ),
    prompts=(
        Prompt(
            name="fx_greet",
            run=greet,
            group="retrieval",
            title="Greet",
            description="A greeting.",
            completes={"id": complete_id},
        ),
    ),
)
