"""Twice the load that an engine can take (DESIGN.md §6): how many requests are answered or fallen back by their deadline, and none cut unsaid."""

from __future__ import annotations

import asyncio
import gc
import math
import statistics
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from body_broker.calls import Caller
from body_broker.errors import Unavailable
from body_broker.storage import embedded
from body_broker.storage.migrations import migrate
from body_broker.storage.postgres import Pool, open_pool
from body_broker.storage.redis import Redis, open_redis
from tests.counterparts.faultwall.wall import KEY, MODEL, FaultWall, Reply, Seen, fault_wall
from tiers.catalogue import Caps, EngineSpec
from tiers.chain import Candidate, Chain
from tiers.cost import CostLedger
from tiers.counts import Counts
from tiers.deadline import Deadline
from tiers.engine import Engine
from tiers.gold.tier import GoldTier
from tiers.hubtools import HubTools
from tiers.model import Asker, InferenceRequest, InferenceResult, Tier
from tiers.router import Decision
from tiers.silver.tier import SilverTier
from tiers.toolloop import ToolLoop

TIMES = 2.0
"""The load, as a multiple of what the engine can take."""
LATE_S = 0.005
"""What a request may come after its deadline."""
_LOOK_S = 0.002
_PIECES = tuple(f" word{number}" for number in range(10))
_INTENT = ("approach",)
_ASKER = Asker(caller=Caller(chain=("service:game",), roles={}, session="ses_bench"), conversation="cnv_bench")

Execute = Callable[[Deadline], Awaitable[InferenceResult]]


@dataclass
class Figures:
    """What came of one flood."""

    asked: int = 0
    answered: int = 0
    cut: int = 0
    fallen_back: int = 0
    failed: int = 0
    unsaid: int = 0
    seconds: list[float] = field(default_factory=list[float])
    over_s: list[float] = field(default_factory=list[float])

    @property
    def late(self) -> int:
        """Requests that came more than `LATE_S` after their deadline."""
        return sum(over > LATE_S for over in self.over_s)

    @property
    def in_time(self) -> float:
        """The share that was answered, or fallen back, by its deadline."""
        return 1 - (self.late + self.failed) / max(1, self.asked)

    def percentile(self, share: float) -> float:
        """Seconds that so large a share did not pass."""
        return sorted(self.seconds)[max(0, math.ceil(len(self.seconds) * share) - 1)] if self.seconds else 0.0


@dataclass(frozen=True, slots=True)
class Scene:
    """A tier before one engine.

    Attributes:
        capacity: Requests a second that the engine can take.
        budget_s: What each request has.
        whole: What the engine says; anything shorter was cut.
    """

    name: str
    capacity: float
    budget_s: float
    whole: str
    execute: Execute


async def flood(scene: Scene, seconds: float, *, times: float = TIMES) -> Figures:
    """Ask at a steady rate, whatever becomes of the answers, and wait for all of them."""
    now = asyncio.get_running_loop().time
    figures, asking = Figures(), set[asyncio.Task[None]]()
    rate = scene.capacity * times
    began = now()
    for number in range(round(rate * seconds)):
        await asyncio.sleep(max(0.0, began + number / rate - now()))
        asking.add(asyncio.create_task(_one(scene, figures)))
    await asyncio.gather(*asking)
    return figures


async def _one(scene: Scene, figures: Figures) -> None:
    now = asyncio.get_running_loop().time
    began = now()
    figures.asked += 1
    try:
        found = await scene.execute(Deadline.after(scene.budget_s))
    except Unavailable:
        figures.failed += 1
    else:
        if found.source not in {"model", "smaller"}:
            figures.fallen_back += 1
        elif found.text == scene.whole:
            figures.answered += 1
        elif found.finish == "deadline":
            figures.cut += 1
        else:
            figures.unsaid += 1
    figures.seconds.append(now() - began)
    figures.over_s.append(now() - began - scene.budget_s)


@asynccontextmanager
async def scenes(pool: Pool, redis: Redis) -> AsyncGenerator[tuple[Scene, ...]]:
    """Gold, silver, and a silver whose server is slower than its lane is wide; each before an engine of its own."""
    async with AsyncExitStack() as stack:
        wall = await stack.enter_async_context(fault_wall("trtllm", "vllm", "openai"))
        ledger = await stack.enter_async_context(CostLedger.opened(pool, Caps({}, {}, {}), Counts()))
        tools = await stack.enter_async_context(HubTools.opened(_nobody, _nobody, Counts()))
        await tools.ready()  # as a hub does before it listens
        chain = Chain(ledger, Counts())
        gold = GoldTier(chain, redis, Counts())
        silver = SilverTier(ToolLoop(chain, tools, Counts()), Counts())
        intent = InferenceRequest(prompt="A bell.", sla="real-time", max_tokens=8, choices=("approach", "wait"))
        talk = InferenceRequest(prompt="Who keeps the lantern?", max_tokens=32)
        wall.always["trtllm"] = Reply(pieces=_INTENT, first_after_s=0.08)
        wall.always["vllm"] = Reply(pieces=_PIECES, first_after_s=0.1, gap_s=0.03)
        wall.answers["openai"] = _crowded(wall, slots=4)
        spec = EngineSpec(name="gold", tier=Tier.GOLD, dialect="trtllm", key=KEY, model=MODEL, ttft_s=2, stall_s=2)
        specs = {
            "gold": replace(spec, url=wall.url["trtllm"], concurrency=4, queue=64),
            "silver": replace(
                spec, name="silver", tier=Tier.SILVER, dialect="vllm", url=wall.url["vllm"], concurrency=8
            ),
            "crowded": replace(
                spec, name="crowded", tier=Tier.SILVER, dialect="openai", url=wall.url["openai"], concurrency=16
            ),
        }
        engines = {name: Engine(each, Counts()) for name, each in specs.items()}
        for engine in engines.values():
            stack.push_async_callback(engine.close)

        def scene(name: str, capacity: float, budget_s: float) -> Scene:
            engine = engines[name]
            tier, asked, whole = (gold, intent, "approach") if name == "gold" else (silver, talk, "".join(_PIECES))
            decision = Decision(engine.spec.tier, (Candidate(engine, engine.spec.tier),), "bench", ())

            async def execute(deadline: Deadline) -> InferenceResult:
                return await tier.execute(asked, decision, asker=_ASKER, deadline=deadline, listener=None)

            return Scene(_NAMES[name], capacity, budget_s, whole, execute)

        yield scene("gold", 4 / 0.08, 0.3), scene("silver", 8 / 0.4, 2.0), scene("crowded", 4 / 0.4, 2.0)


_NAMES = {
    "gold": "gold: 4 at once, 80 ms each",
    "silver": "silver: 8 at once, 400 ms each",
    "crowded": "silver: 16 at once, of which the server works on 4",
}


def _crowded(wall: FaultWall, *, slots: int) -> Callable[[Seen], Reply]:
    """Answers as a server does that queues what it cannot work on: the later, the more there are inside."""

    def answer(seen: Seen) -> Reply:
        rounds = math.ceil(wall.inside[seen.dialect] / slots)
        return Reply(pieces=_PIECES, first_after_s=0.1 + 0.4 * (rounds - 1), gap_s=0.03)

    return answer


async def _nobody(*_: Any, **__: Any) -> str:
    raise AssertionError("nothing here calls tools")


def measure(folder: Path, seconds: float) -> str:
    """The table as Markdown."""
    return asyncio.run(_measured(folder, seconds))


async def _measured(folder: Path, seconds: float) -> str:
    urls = await asyncio.to_thread(embedded.start, folder)
    lines = [
        f"Twice what each engine can take, for {seconds:g} s each, asked at a steady rate whatever becomes of the answers.",
        "",
        "| tier and engine | deadline s | asked | answered | cut, and said so | fallen back | late | by the deadline | p50 / p99 ms | worst after it ms | longest stall of the process ms |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    try:
        async with open_pool(urls.database_url) as pool, open_redis(urls.redis_url) as redis:
            await migrate(pool)
            async with scenes(pool, redis) as found:
                lines += [await _watched(scene, seconds) for scene in found]
    finally:
        await asyncio.to_thread(embedded.release, folder)
    return "\n".join(lines)


async def _watched(scene: Scene, seconds: float) -> str:
    """A flood's line, with how long this process stood still meanwhile: on a busy machine nobody can be sooner than that."""
    stalls: list[float] = []
    await scene.execute(Deadline.after(10))  # the first request loads modules
    gc.collect()
    gc.freeze()  # as a hub that serves: a full collection of all that was loaded stops everybody for 0.2 s
    gc.set_threshold(50_000, 50, 100)
    watching = asyncio.create_task(_watch(stalls))
    try:
        found = await flood(scene, seconds)
    finally:
        watching.cancel()
    return f"{_line(scene, found)} {max(stalls, default=0.0) * 1_000:.1f} |"


async def _watch(stalls: list[float]) -> None:
    now = asyncio.get_running_loop().time
    while True:
        began = now()
        await asyncio.sleep(_LOOK_S)
        stalls.append(now() - began - _LOOK_S)


def _line(scene: Scene, found: Figures) -> str:
    assert not found.unsaid, "an answer was cut and did not say so"
    middle = statistics.median(found.seconds) * 1_000
    return (
        f"| {scene.name} | {scene.budget_s:g} | {found.asked} | {found.answered} | {found.cut} | {found.fallen_back} "
        f"| {found.late + found.failed} | {found.in_time:.2%} | {middle:.0f} / {found.percentile(0.99) * 1_000:.0f} "
        f"| {max(0.0, *found.over_s) * 1_000:.1f} |"
    )
