"""Owns the small world that the engine tests play in: how it is loaded, how changes are asked for, and what must always hold."""

from __future__ import annotations

import itertools
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from body_broker.background import running
from body_broker.storage.postgres import Pool
from body_broker.storage.redis import Redis
from body_broker.work.model import Origin
from body_broker.world import epochs, queue, recorder
from body_broker.world.engine.client import EngineClient
from body_broker.world.engine.fitting import GRACE_S
from body_broker.world.engine.own import OwnArbiter
from body_broker.world.engine.relay import Relay
from body_broker.world.model import Effect, Proposal, Queued
from tests.waiting import wait_until

ORIGIN = Origin(chain=("service:game",), session="test")
LEASE_S = 12.0
"""An engine played by hand never beats: however slow the machine, its epoch must outlast what a test says by it.

Not longer, for engines that beat wait for a third of it in one read of Redis, which our client ends after 5 s.
"""
_keys = itertools.count()

REGION = Effect(entity_id="morgue", type="loaded", kind="region", patch={"name": "The Morgue"})
HALL = Effect(
    entity_id="hall", type="loaded", kind="place", region="morgue", patch={"name": "Hall", "exits": ["cellar"]}
)
CELLAR = Effect(
    entity_id="cellar", type="loaded", kind="place", region="morgue", patch={"name": "Cellar", "exits": ["hall"]}
)
ADA = Effect(
    entity_id="ada", type="loaded", kind="npc", region="morgue", patch={"name": "Ada", "place": "hall", "health": 80}
)
BEN = Effect(
    entity_id="ben", type="loaded", kind="npc", region="morgue", patch={"name": "Ben", "alive": False, "health": 0}
)
SEAL = Effect(entity_id="seal", type="loaded", kind="flag", patch={"value": 0})
WORLD = (REGION, HALL, CELLAR, ADA, BEN, SEAL)


async def load(pool: Pool, *effects: Effect) -> None:
    """What an operator's load does."""
    async with pool.acquire() as connection, connection.transaction():
        held = await epochs.begin_anew(connection)
        await recorder.append(connection, effects or WORLD, {}, held)


async def ask(pool: Pool, *wanted: tuple[str, str, Mapping[str, Any]], atomic: bool = False, **more: Any) -> list[str]:
    """Queue changes; their ids."""
    proposals = [
        Proposal(entity_id=entity, op=op, payload=payload, key=f"k{next(_keys)}", **more)
        for entity, op, payload in wanted
    ]
    taken: list[Queued] = await queue.submit(
        pool,
        proposals,
        origin=ORIGIN,
        requester="service:game",
        rank=1,
        open_changes_max=10_000,
        atomic=atomic,
    )
    return [each.change_id for each in taken]


async def state_of(pool: Pool, change_id: str) -> tuple[str, str | None]:
    """State and rule of a change."""
    row = await pool.fetchrow("SELECT state, rule FROM world_change WHERE id = $1", change_id)
    assert row is not None
    return row["state"], row["rule"]


async def decided(pool: Pool, change_id: str, timeout_s: float = 60) -> tuple[str, str | None]:
    """The same once it is decided."""

    async def look() -> tuple[str, str | None] | None:
        found = await state_of(pool, change_id)
        return None if found[0] == "queued" else found

    found = await wait_until(look, f"{change_id} is decided", timeout_s)
    assert found is not None
    return found


async def is_sound(pool: Pool) -> None:
    """Every entity's version is the number of its events, positions have no gap, a change is applied once or not at all."""
    unsound = await pool.fetch(
        "SELECT id FROM world_entity e WHERE version <> (SELECT count(*) FROM world_event v WHERE v.entity_id = e.id)"
    )
    assert [row["id"] for row in unsound] == []
    assert await pool.fetchval(
        "SELECT last_pos = (SELECT count(*) FROM world_event)"
        " AND last_pos = coalesce((SELECT max(pos) FROM world_event), 0) FROM world_engine"
    )
    assert not await pool.fetch(
        "SELECT FROM world_event v JOIN world_change c ON c.id = v.change_id WHERE c.state <> 'applied'"
    )


def relay_of(
    pool: Pool, redis: Redis, database_url: str, lease_s: float = LEASE_S, *, grace_s: float = GRACE_S
) -> Relay:
    return Relay(pool, redis, database_url=database_url, lease_s=lease_s, grace_s=grace_s)


@asynccontextmanager
async def own_engine(redis: Redis, name: str = "ours") -> AsyncGenerator[tuple[EngineClient, OwnArbiter]]:
    """Our rules behind the protocol, arbitrating."""
    async with playing(redis, name) as (client, arbiter):
        await wait_until(lambda: client.epoch, f"{name} is welcome")
        yield client, arbiter


@asynccontextmanager
async def playing(redis: Redis, name: str = "ours") -> AsyncGenerator[tuple[EngineClient, OwnArbiter]]:
    """The same, whoever welcomes it."""
    arbiter = OwnArbiter()
    client = EngineClient(redis, arbiter, engine=name)
    async with running(client.run(), name=f"engine-{name}"):
        yield client, arbiter
