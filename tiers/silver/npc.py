"""Owns a talk between a player and an NPC: what the NPC is and knows, read as this conversation may, what was said, and the answer."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

from body_broker.calls import Json
from body_broker.errors import BodyBrokerError, Conflict, DeadlineExceeded, Denied, NotConfigured, NotFound, Unavailable
from body_broker.storage.redis import LOST, Redis
from body_broker.telemetry import get_logger
from tiers.counts import Counts
from tiers.deadline import Deadline
from tiers.hubtools import Called, HubTools
from tiers.model import BYTES_A_TOKEN, Asker, InferenceResult, Listener, Tier, Told, ToolUse
from tiers.prompting import NPC_BYTES, Turn, for_npc
from tiers.router import Decision, ModelRouter, budget_s
from tiers.silver.context import MAX_TOKENS, NpcContext, lore_as_known
from tiers.silver.history import Dialogue
from tiers.silver.keeping import LORE_KEPT_S, Kept, requester_of

log = get_logger(__name__)

NPC_STATE, LORE = "get_npc_state", "retrieve_lore"
"""What is read before the model is asked."""
LORE_PASSAGES = 4
_READS_SHARE = 0.4
"""The part of the time left that reading the NPC, and then its lore, may take each."""
_LORE_CHARACTERS_MAX = 6_000
_PROMPT_SHARE = 0.5
"""The part of an engine's context that what is told may fill: the rest is for instructions, tools and what they find."""
_LEAST_MS = 1.0
_RAISED: Mapping[str, type[BodyBrokerError]] = {
    "not_found": NotFound,
    "denied": Denied,
    "not_configured": NotConfigured,
}


@dataclass(slots=True)
class _Reading:
    """What a talk reads before it is answered, and as whom."""

    context: NpcContext
    deadline: Deadline
    listener: Listener | None
    used: list[ToolUse]

    async def tell(self, told: Told) -> None:
        """Whoever listens hears how it goes."""
        if self.listener is not None:
            await self.listener(told)

    async def tell_done(self) -> None:
        """Whoever listens hears of the latest read."""
        await self.tell(Told("tool_done", f"{self.used[-1].name}: {self.used[-1].outcome}"))


class _OnceRouted:
    """A listener that has heard already where the talk goes."""

    def __init__(self, listener: Listener) -> None:
        self._listener = listener

    @property
    def restarts(self) -> bool:
        """Whether pieces may be taken back."""
        return self._listener.restarts

    async def __call__(self, told: Told) -> None:
        """Hear one thing."""
        if told.kind != "routed":
            await self._listener(told)


class SilverTierNPC:
    """NPCs that answer players (the seed's class).

    Args:
        router: Finds who answers.
        tools: How a conversation reads the hub.
        redis: Where dialogue is kept.
        counts: Takes measurements.
    """

    def __init__(self, router: ModelRouter, tools: HubTools, redis: Redis, counts: Counts) -> None:
        self._router, self._tools = router, tools
        self._dialogue = Dialogue(redis)
        self._lore = Kept[str]("lore", LORE_KEPT_S, counts)

    async def generate_response(
        self, player_message: str, npc_context: NpcContext, *, listener: Listener | None = None
    ) -> InferenceResult:
        """What the NPC says: at most 128 tokens, temperature 0.7.

        The listener hears `routed` first, once the NPC was read; of that read, and of each other tool, `tool` and then `tool_done`.

        Raises:
            NotFound: There is no such NPC.
            Denied: The asker, or silver for them, may not read it.
            Conflict: It is dead.
            DeadlineExceeded: There was no time to read it.
            Unavailable: It cannot be read now, or an answer broke off after its listener had heard some of it.
        """
        await self._tools.ready()
        now = asyncio.get_running_loop().time
        began, asker = now(), npc_context.asker
        deadline = Deadline.after(budget_s(npc_context.request(player_message)))
        reading = _Reading(npc_context, deadline, listener, [])
        state = await self._npc(reading)
        npc_context, decision, room = self._room(npc_context, player_message, deadline)
        await reading.tell(Told("routed", f"{decision.tier}: {decision.reason}"))
        await reading.tell(Told("tool", NPC_STATE))
        await reading.tell_done()
        turns, note = await self._turns(asker.conversation)
        lore = await self._known(player_message, state, reading) if room else None
        messages = for_npc(player_message, state=state, lore=lore, turns=turns, bytes_max=room or NPC_BYTES)
        left_ms = max(_LEAST_MS, deadline.remaining() * 1_000)
        request = npc_context.request(player_message, messages)
        request = replace(request, latency_budget_ms=left_ms, npc_lore=state.get("persona"))
        routed_s, heard = now() - began, None if listener is None else _OnceRouted(listener)
        result = await self._router.execute(request, asker=asker, listener=heard)
        if result.source != "template" and not await self._remember(asker, player_message, result):
            note = "This exchange could not be remembered."
        return replace(
            result,
            tools=(*reading.used, *result.tools),
            seconds=now() - began,
            ttft_s=None if result.ttft_s is None else routed_s + result.ttft_s,
            note=" ".join(filter(None, (result.note, note))) or None,
        )

    def _room(self, context: NpcContext, said: str, deadline: Deadline) -> tuple[NpcContext, Decision, int]:
        """Who can be asked, and how many bytes they may be told; 0 where nobody can.

        An engine that has no tools is better than none, where tools may be left out.
        """
        decision = self._router.decide(context.request(said), remaining_s=deadline.remaining())
        if not decision.candidates and context.look_up == "auto" and "cannot" in {s.reason for s in decision.skipped}:
            return self._room(replace(context, look_up="never"), said, deadline)
        tokens = min((c.engine.context_tokens for c in decision.candidates), default=0)
        return context, decision, min(NPC_BYTES, max(0, int((tokens - MAX_TOKENS) * BYTES_A_TOKEN * _PROMPT_SHARE)))

    async def _npc(self, reading: _Reading) -> Mapping[str, Json]:
        """What the world says of the NPC, without the words of players that it remembers."""
        called = await self._read(reading, NPC_STATE, {"npc_id": reading.context.npc_id})
        if called.outcome != "ok":
            raise _refusal(called)
        state = cast("Mapping[str, Json]", called.structured.get("state") or {})
        if state.get("alive") is False:
            raise Conflict(f"{reading.context.npc_id} is dead.", next_step="Talk to somebody who lives.")
        return state  # nothing is told before this: what is refused is refused before anything is told

    async def _known(self, said: str, state: Mapping[str, Json], reading: _Reading) -> str | None:
        """Lore about what was said, as far as this NPC knows it; None where there is none."""
        npc_id = reading.context.npc_id
        key = (requester_of(reading.context.asker), npc_id, " ".join(said.casefold().split()))
        lore = self._lore.get(key)
        if lore is None:
            arguments = {"topic": said, "k": LORE_PASSAGES, **lore_as_known(npc_id, state.get("persona"))}
            await reading.tell(Told("tool", LORE))
            called = await self._read(reading, LORE, arguments)
            await reading.tell_done()
            if called.outcome != "ok":
                return None
            lore = "\n".join(_lines(called.structured))[:_LORE_CHARACTERS_MAX]
            self._lore.put(key, lore)
        return lore or None

    async def _read(self, reading: _Reading, name: str, arguments: Mapping[str, Json]) -> Called:
        called = await self._tools.call(
            reading.context.asker, Tier.SILVER, name, arguments, deadline=reading.deadline.share(_READS_SHARE)
        )
        reading.used.append(ToolUse(name, called.outcome, called.seconds))
        return called

    async def _turns(self, conversation: str) -> tuple[tuple[Turn, ...], str | None]:
        try:
            return await self._dialogue.read(conversation), None
        except LOST as error:
            log.warning("dialogue_not_read", error=type(error).__name__)
            return (), "What was said before could not be read."

    async def _remember(self, asker: Asker, said: str, result: InferenceResult) -> bool:
        """Keep this exchange; an answer that was cut is kept as cut."""
        text = result.text if result.finish in {"stop", "grammar"} else f"{result.text}…"
        try:
            await self._dialogue.add(asker.conversation, Turn(said, text))
        except LOST as error:
            log.warning("dialogue_not_kept", error=type(error).__name__)
            return False
        return True


def _refusal(called: Called) -> BodyBrokerError:
    """Why the NPC could not be read, in the words of the hub."""
    error: Any = called.structured.get("error") or {}
    if called.outcome == "timeout":
        return DeadlineExceeded(
            "The time given was over before the NPC was read.",
            next_step="Give it more: latency_budget_ms is to the whole answer.",
        )
    kind = _RAISED.get(called.outcome)
    if kind is None:
        return Unavailable("The NPC could not be read now.", details={"component": "game_state", "why": called.outcome})
    rules = {"rules": error["rules"]} if "rules" in error else {}
    return kind(str(error.get("message") or "The NPC cannot be read."), next_step=error.get("next_step"), details=rules)


def _lines(lore: Mapping[str, Json]) -> list[str]:
    """Passages and facts of retrieve_lore, without their places: an NPC cites nothing."""
    passages = cast("list[str]", lore.get("passages") or [])
    facts = cast("list[dict[str, Json]]", lore.get("facts") or [])
    return [*passages, *(f"{fact['subject']}: {fact['predicate']} = {fact['object']}" for fact in facts)]
