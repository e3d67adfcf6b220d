"""Owns the tool talk_to_npc: a player said this to that NPC, and the NPC answers in its own words."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from body_broker.calls import Arguments, Call, Caller, Tool
from mcp_servers.hub.generating import Answered, HasInferring, budget_facts, explain_budget, facts_of
from mcp_servers.hub.hearing import CallListener
from tiers.model import Asker, InferenceResult
from tiers.prompting import WORDS_MAX
from tiers.requests import BUDGET_MS_MAX
from tiers.silver.context import NpcContext

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
    latency_budget_ms: Annotated[float | None, Field(gt=0, le=BUDGET_MS_MAX)] = None

    def context(self, asker: Asker) -> NpcContext:
        """The same in the tiers' words."""
        return NpcContext(
            npc_id=self.npc_id, asker=asker, look_up=self.look_up, latency_budget_ms=self.latency_budget_ms
        )


class Talked(Answered):
    """What the NPC says, and how that came about."""

    npc_id: str
    says: str

    def text(self) -> str:
        """Its words; where they are less than an answer, that first."""
        cut = f", {self.finish}" if self.finish in {"length", "deadline"} else ""
        if self.source == "model" and not cut:
            return self.says
        return f"[{self.source}{cut}{f': {self.note}' if self.note else ''}]\n{self.says}"

    @classmethod
    def of(cls, npc_id: str, result: InferenceResult) -> Talked:
        """A tier's result."""
        facts: dict[str, Any] = {**facts_of(result), "degraded": result.degraded or result.finish == "length"}
        return cls(npc_id=npc_id, says=result.text, **facts)


async def talk_to_npc(arguments: TalkToNpc, call: Call, services: HasInferring) -> Talked:
    """The NPC's answer, in the conversation of this caller, NPC and player: tainted by the player's words, and no other."""
    began, inferring = asyncio.get_running_loop().time(), services.inferring
    tiers = await inferring.tiers()
    conversation = inferring.conversation(call.caller, _TOPIC, arguments.npc_id, arguments.player or "")
    asker = await inferring.begin(call, conversation, heard_outside="talk_to_npc")
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
        explains=explain_budget,
    ),
)
