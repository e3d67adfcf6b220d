"""Owns what gold knows of an NPC: read by the hub's tools as the asker's and gold's own identity, so neither sees more than it may."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

from body_broker.calls import Json
from body_broker.errors import BodyBrokerError
from tiers.deadline import Deadline
from tiers.gold.intents import Present, Scene
from tiers.hubtools import Called, HubTools
from tiers.model import Asker, Tier

Sight = Callable[[Asker, str, Deadline], Awaitable[Scene | None]]
"""`async (asker, npc_id, deadline) -> Scene`; None where it may not be seen, is not there, or not in time."""

_STATE = ["alive", "health", "mood", "role", "place", "disposition"]
_PRESENT_MAX = 20


class HubSight:
    """Sees by `get_npc_state` and `find_entities`, from the hub's cache: gold may read no other way."""

    def __init__(self, tools: HubTools) -> None:
        self._tools = tools

    async def __call__(self, asker: Asker, npc_id: str, deadline: Deadline) -> Scene | None:
        """The NPC and who is with it."""
        found = await self._read(asker, "get_npc_state", {"npc_id": npc_id, "fields": _STATE}, deadline)
        if found is None:
            return None
        npc = found.structured
        state, place = npc["state"], npc["state"].get("place")
        where = {"place": place, "alive": True}
        others: Called | None = None
        if place is not None:
            asked = {"where": where, "fields": ["alive"], "limit": _PRESENT_MAX}
            others = await self._read(asker, "find_entities", asked, deadline)
        return Scene(
            version=npc["version"],
            alive=state.get("alive", True),
            health=state.get("health", 100),
            mood=state.get("mood", "calm"),
            role=state.get("role"),
            place=place,
            disposition=state.get("disposition") or {},
            present=tuple(
                Present(each["id"], each["kind"])
                for each in (others.structured.get("items", ()) if others is not None else ())
                if each["id"] != npc_id and each["kind"] in {"npc", "player"}
            ),
            outside=found.outside or (others is not None and others.outside),
        )

    async def _read(self, asker: Asker, name: str, arguments: Mapping[str, Json], deadline: Deadline) -> Called | None:
        try:
            called = await self._tools.call(asker, Tier.GOLD, name, arguments, deadline=deadline)
        except BodyBrokerError:  # whoever may not come in sees nothing
            return None
        return called if called.outcome == "ok" else None
