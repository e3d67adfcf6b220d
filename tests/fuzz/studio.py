"""Owns what the schema fuzz calls: a hub with a world, lore, figures and a scan, and one caller of every kind."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import orjson

from body_broker.storage.postgres import Pool
from body_broker.text import new_id
from body_broker.world.files.checking import STARTER, open_world
from mcp_servers.cybersecurity import store
from mcp_servers.cybersecurity.paths import Repository
from mcp_servers.hub.cli.context import record
from mcp_servers.hub.cli.world import load_world
from mcp_servers.hub.rooms import ROOMS
from mcp_servers.hub.worker import working
from tests.fuzz.calls import Fuzz, Who, watch
from tests.fuzz.drawing import Things
from tests.mcp_servers.hub.conftest import Hub, OpenHub

ALONE: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("tier:gold", ()),
    ("tier:silver", ()),
    ("tier:bronze", ()),
    ("service:game", ()),
    ("person:nobody", ()),
    *((f"person:{role}", (role,)) for role in ("designer", "engineer", "sre", "security", "admin")),
    ("person:both", ("engineer", "security")),
)
FOR = (("person:designer", "tier:silver"), ("person:admin", "tier:bronze"), ("service:game", "tier:gold"))
NEEDED = {
    "npc", "entity", "region", "quest", "graph", "node", "fact", "document", "index", "key", "repository", "scan", "finding",
}  # fmt: skip
CAME_UP = {"change", "approval", "cursor"}
"""Ids that only answers tell of."""
_THINGS = {
    "npc": "SELECT id FROM world_entity WHERE kind = 'npc' LIMIT 50",
    "entity": "SELECT id FROM world_entity LIMIT 150",
    "region": "SELECT id FROM world_entity WHERE kind = 'region' LIMIT 50",
    "quest": "SELECT id FROM plot_node WHERE kind = 'quest' LIMIT 50",
    "graph": "SELECT id FROM plot_graph LIMIT 20",
    "node": "SELECT id FROM plot_node LIMIT 50",
    "fact": "SELECT id FROM fact LIMIT 50",
    "document": "SELECT id FROM lore_document WHERE rev IS NOT NULL LIMIT 50",
    "index": "SELECT 'lore-' || replace(name, 'persona:', '') FROM lore_index LIMIT 50",
    "key": "SELECT key FROM config LIMIT 50",
    "repository": "SELECT name FROM repository",
    "scan": "SELECT id FROM scan LIMIT 50",
    "finding": "SELECT id FROM finding LIMIT 50",
}
_FIGURE = "INSERT INTO config (key, value, version) VALUES ($1, $2::text::jsonb, 1) ON CONFLICT DO NOTHING"


@asynccontextmanager
async def fuzzed(open_hub: OpenHub, folder: Path) -> AsyncGenerator[tuple[Fuzz, Hub]]:
    """A hub to be called, with ids of what it holds."""
    # No limit of an asker's is met: each would hide what comes after it.
    limits = {"rate_per_s": 1_000_000, "concurrency_max": 1_000, "approvals_open_max": 10_000}
    async with open_hub(ROOMS, tools="all", approval_wait_s=0.001, **limits) as hub:
        game = folder / "game"
        await _fill(hub, game)
        watch(hub.runtime.gate.policy)
        things = Things()
        fuzz = Fuzz(
            hub.front, hub.url.split("/")[2], [t for room in ROOMS for t in room.tools], await _callers(hub), things
        )
        security = next(who for who in fuzz.whos if who.name == "person:security")
        async with working(hub.runtime):
            arguments = {"repo_path": "game", "scanners": ["detect-secrets"], "wait_s": 60}
            await fuzz.call(security, "scan_codebase", arguments)
        things.add("player", "player_ann", "player_bo")  # labels: the starter world has nobody playing
        for kind, sql in _THINGS.items():
            things.add(kind, *await _column(hub.runtime.stores.pool, sql))
        yield fuzz, hub


async def _fill(hub: Hub, game: Path) -> None:
    await asyncio.to_thread(game.mkdir)
    await asyncio.to_thread((game / "run.py").write_text, "import subprocess\nPASSWORD = 'hunter2hunter2A9'\n")
    pool = hub.runtime.stores.pool
    receipt = await record(hub.runtime, "world load")
    world = await asyncio.to_thread(open_world, STARTER)
    async with working(hub.runtime):
        await load_world(hub.runtime, world, by="operator:ann", receipt=receipt)
    await store.add_repository(pool, Repository("game", game, ()), by="operator:ann")
    for key in ("spawn.night.rate", "spawn.day.rate", "zone.quay.rating"):
        await pool.execute(_FIGURE, key, orjson.dumps(2).decode())


async def _callers(hub: Hub) -> list[Who]:
    found: list[Who] = []
    tokens: dict[str, str] = {}
    for principal, roles in ALONE:
        token = tokens[principal] = (await hub.runtime.tokens.issue(principal, roles=roles, ttl_s=6 * 3600)).token
        session = (await hub.runtime.identities.authenticate(token)).session
        # A service by itself is code, and never tainted.
        found.append(Who(principal, token, () if principal.startswith("service:") else (session,)))
    for asker, tier in FOR:
        caller = await hub.runtime.identities.authenticate(tokens[asker])
        token = await hub.runtime.tokens.mint(caller, tier, new_id("cnv"), 3600)
        inside = await hub.runtime.identities.authenticate(token)
        sessions = (inside.session,) if asker.startswith("service:") else (inside.session, caller.session)
        found.append(Who(f"{tier} for {asker}", token, sessions))
    return found


async def _column(pool: Pool, sql: str) -> list[str]:
    return [str(row[0]) for row in await pool.fetch(sql)]
