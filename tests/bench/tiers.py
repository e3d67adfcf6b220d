"""The tiers (DESIGN.md §8): deciding, and going on to the next engine when one fails; engines are the FaultWall in a process of its own."""

from __future__ import annotations

import asyncio
import gc
import json
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import aiohttp
import uvloop

from body_broker.storage import embedded
from body_broker.storage.migrations import migrate
from body_broker.storage.postgres import Pool, open_pool
from tests.bench.load import ROOT
from tests.counterparts.faultwall.wall import KEY, MODEL
from tiers.catalogue import Caps, Catalogue, EngineSpec, Given
from tiers.chain import Candidate, Chain, Course, Outcome
from tiers.cost import CostLedger
from tiers.counts import Counts
from tiers.deadline import Deadline
from tiers.engine import Engine
from tiers.model import InferenceRequest, Message, Tier
from tiers.reading import read_catalogue
from tiers.router import ModelRouter
from tiers.wire.base import Ask
from tiers.wire.vllm import Vllm

SILENT_S = 0.016
"""The TTFT limit of the engine that says nothing: what the source documents give a token of gold's."""
_DECISIONS = 20_000
_ASKED = 200
_WARM = 20
_NOWHERE = "http://127.0.0.1:9"
_PROMPT = "Who rows the ferry of Ashmere when the lantern is out? " * 8
REQUESTS = {
    "real-time, 4 engines": InferenceRequest(prompt=_PROMPT, sla="real-time", max_tokens=8),
    "with tools, 7 engines": InferenceRequest(prompt=_PROMPT, tools=("rag_search",), max_tokens=100),
    "with a cost ceiling": InferenceRequest(prompt=_PROMPT, max_tokens=100, cost_ceiling=0.05),
    "20 messages": InferenceRequest(messages=(Message(role="user", content=_PROMPT),) * 20),
}
FAULTS = {
    "503": "wall-unavailable",
    "reset": "wall-reset",
    "refused": "",
    f"silent, a limit of {SILENT_S * 1e3:.0f} ms": "wall-silent",
}


@dataclass(frozen=True)
class Times:
    """How long something took, each time, in microseconds; and what this process worked for one, where that was measured."""

    us: Sequence[float]
    cpu_us: float = 0.0

    def at(self, share: float) -> float:
        """The time that this share of them was not longer than."""
        ordered = sorted(self.us)
        return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


def measure(data_dir: Path, rounds: int) -> str:
    """The tables as Markdown: medians over the rounds."""
    lines = ["| Router.decide | p50 µs | p99 µs |", "| --- | --- | --- |"]
    each = [decide() for _ in range(rounds)]
    lines += [f"| {name} | {_middle(each, name, 0.5):.1f} | {_middle(each, name, 0.99):.1f} |" for name in REQUESTS]
    failing = uvloop.run(_failing_over(data_dir, rounds))  # as the hub runs
    lines += [
        "",
        "| an engine fails, the next answers | added p50 ms | p95 | CPU | a bare client meets it in p50 ms | CPU |",
    ]
    lines.append("| --- | --- | --- | --- | --- | --- |")
    for name in FAULTS:
        added = [statistics.median(_added(times, name, share) for times in failing) for share in (0.5, 0.95)]
        cpu_us = statistics.median(times[name].cpu_us - times["healthy"].cpu_us for times in failing)
        bare = [times[f"bare {name}"] for times in failing]
        figures = (
            *added,
            cpu_us / 1e3,
            statistics.median(each.at(0.5) for each in bare) / 1e3,
            statistics.median(each.cpu_us for each in bare) / 1e3,
        )
        lines.append(f"| {name} | {' | '.join(f'{figure:.2f}' for figure in figures)} |")
    alone = statistics.median(times["healthy"].at(0.5) for times in failing) / 1e3
    cpu_us = statistics.median(times["healthy"].cpu_us for times in failing)
    lines += [
        "",
        f"The next alone: {alone:.2f} ms, of which {cpu_us / 1e3:.2f} ms CPU here. The FaultWall's own time is in it,",
    ]
    lines.append("and in what a 503, a reset and a silence add.")
    return "\n".join(lines)


def _middle(each: Sequence[dict[str, Times]], name: str, share: float) -> float:
    return statistics.median(times[name].at(share) for times in each)


def _added(times: dict[str, Times], name: str, share: float) -> float:
    return (times[name].at(share) - times["healthy"].at(share)) / 1e3


def everything() -> Catalogue:
    """The catalogue as shipped, every engine of it with an address."""
    addresses = {spec.address for spec in read_catalogue(Given()).engines.values()}
    return read_catalogue(Given(urls=dict.fromkeys(addresses, _NOWHERE)))


def decide(times: int = _DECISIONS) -> dict[str, Times]:
    """Decisions over every engine of the catalogue, each of which was measured before."""
    catalogue = everything()
    engines = {name: Engine(spec, Counts()) for name, spec in catalogue.engines.items()}
    for engine in engines.values():
        engine.ttft_s, engine.gap_s = 0.05, 0.01
    router = ModelRouter(catalogue, engines, {})
    found: dict[str, Times] = {}
    gc.collect()
    for name, request in REQUESTS.items():
        took: list[float] = []
        for _ in range(times):
            began = time.perf_counter_ns()
            router.decide(request, remaining_s=15.0)
            took.append((time.perf_counter_ns() - began) / 1e3)
        found[name] = Times(took)
    return found


@contextmanager
def wall_process() -> Generator[dict[str, str]]:
    """A FaultWall in a process of its own: its addresses by dialect."""
    command = [sys.executable, "-m", "tests.counterparts.faultwall.wall"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield json.loads(process.stdout.readline())["urls"]
        finally:
            process.terminate()


async def _failing_over(data_dir: Path, rounds: int) -> list[dict[str, Times]]:
    urls = await asyncio.to_thread(embedded.start, data_dir)
    try:
        with wall_process() as wall:
            async with open_pool(urls.database_url) as pool:
                await migrate(pool)
                return [await fail_over(pool, wall["vllm"]) for _ in range(rounds)]
    finally:
        await asyncio.to_thread(embedded.release, data_dir)


async def fail_over(pool: Pool, url: str, times: int = _ASKED) -> dict[str, Times]:
    """One request after another, in turn: to the engine that answers alone, through one that fails first, and by a bare client."""
    async with _ways(pool, url) as ways:
        took: dict[str, list[float]] = {name: [] for name in ways}
        worked = dict.fromkeys(ways, 0)
        gc.collect()
        for turn in range(-_WARM if times > _WARM else 0, times):
            for name, way in ways.items():
                await ways["healthy"]()  # so that each begins as warm as the others
                began, worked_ns = time.perf_counter_ns(), time.process_time_ns()
                await way()
                if turn >= 0:
                    took[name].append((time.perf_counter_ns() - began) / 1e3)
                    worked[name] += time.process_time_ns() - worked_ns
    return {name: Times(seen, worked[name] / times / 1e3) for name, seen in took.items()}


@asynccontextmanager
async def _ways(pool: Pool, url: str) -> AsyncGenerator[Mapping[str, Callable[[], Awaitable[None]]]]:
    async with (
        _engines(url) as engines,
        CostLedger.opened(pool, Caps({}, {}, {}), Counts()) as ledger,
        aiohttp.ClientSession() as session,
    ):
        chain = Chain(ledger, Counts())

        async def through(name: str) -> None:
            chosen = [engines["healthy"]] if name == "healthy" else [engines[name], engines["healthy"]]
            outcome = await _asked(chain, chosen)
            assert len(outcome.fallbacks) == len(chosen) - 1, outcome.fallbacks
            entry = chosen[0].breaker.enter()
            assert entry is not None, "no engine here fails five times in a row"
            chosen[0].breaker.succeeded(entry)  # what is measured is not what an open one saves

        async def bare(name: str) -> None:
            spec = engines[name].spec
            sent = Vllm().ask(_ask(engines[name], str(spec.model)))
            headers = {"content-type": "application/json", "authorization": f"Bearer {KEY}"}
            with suppress(aiohttp.ClientError, TimeoutError):
                async with (
                    asyncio.timeout(spec.ttft_s),
                    session.post(f"{spec.url}{sent.path}", data=sent.body, headers=headers) as response,
                ):
                    await response.read()

        ways = {name: partial(through, name) for name in ("healthy", *FAULTS)}
        yield ways | {f"bare {name}": partial(bare, name) for name in FAULTS}


async def _asked(chain: Chain, engines: Sequence[Engine]) -> Outcome:
    candidates = [Candidate(engine, engine.spec.tier) for engine in engines]
    return await chain.run(candidates, Course(make=_ask, tenant="person:bench", deadline=Deadline.after(15)))


def _ask(_engine: Engine, model: str) -> Ask:
    return Ask(model=model, messages=(Message(role="user", content="Who rows?"),), max_tokens=16)


@asynccontextmanager
async def _engines(url: str) -> AsyncGenerator[dict[str, Engine]]:
    """One that answers, and one for each fault; the refused one is where nobody listens."""
    async with AsyncExitStack() as stack:
        found: dict[str, Engine] = {}
        for name, model in (("healthy", MODEL), *FAULTS.items()):
            spec = EngineSpec(
                name=name,
                tier=Tier.SILVER,
                dialect="vllm",
                url=url if model else _NOWHERE,
                key=KEY,
                model=model or MODEL,
                ttft_s=SILENT_S if model == "wall-silent" else 15.0,
            )
            found[name] = Engine(spec, Counts())
            stack.push_async_callback(found[name].close)
        yield found
