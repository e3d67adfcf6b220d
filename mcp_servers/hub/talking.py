"""Owns the tool talk_to_npc: a player said this to that NPC, and the NPC answers in its own words."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from body_broker.calls import Arguments, Call, Caller, Result, Tool
from mcp_servers.hub.generating import Down, HasInferring, Used, budget_facts
from mcp_servers.hub.hearing import CallListener
from tiers.model import Asker, Finish, InferenceResult, Source, Tier
from tiers.prompting import WORDS_MAX
from tiers.silver.context import NpcContext

_ACTOR = "tier:silver"
_TOPIC = "npc"
Id = Annotated[str, Field(min_length=1, max_length=80)]


class TalkToNpc(Arguments):
    """What a player said, and to whom."""

    exact: ClassVar = frozenset({"npc_id", "player"})

    npc_id: Id
    message: Annotated[str, Field(min_length=1, max_length=WORDS_MAX, pattern=r"\S", description="The player's words.")]
    player: Annotated[Id | None, Field(description="Who says it: each player has a talk of their own.")] = None
    look_up: Annotated[
        Literal["auto", "always", "never"],
        Field(description="Whether the NPC's model may look things up itself, must, or must not."),
    ] = "auto"
    latency_budget_ms: Annotated[float | None, Field(gt=0, le=600_000)] = None

    def context(self, asker: Asker) -> NpcContext:
        """The same in the tiers' words."""
        return NpcContext(
            npc_id=self.npc_id, asker=asker, look_up=self.look_up, latency_budget_ms=self.latency_budget_ms
        )


class Talked(Result):
    """What the NPC says, and how that came about."""

    npc_id: str
    says: str
    source: Source = Field(
        description="`template` is a fixed text, `cached` what it said to the same before: no model answered."
    )
    finish: Finish = Field(description="`length` and `deadline`: it was cut.")
    degraded: bool
    tier: Tier
    engine: str | None
    model: str | None
    tools: list[Used]
    fallbacks: list[Down]
    cost_usd: float | None
    ttft_s: float | None
    seconds: float
    note: str | None
    from_outside: bool

    def outside(self) -> bool:
        """Whatever a model made of a player's words is from outside."""
        return self.from_outside

    def text(self) -> str:
        """Its words; where they are less than an answer, that first."""
        cut = f", {self.finish}" if self.finish in {"length", "deadline"} else ""
        if self.source == "model" and not cut:
            return self.says
        return f"[{self.source}{cut}{f': {self.note}' if self.note else ''}]\n{self.says}"

    @classmethod
    def of(cls, npc_id: str, result: InferenceResult) -> Talked:
        """A tier's result."""
        return cls(
            npc_id=npc_id,
            says=result.text,
            source=result.source,
            finish=result.finish,
            degraded=result.degraded or result.finish == "length",
            tier=result.tier,
            engine=result.engine,
            model=result.model,
            tools=[Used(name=t.name, outcome=t.outcome, seconds=round(t.seconds, 4)) for t in result.tools],
            fallbacks=[Down(engine=f.engine, reason=f.reason) for f in result.fallbacks],
            cost_usd=result.cost_usd,
            ttft_s=None if result.ttft_s is None else round(result.ttft_s, 4),
            seconds=round(result.seconds, 4),
            note=result.note,
            from_outside=result.outside,
        )


async def talk_to_npc(arguments: TalkToNpc, call: Call, services: HasInferring) -> Talked:
    """The NPC's answer, in the conversation of this caller, NPC and player: tainted by the player's words, and no other."""
    began, inferring = asyncio.get_running_loop().time(), services.inferring
    tiers = await inferring.tiers()
    conversation = inferring.conversation(call.caller, _TOPIC, arguments.npc_id, arguments.player or "")
    asker = await inferring.begin(call, _ACTOR, conversation, heard_outside="talk_to_npc")
    budget_ms = inferring.budget_ms("interactive", arguments.latency_budget_ms, began=began)
    context = replace(arguments.context(asker), latency_budget_ms=budget_ms)
    result = await tiers.npc.generate_response(arguments.message, context, listener=CallListener(call))
    return Talked.of(arguments.npc_id, result)


async def talk_facts(arguments: TalkToNpc, caller: Caller, services: HasInferring) -> frozenset[str]:
    """Whether the caller's budget has room for it."""
    request = arguments.context(Asker(caller=caller, conversation="")).request(arguments.message)
    return await budget_facts(request, caller, services.inferring)


TOOLS = (
    Tool(
        name="talk_to_npc",
        group="draft",
        modifiers=frozenset({"spend"}),
        run=talk_to_npc,
        title="Talk to an NPC",
        description=(
            "What an NPC answers to a player, in its role, from its state and the lore it knows; it remembers the last ten "
            "turns with that player. Changes nothing in the world. For other questions to a model use generate."
        ),
        output="as_marked",
        open_world=True,
        reports_progress=True,
        establishes=talk_facts,
    ),
)
