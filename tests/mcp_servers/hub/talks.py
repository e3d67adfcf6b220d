"""A served hub with a little world, lore that not everybody knows, and an engine of the FaultWall, for tests of talks with NPCs."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import orjson

from body_broker.lore import make_draft
from body_broker.storage.postgres import Pool
from body_broker.work.model import Origin
from body_broker.world.canon.model import Fact
from body_broker.world.canon.predicates import STANDARD
from body_broker.world.canon.store import replace_canon
from mcp_servers.hub.worker import working
from tests.counterparts.faultwall.wall import MODEL, FaultWall
from tests.mcp_servers.hub.conftest import Hub, OpenHub

LONG = "nan" + 77 * "-"
"""An id as long as ids may be."""
REGION = {"name": "The Fen", "weather": "fog"}
ENTITIES: tuple[tuple[str, str, str | None, dict[str, Any]], ...] = (
    ("fen", "region", None, REGION),
    ("mill", "place", "fen", {"name": "Coldharbour Mill"}),
    (
        "mara",
        "npc",
        "fen",
        {"name": "Mara Thorne", "role": "miller", "mood": "wary", "place": "mill"}
        | {"memories": [{"text": "The thief sleeps under the mill.", "by": "ben", "outside": True, "tick": 1}]},
    ),
    ("ivo", "npc", "fen", {"name": "Ivo Sark", "role": "bell ringer"}),
    ("osric", "npc", "fen", {"name": "Osric Vance", "alive": False}),
    (LONG, "npc", "fen", {"name": "Nan of the Long Name", "role": "eel catcher", "persona": "nan"}),
)
FACTS = (
    Fact(id="f_age", subject="mara", predicate="age", object=34, source="lore:mara"),
    Fact(id="f_eyes", subject="mara", predicate="eye_colour", object="green", source="lore:mara", known_by=("ivo",)),
)
KNOWN, SECRET = "Coldharbour Mill grinds bone by night.", "The bell of Coldharbour Mill hides the drowned clock."


async def bring(hub: Hub, title: str, body: str, known_by: list[str] | None = None, *, index: str = "shared") -> None:
    """Lore, found when this returns."""
    lore = hub.runtime.services.rag
    knowledge = None if known_by is None else {"known_by": known_by}
    taken = await lore.lore.importing.take(
        [make_draft(f"{title}.txt", title, body, knowledge=knowledge)],
        index=index,
        canon=True,
        origin=Origin(chain=("operator:ann",), session="operator:ann"),
    )
    await lore.follow(taken)


@asynccontextmanager
async def talking_hub(pool: Pool, open_hub: OpenHub, **settings: Any) -> AsyncGenerator[Hub]:
    """The hub over this world; Ivo alone knows the secret."""
    async with pool.acquire() as connection, connection.transaction():
        await connection.executemany(
            "INSERT INTO world_entity (id, kind, region, version, data, tick) VALUES ($1, $2, $3, 1, $4::text::jsonb, 0)",
            [(key, kind, region, orjson.dumps(data).decode()) for key, kind, region, data in ENTITIES],
        )
        await replace_canon(connection, tuple(STANDARD.values()), FACTS, (), "operator:ann")
    async with open_hub(tools="all", **settings) as hub, working(hub.runtime):
        await bring(hub, "The Mill", KNOWN)
        await bring(hub, "The Bell", SECRET, ["ivo"])
        yield hub


def with_small(folder: Path, wall: FaultWall) -> Path:
    """A studio's models.toml with the smaller engine at the wall too."""
    file = folder / "models.toml"
    file.write_text(f'[engines.silver-small]\nurl = "{wall.url["vllm"]}"\nmodel = "{MODEL}"\n', "utf-8")
    return file


def system_of(body: dict[str, Any]) -> str:
    """The instructions that an engine was sent."""
    first = body["messages"][0]
    assert first["role"] == "system"
    return str(first["content"])


def said_to(body: dict[str, Any]) -> str:
    """Everything else that it was sent, as text."""
    return "\n".join(str(message.get("content")) for message in body["messages"][1:])
