"""Owns a tool loop as the tests have it: a real hub behind its inner door, and the FaultWall's vLLM for a model."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest

from body_broker.settings import Settings
from mcp_servers.hub.runtime import Runtime, open_runtime
from tests.counterparts.faultwall.wall import KEY, MODEL, FaultWall, Reply, fault_wall
from tests.mcp_servers.hub.conversing import TALKS, Plan, asker_of, inner_tools
from tests.mcp_servers.hub.fixture_room import ROOM, Seen
from tiers.catalogue import Caps, EngineSpec
from tiers.chain import Candidate, Chain, Course
from tiers.cost import CostLedger
from tiers.counts import Counts
from tiers.deadline import Deadline
from tiers.engine import Engine
from tiers.model import Asker, InferenceRequest, Message, Tier, Told
from tiers.toolloop import LoopOutcome, ToolLoop
from tiers.wire.base import Ask

SYSTEM = "You are a ferryman."
NO_CAPS = Caps({}, {}, {})
GROUPS = {"lore": ("fx_echo", "fx_outside"), "elsewhere": ("fx_admin_read",)}


class ToolCounts(Counts):
    """Counts tools alone."""

    def __init__(self) -> None:
        self.tools: list[tuple[str, str]] = []

    def tool_used(self, tier: str, tool: str, outcome: str, seconds: float) -> None:
        """A tool was called, or was not."""
        assert tier
        assert seconds >= 0
        self.tools.append((tool, outcome))


@dataclass
class Heard:
    """A listener that remembers."""

    restarts: bool = True
    told: list[Told] = field(default_factory=list[Told])

    async def __call__(self, told: Told) -> None:
        self.told.append(told)

    @property
    def text(self) -> str:
        """What is left of what was told."""
        pieces: list[str] = []
        for told in self.told:
            if told.kind == "restart":
                pieces.clear()
            elif told.kind == "text":
                pieces.append(told.text)
        return "".join(pieces)


Dialect = Literal["vllm", "trtllm"]


@dataclass
class Table:
    """A loop with everything around it."""

    runtime: Runtime
    seen: Seen
    plan: Plan
    wall: FaultWall
    loop: ToolLoop
    engines: dict[Dialect, Engine]
    counts: ToolCounts
    asker: Asker

    async def ask(
        self,
        *replies: Reply,
        listener: Heard | None = None,
        tier: Tier = Tier.SILVER,
        within_s: float = 30.0,
        asker: Asker | None = None,
        **request: Any,
    ) -> LoopOutcome:
        """What comes of a request, with what the model says to it."""
        self.wall.say("vllm", *replies)
        usual: dict[str, Any] = {"prompt": "Where is the ferry?", "tools": ("fx_echo", "fx_outside")}
        given = InferenceRequest(**usual | request)

        def make(engine: Engine, model: str) -> Ask:
            assert engine in self.engines.values()
            messages = (Message(role="system", content=SYSTEM), *given.conversation())
            return Ask(
                model=model,
                messages=messages,
                max_tokens=given.max_tokens,
                offers=given.offers,
                tool_choice=given.tool_choice if given.offers else "auto",
                schema=given.schema,
            )

        return await self.loop.run(
            [Candidate(engine, tier) for engine in self.engines.values()],
            Course(
                make=make,
                tenant=(asker or self.asker).tenant,
                deadline=Deadline.after(within_s),
                listener=listener,
            ),
            asker=asker or self.asker,
            tier=tier,
            request=given,
        )

    def sent(self, place: int = -1, dialect: Dialect = "vllm") -> dict[str, Any]:
        """What an engine was sent."""
        return self.wall.asked(dialect)[place].body

    def read(self, place: int = -1) -> list[str]:
        """What the tools said, as a model was shown it."""
        return [message["content"] for message in self.sent(place)["messages"] if message["role"] == "tool"]


@pytest.fixture
async def table(settings_for: Callable[..., Settings], redis: object) -> AsyncGenerator[Table]:
    _ = redis  # flushed before the test
    async with open_table(settings_for(rate_per_s=10_000)) as found:
        yield found


@asynccontextmanager
async def open_table(settings: Settings) -> AsyncGenerator[Table]:
    """A loop until the way out: vLLM first, then trtllm-serve."""
    seen, plan, counts = Seen(), Plan(), ToolCounts()
    async with AsyncExitStack() as stack:
        opening = open_runtime(settings, (ROOM, TALKS), extra_services={"fixture": seen, "talks": plan})
        runtime = await stack.enter_async_context(opening)
        tools = await stack.enter_async_context(inner_tools(runtime, counts))
        wall = await stack.enter_async_context(fault_wall())
        ledger = await stack.enter_async_context(CostLedger.opened(runtime.stores.pool, NO_CAPS, Counts()))
        engines: dict[Dialect, Engine] = {
            name: Engine(
                EngineSpec(name=name, tier=Tier.SILVER, dialect=name, url=wall.url[name], key=KEY, model=MODEL),
                Counts(),
            )
            for name in ("vllm", "trtllm")
        }
        for engine in engines.values():
            stack.push_async_callback(engine.close)
        yield Table(
            runtime=runtime,
            seen=seen,
            plan=plan,
            wall=wall,
            loop=ToolLoop(Chain(ledger, Counts()), tools, counts, GROUPS),
            engines=engines,
            counts=counts,
            asker=await asker_of(runtime, "person:anna", "engineer"),
        )
