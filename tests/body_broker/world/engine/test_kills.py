"""kill -9 of the relay, the engine, Valkey and PostgreSQL with changes in flight: none lost, none applied twice."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import signal
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path

import asyncpg
import pytest

from body_broker.background import running
from body_broker.storage import embedded
from body_broker.storage.migrations import migrate
from body_broker.storage.postgres import LOST, Pool, open_pool
from body_broker.world import queue
from body_broker.world.model import Proposal
from tests.body_broker.world.engine.outside import Outside, outside
from tests.body_broker.world.engine.scene import ORIGIN, is_sound, load
from tests.components import scratch_dir
from tests.kill.harness import Program, seed_of_tests
from tests.waiting import wait_until

SETTINGS = {"BODY_BROKER_ENGINE": "external", "BODY_BROKER_ENGINE_LEASE_S": "1"}
CLIENTS = 4
ROUNDS = 8
IN_FLIGHT = 20
PATIENCE_S = 90.0


@dataclass
class Stage:
    """A relay, an engine of strangers and stores, each a process that can be killed."""

    data_dir: Path
    urls: embedded.StoreUrls
    pool: Pool
    stack: AsyncExitStack
    acknowledged: dict[str, str] = field(default_factory=dict[str, str])
    relay: Program | None = None
    engine: Outside | None = None

    def start_relay(self) -> None:
        log = self.data_dir / "relay.log"
        self.relay = Program(["engine", "--data-dir", str(self.data_dir)], log, SETTINGS)

    async def start_engine(self) -> None:
        self.engine = await self.stack.enter_async_context(outside(self.urls.redis_url))

    async def kill_relay(self) -> None:
        assert self.relay is not None
        self.relay.kill()
        self.start_relay()

    async def kill_engine(self) -> None:
        assert self.engine is not None
        await self.engine.kill()
        await self.start_engine()

    async def kill_store(self, name: str) -> None:
        status = await asyncio.to_thread(embedded.status, self.data_dir)
        pid = status.valkey_pid if name == "valkey" else status.postgres_pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)

    async def ask(self, client: str, number: int) -> None:
        """Queue one change, however often it takes; once it is acknowledged it counts."""
        key = f"{client}-{number}"
        proposal = Proposal(
            entity_id="ada", op="heal" if number % 2 else "hurt", payload={"by": 1}, key=key, expires_in_ms=3_600_000
        )
        while key not in self.acknowledged:
            with suppress(*LOST, asyncpg.PostgresError):
                (taken,) = await queue.submit(
                    self.pool, [proposal], origin=ORIGIN, requester=client, rank=0, open_changes_max=10_000
                )
                self.acknowledged[key] = taken.change_id
            await asyncio.sleep(0.01)

    async def play(self, client: str) -> None:
        number = 0
        while True:
            await self.ask(client, number)
            number += 1
            await wait_until(self.has_room, "the queue moves", PATIENCE_S)

    async def queued(self) -> int | None:
        """How many wait; None while the database is away."""
        try:
            return int(await self.pool.fetchval("SELECT count(*) FROM world_change WHERE state = 'queued'"))
        except (*LOST, asyncpg.PostgresError):
            return None

    async def has_room(self) -> bool:
        waiting = await self.queued()
        return waiting is not None and waiting <= IN_FLIGHT

    async def is_decided(self, change_id: str) -> bool:
        try:
            return (await self.pool.fetchval("SELECT state FROM world_change WHERE id = $1", change_id)) != "queued"
        except (*LOST, asyncpg.PostgresError):
            return False


@pytest.fixture
async def stage() -> AsyncIterator[Stage]:
    data_dir = Path(tempfile.mkdtemp(prefix="body-broker-tests-engine-", dir=scratch_dir()))
    urls = await asyncio.to_thread(embedded.start, data_dir)
    async with AsyncExitStack() as stack:
        pool = await stack.enter_async_context(open_pool(urls.database_url))
        await migrate(pool)
        await load(pool)
        found = Stage(data_dir, urls, pool, stack)
        found.start_relay()
        await found.start_engine()
        yield found
        assert found.relay is not None
        found.relay.kill()
    await asyncio.to_thread(embedded.release, data_dir)

    async def is_over() -> bool:
        return (await asyncio.to_thread(embedded.status, data_dir)).keeper_pid is None

    await wait_until(is_over, "the keeper ends", PATIENCE_S)
    await asyncio.to_thread(shutil.rmtree, data_dir)


async def test_kills_of_every_part_lose_no_acknowledged_change_and_apply_none_twice(stage: Stage) -> None:
    kills: list[Callable[[], Awaitable[None]]] = [
        stage.kill_relay,
        stage.kill_engine,
        lambda: stage.kill_store("valkey"),
        lambda: stage.kill_store("postgres"),
    ]
    order = [kill for _ in range(ROUNDS // len(kills)) for kill in kills]
    random.Random(seed_of_tests()).shuffle(order)  # noqa: S311  # a seeded order is what is wanted
    async with AsyncExitStack() as playing:
        for number in range(CLIENTS):
            await playing.enter_async_context(running(stage.play(f"client-{number}"), name=f"client-{number}"))
        for round_, kill in enumerate(order):
            await wait_until(lambda: stage.acknowledged, "changes are in flight", PATIENCE_S)
            await kill()
            key = f"after-{round_}"
            await stage.ask(key, 0)
            change_id = stage.acknowledged[f"{key}-0"]
            await wait_until(lambda c=change_id: stage.is_decided(c), f"round {round_} goes on", PATIENCE_S)

    async def all_decided() -> bool:
        return await stage.queued() == 0

    await wait_until(all_decided, "nothing is left queued", PATIENCE_S)
    await is_sound(stage.pool)
    rows = await stage.pool.fetch("SELECT key, id, state, rule FROM world_change")
    assert {row["key"]: row["id"] for row in rows}.items() >= stage.acknowledged.items()
    assert {(row["state"], row["rule"]) for row in rows} == {("applied", None)}
    events = await stage.pool.fetchval("SELECT count(*) FROM world_event WHERE change_id IS NOT NULL")
    assert events == len(rows)
