"""Fifty-one rows with realistic schemas and one-kilobyte answers: what the door is measured with, for us and for the baseline."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Literal

from pydantic import Field

from body_broker.calls import Arguments, Call, Result, Room, Tool

TEXT = "The ferryman of Ashmere keeps a lantern for each of the drowned, and will not row past the ninth bell. " * 2


class SearchLore(Arguments):
    query: Annotated[str, Field(min_length=1, max_length=400, description="What to look for, in plain words.")]
    k: Annotated[int, Field(ge=1, le=50, description="How many passages.")] = 5
    kinds: Annotated[
        list[Literal["character", "place", "event", "item"]] | None,
        Field(max_length=4, description="Only these kinds."),
    ] = None
    region: Annotated[str | None, Field(max_length=64, description="Only this region.")] = None
    mode: Annotated[Literal["hybrid", "lexical", "vector"], Field(description="How to search.")] = "hybrid"


class GetNpc(Arguments):
    npc_id: Annotated[str, Field(pattern=r"^npc_[0-9a-z]{1,24}$", description="The NPC.")]
    fields: Annotated[
        list[Literal["position", "health", "mood", "inventory"]], Field(max_length=4, description="What to return.")
    ] = ["position", "health"]


class QueueEvent(Arguments):
    kind: Annotated[Literal["weather", "spawn", "quest", "economy"], Field(description="Kind of event.")]
    target: Annotated[str, Field(min_length=1, max_length=80, description="What it happens to.")]
    payload: Annotated[dict[str, str | int | float | bool], Field(max_length=16, description="Details.")] = {}
    key: Annotated[str, Field(min_length=8, max_length=64, description="Idempotency key.")]


class ReadConfig(Arguments):
    path: Annotated[str, Field(pattern=r"^[a-z0-9_./-]{1,120}$", description="Dotted path.")]
    env: Annotated[Literal["dev", "staging", "prod"], Field(description="Environment.")] = "dev"


class ListFindings(Arguments):
    repo: Annotated[str, Field(pattern=r"^[\w.-]+/[\w.-]+$", description="owner/name.")]
    severities: Annotated[list[Literal["low", "medium", "high", "critical"]], Field(description="Only these.")] = [
        "high",
        "critical",
    ]
    cursor: Annotated[str | None, Field(max_length=200, description="Where to go on.")] = None
    limit: Annotated[int, Field(ge=1, le=200, description="Page size.")] = 50


class Hit(Result):
    doc_id: str
    rev: int
    title: str
    content: str
    score: float
    start: int
    end: int
    source: str


class SearchResult(Result):
    hits: list[Hit]
    total: int
    degraded: bool = False
    note: str | None = None


class Place(Result):
    x: float
    y: float
    z: float


class Npc(Result):
    npc_id: str
    zone: str
    position: Place
    health: int
    mood: str
    version: int


class Accepted(Result):
    event_id: str
    status: Literal["queued"]


class Setting(Result):
    path: str
    env: str
    value: str | int | float | bool | None
    rev: int


class Finding(Result):
    id: str
    severity: str
    rule: str
    file: str
    line: int
    message: str


class Findings(Result):
    items: list[Finding]
    next_cursor: str | None = None


async def search_lore(_arguments: SearchLore, _call: Call | None, _services: object) -> SearchResult:
    hits = [
        Hit(
            doc_id=f"lore:{i}",
            rev=3,
            title=f"Ashmere {i}",
            content=TEXT,
            score=0.9 - i / 10,
            start=i,
            end=i + 200,
            source="book",
        )
        for i in range(3)
    ]
    return SearchResult(hits=hits, total=3)


async def get_npc(arguments: GetNpc, _call: Call | None, _services: object) -> Npc:
    return Npc(
        npc_id=arguments.npc_id, zone="ashmere", position=Place(x=1, y=2, z=3), health=90, mood="calm", version=7
    )


async def queue_event(_arguments: QueueEvent, _call: Call | None, _services: object) -> Accepted:
    return Accepted(event_id="ev_1", status="queued")


async def read_config(arguments: ReadConfig, _call: Call | None, _services: object) -> Setting:
    return Setting(path=arguments.path, env=arguments.env, value=3, rev=1)


async def list_findings(_arguments: ListFindings, _call: Call | None, _services: object) -> Findings:
    items = [
        Finding(id=f"f{i}", severity="high", rule="sql", file="a.py", line=i, message="string built SQL")
        for i in range(5)
    ]
    return Findings(items=items)


# `draft` with an effect: for bronze a write that is audited durably before it runs, without an approval.
FAMILIES = (
    Tool(name="bench_lore", run=search_lore, group="retrieval", title="Lore", description="Search: one of fifty."),
    Tool(name="bench_npc", run=get_npc, group="state_read", title="NPC", description="An NPC: one of fifty."),
    Tool(
        name="bench_event",
        run=queue_event,
        group="draft",
        effect="repeatable",
        title="Event",
        description="Queue: one of fifty.",
    ),
    Tool(
        name="bench_config",
        run=read_config,
        group="config_read",
        title="Setting",
        description="A setting: one of fifty.",
    ),
    Tool(
        name="bench_findings",
        run=list_findings,
        group="security_read",
        title="Findings",
        description="Findings: one of fifty.",
    ),
)

# For bronze a write that a person must allow.
GATED = Room(
    name="gated",
    title="Gated",
    description="What needs a person's yes.",
    tools=(
        Tool(
            name="bench_gated",
            run=queue_event,
            group="write",
            effect="repeatable",
            title="Gated event",
            description="Queue, once a person has said yes.",
        ),
    ),
)

CALLS = {
    "read": ("bench_lore_3", {"query": "who keeps the lantern", "k": 3, "mode": "hybrid"}),
    "write": ("bench_event_3", {"kind": "weather", "target": "zone:1", "payload": {"rain": 0.5}, "key": "abcdefgh1"}),
    "npc": ("get_npc_state", {"npc_id": "npc-7"}),
    "npc fields": ("get_npc_state", {"npc_id": "npc-7", "fields": ["mood", "position"]}),
    "npcs": ("get_npc_states", {"npc_ids": [f"npc-{n}" for n in range(100)]}),
    "region": ("get_world_state", {"region": "ashmere"}),
}


def rows(count: int) -> tuple[Tool, ...]:
    """`count` rows, the families in turn."""
    families = len(FAMILIES)
    return tuple(
        dataclasses.replace(FAMILIES[i % families], name=f"{FAMILIES[i % families].name}_{i // families}")
        for i in range(count)
    )


def room(count: int) -> Room:
    """The rows as a server of the hub."""
    return Room(name="bench", title="Bench", description="Rows of the benchmark.", tools=rows(count))
