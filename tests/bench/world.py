"""Hot reads of the world (DESIGN.md §8): out of a process's own map, and as MCP calls over HTTP by a raw client."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Callable
from pathlib import Path

from body_broker.storage import embedded
from body_broker.storage.postgres import Pool, open_pool
from body_broker.storage.redis import open_redis
from body_broker.world import epochs, recorder
from body_broker.world.kinds import check
from body_broker.world.map import WorldMap
from body_broker.world.model import Effect, Event
from tests.bench.load import Shot, fire, once, served

NPCS = 1_000
READS = {
    "npc": "get_npc_state",
    "npc fields": "get_npc_state, two fields",
    "npcs": "get_npc_states, 100 of them in full",
    "region": "get_world_state, the first 50",
}
_LOOPS = 100_000


def measure(data_dir: Path, rounds: int, seconds: float) -> str:
    """The table as Markdown: medians over the rounds."""
    shots: dict[str, list[tuple[Shot, Shot]]] = {}
    with served("hub, everything on", "world", str(data_dir)) as hub:
        for _ in range(rounds):
            for kind in READS:
                once(hub, kind)
                shots.setdefault(kind, []).append((fire(hub, kind, 1, seconds), fire(hub, kind, 16, seconds)))
        in_process = asyncio.run(_in_process(data_dir, rounds))
    lines = [
        f"A world of {NPCS} NPCs.",
        "",
        "| what | p50 µs at 1 | p99 | CPU µs at 1 / 16 | requests/s at 16 |",
        "| --- | --- | --- | --- | --- |",
        *(f"| {what}, in process | {took_us:.2f} | | | |" for what, took_us in in_process.items()),
        *(_line(what, shots[kind]) for kind, what in READS.items()),
    ]
    return "\n".join(lines)


def _line(what: str, pairs: list[tuple[Shot, Shot]]) -> str:
    def middle(name: str, at: int) -> float:
        return statistics.median(getattr(pair[at], name) for pair in pairs)

    return (
        f"| {what}, over HTTP | {middle('p50_us', 0):.0f} | {middle('p99_us', 0):.0f} "
        f"| {middle('cpu_us', 0):.0f} / {middle('cpu_us', 1):.0f} | {middle('per_s', 1):.0f} |"
    )


async def _in_process(data_dir: Path, rounds: int) -> dict[str, float]:
    """Microseconds of one read out of a map of the served world."""
    urls = await asyncio.to_thread(embedded.start, data_dir)
    try:
        async with open_pool(urls.database_url) as pool, open_redis(urls.redis_url) as redis:
            world = WorldMap(pool, redis, _unheard)
            await world.load()
        return {
            "an entity": _timed(lambda: world.get("npc-7"), rounds),
            "how far the map may be trusted": _timed(world.reading, rounds),
        }
    finally:
        await asyncio.to_thread(embedded.release, data_dir)


def _timed(read: Callable[[], object], rounds: int) -> float:
    took: list[float] = []
    for _ in range(rounds):
        began = time.perf_counter()
        for _ in range(_LOOPS):
            read()
        took.append((time.perf_counter() - began) / _LOOPS * 1e6)
    return statistics.median(took)


async def _unheard(_event: Event) -> None:
    """Nobody listens."""


async def fill(pool: Pool) -> None:
    """A region full of NPCs, as an operator's load leaves them."""
    effects = [Effect(entity_id="ashmere", type="loaded", patch=check("region", {"name": "Ashmere"}), kind="region")]
    for n in range(NPCS):
        data = {"name": f"Drowned {n}", "role": "waits at the quay", "position": [n, n], "driver": "tier:gold"}
        patch = {name: value for name, value in check("npc", data).items() if value is not None}
        effects.append(Effect(entity_id=f"npc-{n}", type="loaded", patch=patch, kind="npc", region="ashmere"))
    async with pool.acquire() as connection, connection.transaction():
        await recorder.append(connection, effects, {}, await epochs.begin_anew(connection))
