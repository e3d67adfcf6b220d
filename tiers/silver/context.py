"""Owns what a talk with an NPC is asked with; imports nothing that reaches an engine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from body_broker.calls import Json
from tiers.model import Asker, InferenceRequest, Message
from tiers.silver.personas import NPC

MAX_TOKENS = 128
TEMPERATURE = 0.7
TOOLS = ("retrieve_lore", "get_world_state")
"""What the NPC's model may call itself: nothing that tells what players said to others."""


def lore_as_known(npc_id: str, persona: str | None) -> dict[str, Json]:
    """The arguments of retrieve_lore that say whose knowledge it is: the NPC's, with its own persona's lore where it has one."""
    return {"known_to": npc_id, "context": {"npc": npc_id} | ({"persona": persona} if persona else {})}


@dataclass(frozen=True, slots=True, kw_only=True)
class NpcContext:
    """With whom, for whom and where a talk is (the seed's name).

    Attributes:
        npc_id: The NPC, by its id in the world.
        asker: For whom, and in which conversation: one for each NPC, player and login.
        look_up: Whether the model may call tools, must, or must not.
        latency_budget_ms: To the whole answer; None leaves it to the router.
    """

    npc_id: str
    asker: Asker
    look_up: Literal["auto", "always", "never"] = "auto"
    latency_budget_ms: float | None = None

    def request(self, said: str, messages: tuple[Message, ...] = ()) -> InferenceRequest:
        """What the tiers are asked: the words alone, or the messages made of them."""
        tools = None if self.look_up == "never" else TOOLS
        return InferenceRequest(
            prompt=None if messages else said,
            messages=messages,
            max_tokens=MAX_TOKENS,
            temperature=TEMPERATURE,
            latency_budget_ms=self.latency_budget_ms,
            tools=tools,
            tool_choice="required" if self.look_up == "always" else "auto",
            persona=NPC,
            npc_id=self.npc_id,
        )
