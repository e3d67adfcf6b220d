"""Owns the kill loop of durable work: two workers under load, one killed each round at a step it was seen at; nothing doubled."""

from __future__ import annotations

import random
import subprocess
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager

import pytest

from body_broker.storage.postgres import Pool
from body_broker.work.model import WorkItem
from tests.body_broker.work.bench import Bench
from tests.body_broker.work.worker_process import TABLES
from tests.kill.harness import Harness, Reach, Step, Victim, seed_of_tests
from tests.waiting import wait_until

KINDS = ("commits", "steps", "onces")
PLACES = ("before", "inside", "after")
ATTEMPTS = 1000


class Load:
    """The work of all rounds, and the two workers that die in them."""

    def __init__(self, bench: Bench, chance: random.Random) -> None:
        self.bench, self._chance = bench, chance
        self.work: list[str] = []
        self.died_inside_once: set[str] = set()
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def pid(self, name: str) -> int | None:
        process = self._processes[name]
        return process.pid if process.poll() is None else None

    async def start(self, name: str) -> None:
        self._processes[name] = self.bench.process(name)

    async def ready(self) -> None:
        for name in self._processes:
            await self.bench.is_past(name)

    async def add(self, kind: str, hit: tuple[str, str] | None = None) -> str:
        work = await self.bench.add(kind, {"hit": hit}, attempts_max=ATTEMPTS)
        self.work.append(work)
        return work

    def at(self, kind: str, place: str) -> Reach:
        @asynccontextmanager
        async def reach(victim: Victim) -> AsyncGenerator[str]:
            for _ in range(self._chance.randrange(4)):
                await self.add(self._chance.choice(KINDS))
            yield await self.bring(victim.name, kind, place)

        return reach

    async def bring(self, name: str, kind: str, place: str) -> str:
        """Add work until the worker that is to die is the one that got it; it stands still there."""
        for _ in range(100):
            work = await self.add(kind, (place, name))
            if await wait_until(lambda w=work: self.where_is(w, name, place), f"{work} is held or ends") == "held":
                if (kind, place) == ("onces", "inside"):
                    self.died_inside_once.add(work)
                return f"{name} stands there with {work}"
        pytest.fail(f"{name} got none of a hundred pieces of work")

    async def where_is(self, work: str, name: str, place: str) -> str | None:
        if (name, f"hit {place}") in await self.bench.phases(work):
            return "held"
        return None if (await self.bench.item(work)).state in ("queued", "running") else "ended"


@pytest.fixture
async def load(pool: Pool, database_url: str) -> AsyncIterator[Load]:
    await pool.execute(TABLES)
    bench = Bench(pool, database_url)
    try:
        yield Load(bench, random.Random(seed_of_tests()))  # noqa: S311  # repeatable, nothing secret
    finally:
        bench.end()


@pytest.mark.timeout(1800)
async def test_killed_workers_lose_and_double_nothing(load: Load, request: pytest.FixtureRequest) -> None:
    rounds = 150 if request.config.getoption("--soak", default=False) else 20
    for name in "AB":
        await load.start(name)
    victims = [_worker(load, name) for name in "AB"]
    steps = [Step(f"{kind} {place}", load.at(kind, place)) for kind in KINDS for place in PLACES]
    harness = Harness(victims, steps, load.ready, seed_of_tests())
    for _ in range(rounds):
        await harness.round()
    harness.require_every_name_was_hit()

    ended = [await load.bench.reaches(work, "succeeded", "unknown", "failed", "cancelled") for work in load.work]
    effects = Counter({item.id: await load.bench.effects(item.id) for item in ended})
    wrong = [f"{item.id} {item.kind} {item.state} {effects[item.id]}" for item in ended if not _is_right(item, effects)]
    assert not wrong
    unknown = {item.id for item in ended if item.state == "unknown"}
    assert unknown >= load.died_inside_once
    print(f"{rounds} kills, {len(ended)} pieces of work: {len(unknown)} unknown, none lost, none doubled")


def _worker(load: Load, name: str) -> Victim:
    return Victim(name, lambda: load.pid(name), lambda: load.start(name))


def _is_right(item: WorkItem, effects: Counter[str]) -> bool:
    if item.state == "unknown":
        return item.kind == "onces" and effects[item.id] <= 1
    return item.state == "succeeded" and effects[item.id] == 1
