"""The tool loop's row of DESIGN.md §8: two model calls and one call of a tool through the hub, beside what each part of it costs alone."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import uvloop

from body_broker.calls import Caller
from body_broker.settings import load_settings
from mcp_servers.hub.inner_door import InnerDoor
from mcp_servers.hub.protocol import Protocol
from mcp_servers.hub.requests import Request
from mcp_servers.hub.runtime import Runtime, open_runtime
from mcp_servers.hub.serve import freeze_start_up
from tests.bench.rows import CALLS, room
from tests.bench.tiers import wall_process
from tests.counterparts.faultwall.wall import KEY, MODEL
from tiers.catalogue import Caps, EngineSpec
from tiers.chain import Candidate, Chain, Course
from tiers.cost import CostLedger
from tiers.counts import Counts
from tiers.deadline import Deadline
from tiers.engine import Engine
from tiers.hubtools import HubTools
from tiers.model import Asker, InferenceRequest, Message, Tier
from tiers.toolloop import ToolLoop
from tiers.wire.base import Ask

TOOL, ARGUMENTS = CALLS["read"]
_TIMES, _WARM, _ROWS = 300, 50, 51
_DEADLINE_S = 30.0
GATE, DOOR, MODELS, LOOP = (
    "the tool, a call of the gate itself",
    "the same as silver through its MCP client and the inner door",
    "two model calls without a tool",
    "the loop: two model calls and one of the tool",
)


@dataclass(frozen=True)
class Cost:
    """One thing done again and again: time on the clock and work of this process, for one."""

    p50_us: float
    cpu_us: float


def measure(data_dir: Path, rounds: int) -> str:
    """The table as Markdown: medians over the rounds, in which everything takes its turn."""
    with wall_process() as wall:
        each = uvloop.run(_rounds(data_dir, wall["vllm"], rounds))
    lines = [
        "| what | p50 ms | CPU ms of this process, hub and client | beside the gate alone |",
        "| --- | --- | --- | --- |",
    ]
    gate_us = statistics.median(found[GATE].cpu_us for found in each)
    for name in (GATE, DOOR, MODELS, LOOP):
        p50_us = statistics.median(found[name].p50_us for found in each)
        cpu_us = statistics.median(found[name].cpu_us for found in each)
        lines.append(f"| {name} | {p50_us / 1e3:.2f} | {cpu_us / 1e3:.2f} | {cpu_us / gate_us:.1f}x |")
    return "\n".join(lines)


async def _rounds(data_dir: Path, url: str, rounds: int) -> list[dict[str, Cost]]:
    async with opened(data_dir, url) as ways:
        freeze_start_up()
        return [{name: await _cost(way, _TIMES) for name, way in ways.items()} for _ in range(rounds)]


async def _cost(way: Callable[[], Awaitable[object]], times: int) -> Cost:
    for _ in range(_WARM):
        await way()
    gc.collect()
    took: list[float] = []
    worked_ns = time.process_time_ns()
    for _ in range(times):
        began = time.perf_counter_ns()
        await way()
        took.append((time.perf_counter_ns() - began) / 1e3)
    return Cost(statistics.median(took), (time.process_time_ns() - worked_ns) / times / 1e3)


@asynccontextmanager
async def opened(data_dir: Path, url: str) -> AsyncGenerator[dict[str, Callable[[], Awaitable[object]]]]:
    """The ways that are measured, over a hub with everything on."""
    settings = load_settings({}, data_dir=data_dir, rate_per_s=50_000, concurrency_max=256, embeddings="off")
    async with AsyncExitStack() as stack:
        runtime = await stack.enter_async_context(open_runtime(settings, (room(_ROWS),)))
        protocol = Protocol(runtime.gate, runtime.listings, runtime.limits, runtime.bus)
        door = InnerDoor(protocol, runtime.identities, settings)
        await stack.enter_async_context(door.serving())
        tools = await stack.enter_async_context(HubTools.opened(door.client, runtime.tokens.mint, Counts(), door.post))
        opening = CostLedger.opened(runtime.stores.pool, Caps({}, {}, {}), Counts())
        chain = Chain(await stack.enter_async_context(opening), Counts())
        spec = EngineSpec(name="silver", tier=Tier.SILVER, dialect="vllm", url=url, key=KEY, model=MODEL, ttft_s=15)
        engine = Engine(spec, Counts())
        stack.push_async_callback(engine.close)
        yield await _ways(runtime, tools, chain, engine)


async def _ways(
    runtime: Runtime, tools: HubTools, chain: Chain, engine: Engine
) -> dict[str, Callable[[], Awaitable[object]]]:
    issued = await runtime.tokens.issue("person:bench", roles=["engineer"], ttl_s=7200)
    anna = await runtime.identities.authenticate(issued.token)
    asker = Asker(caller=anna, conversation="cnv_of_the_bench")
    silver = await runtime.identities.authenticate(
        await runtime.tokens.mint(anna, "tier:silver", asker.conversation, 3_600)
    )
    request = InferenceRequest(prompt="Who rows?", tools=(TOOL,), tool_choice=TOOL)
    loop, candidates = ToolLoop(chain, tools, Counts()), [Candidate(engine, Tier.SILVER)]

    async def by_the_gate() -> None:
        await runtime.gate.run(_request(silver))

    async def by_the_door() -> None:
        called = await tools.call(asker, Tier.SILVER, TOOL, ARGUMENTS, deadline=Deadline.after(_DEADLINE_S))
        assert called.outcome == "ok", called

    async def by_models() -> None:
        for _ in range(2):
            await chain.run(candidates, Course(make=_ask, tenant=asker.tenant, deadline=Deadline.after(_DEADLINE_S)))

    async def by_the_loop() -> None:
        found = await loop.run(
            candidates,
            Course(make=_ask, tenant=asker.tenant, deadline=Deadline.after(_DEADLINE_S)),
            asker=asker,
            tier=Tier.SILVER,
            request=request,
        )
        assert [use.outcome for use in found.tools] == ["ok"], found

    return {GATE: by_the_gate, DOOR: by_the_door, MODELS: by_models, LOOP: by_the_loop}


def _request(caller: Caller) -> Request:
    return Request(name=TOOL, kind="tool", arguments=ARGUMENTS, caller=caller)


def _ask(_engine: Engine, model: str) -> Ask:
    return Ask(model=model, messages=(Message(role="user", content="Who rows?"),), max_tokens=64)
