"""A served hub with a small world, its canon and its lore, for the storyteller's tests."""

from __future__ import annotations

from collections.abc import AsyncIterator

import orjson
import pytest

from body_broker.lore import make_draft
from body_broker.storage.postgres import Pool
from body_broker.work.model import Origin
from body_broker.world.canon.model import Fact, FlagTerm, ItemTerm, NodeTerm, PlotEdge, PlotGraph, PlotNode, Requires
from body_broker.world.canon.predicates import STANDARD
from body_broker.world.canon.store import replace_canon
from mcp_servers.hub.worker import working
from tests.mcp_servers.hub.conftest import Hub, OpenHub, open_hub, settings_for

__all__ = ["open_hub", "settings_for"]  # fixtures

ENTITIES: tuple[tuple[str, str, str | None, dict[str, object]], ...] = (
    ("fen", "region", None, {"name": "The Fen"}),
    ("mill", "place", "fen", {"name": "Coldharbour Mill"}),
    ("row", "place", "fen", {"name": "Tanner's Row"}),
    ("mara", "npc", "fen", {"name": "Mara Thorne", "place": "mill"}),
    ("ivo", "npc", "fen", {"name": "Ivo Sark"}),
    ("osric", "npc", "fen", {"name": "Osric Vance", "alive": False}),
    ("anna", "player", "fen", {"name": "Anna", "inventory": ["bone_key"]}),
    ("bone_key", "item", None, {"name": "the bone key"}),
    ("bell_rung", "flag", None, {"value": False}),
    ("audit", "quest", None, {"title": "The Salt Audit", "state": "done"}),
    ("clock", "quest", None, {"title": "The Drowned Clock", "state": "locked"}),
)
FACTS = (
    Fact(id="f_age", subject="mara", predicate="age", object=34, source="lore:mara"),
    Fact(id="f_eyes", subject="mara", predicate="eye_colour", object="green", source="lore:mara", known_by=("ivo",)),
    Fact(id="f_home_then", subject="mara", predicate="home", object="row", source="lore:mara", valid_to=10.0),
    Fact(id="f_home", subject="mara", predicate="home", object="mill", source="lore:mara", valid_from=10.0),
    Fact(id="f_dead", subject="osric", predicate="status", object="dead", source="lore:osric", valid_from=12.0),
)
GRAPH = PlotGraph(
    id="ledger",
    title="The Ledger",
    nodes=(
        PlotNode(id="audit", kind="quest", title="The Salt Audit"),
        PlotNode(
            id="clock",
            kind="quest",
            title="The Drowned Clock",
            requires=Requires(all=(NodeTerm(node="audit"), ItemTerm(item="bone_key"))),
            effects=(FlagTerm(flag="bell_rung"),),
        ),
        PlotNode(
            id="bell",
            kind="ending",
            title="The bell",
            requires=Requires(all=(NodeTerm(node="clock"), FlagTerm(flag="bell_rung"))),
        ),
    ),
    edges=(PlotEdge(src="audit", dst="clock"), PlotEdge(src="clock", dst="bell", kind="choice", label="Ring it")),
)


async def put_world(pool: Pool) -> None:
    """Entities as a load would leave them, and the canon."""
    async with pool.acquire() as connection, connection.transaction():
        await connection.executemany(
            "INSERT INTO world_entity (id, kind, region, version, data, tick) VALUES ($1, $2, $3, 1, $4::text::jsonb, 0)",
            [(key, kind, region, orjson.dumps(data).decode()) for key, kind, region, data in ENTITIES],
        )
        await replace_canon(connection, tuple(STANDARD.values()), FACTS, (GRAPH,), "operator:ann")


async def bring(hub: Hub, title: str, body: str, *, canon: bool = True) -> str:
    """Import a document and wait until it is found; its id."""
    lore = hub.runtime.services.rag
    taken = await lore.lore.importing.take(
        [make_draft(f"{title}.txt", title, body)],
        index="shared",
        canon=canon,
        origin=Origin(chain=("operator:ann",), session="operator:ann"),
    )
    await lore.follow(taken)
    return taken.documents[0].doc_id


@pytest.fixture
async def hub(pool: Pool, open_hub: OpenHub, redis: object) -> AsyncIterator[Hub]:
    _ = redis  # flushed before the test
    await put_world(pool)
    async with open_hub(tools="all") as found, working(found.runtime):
        await bring(found, "The Mill", "Coldharbour Mill grinds bone by night. Old Jessop Wray keeps its books.")
        yield found
