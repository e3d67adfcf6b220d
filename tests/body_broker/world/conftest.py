"""Owns what the tests of the world are given: a small world in a database, an engine, and a map that follows it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import pytest

from body_broker.storage.postgres import Pool
from body_broker.storage.redis import Redis
from body_broker.work.model import Origin
from body_broker.world import queue
from body_broker.world.arbiter import Arbiter
from body_broker.world.engine import relay
from body_broker.world.map import WorldMap
from body_broker.world.model import Event, Proposal, Queued
from tests.body_broker.world.scene import GAME, populate
from tests.waiting import wait_until

Engine = Callable[..., AbstractAsyncContextManager[Arbiter]]


class Bench:
    """A world in a database, and who asks for changes of it."""

    def __init__(self, pool: Pool) -> None:
        self.pool = pool

    async def submit(
        self, *proposals: Proposal, requester: str = "service:game", origin: Origin = GAME, rank: int = 1, **more: Any
    ) -> list[Queued]:
        """What `queue.submit` says."""
        limits: dict[str, Any] = {"open_changes_max": 256} | more
        return await queue.submit(self.pool, proposals, origin=origin, requester=requester, rank=rank, **limits)

    async def states(self, queued: Sequence[Queued], requester: str = "service:game") -> list[str]:
        """The state, or the rule, of each change."""
        found = [await queue.standing(self.pool, each.change_id, requester) for each in queued]
        return [each.rule or each.state for each in found]

    async def decided(self) -> None:
        """Return once nothing waits any more."""

        async def empty() -> bool:
            return (await queue.pressure(self.pool)).queue_depth == 0

        await wait_until(empty, "everything queued is decided")

    async def version(self, entity_id: str) -> int:
        """The entity's, as it is recorded."""
        return await self.pool.fetchval("SELECT version FROM world_entity WHERE id = $1", entity_id)

    async def require_whole(self) -> None:
        """Fail where the record contradicts itself."""
        odd = await self.pool.fetch(
            "SELECT id FROM world_entity e WHERE version <> (SELECT count(*) FROM world_event v WHERE v.entity_id = e.id)"
        )
        assert not odd, f"versions are not the number of their events: {odd}"
        row = await self.pool.fetchrow(
            "SELECT count(*) AS n, coalesce(max(pos), 0) AS top, (SELECT last_pos FROM world_engine) AS last FROM world_event"
        )
        assert row is not None
        assert row["n"] == row["top"] == row["last"]


@pytest.fixture(autouse=True)
def looks_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """A relay looks as often as it would in a short lease; the leases of tests are long."""
    monkeypatch.setattr(relay, "_LOOKS", 60)


@pytest.fixture
async def bench(pool: Pool) -> Bench:
    await populate(pool)
    return Bench(pool)


@pytest.fixture
def engine(pool: Pool, redis: Redis, database_url: str) -> Engine:
    """Our own engine, running."""

    @asynccontextmanager
    async def make(name: str = "tests", *, lease_s: float = 2.0, tick_hz: float = 200) -> AsyncGenerator[Arbiter]:
        found = Arbiter(pool, redis, database_url=database_url, name=name, tick_hz=tick_hz, lease_s=lease_s)
        task = asyncio.create_task(found.run())
        try:
            yield found
        finally:
            found.stop()
            await task

    return make


@pytest.fixture
def heard() -> list[Event]:
    """The events that the map told of."""
    return []


@pytest.fixture
async def world(bench: Bench, redis: Redis, heard: list[Event]) -> AsyncIterator[WorldMap]:
    async def note(event: Event) -> None:
        heard.append(event)

    found = WorldMap(bench.pool, redis, note)
    async with found.following():
        yield found
