"""Owns the cloud tier: the very same request of a tenant is paid for once a day, and choices are held by a schema."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from body_broker.storage.redis import Redis
from tiers.cache import ResponseCache, key_of
from tiers.catalogue import EngineSpec
from tiers.choosing import GRAMMARS, Options, Quiet, options_among
from tiers.counts import Counts
from tiers.deadline import Deadline
from tiers.model import Asker, InferenceRequest, InferenceResult, Listener, Told
from tiers.prompting import in_persona
from tiers.router import Decision, Serves
from tiers.silver.personas import NPC, persona_named


class CloudTier:
    """Answers where only paid engines can be asked: by name, or because no other is configured or up (the cloud-only mode).

    Args:
        below: Asks the engines, with personas and tools, and has the last resorts: the silver tier.
        redis: Where answers are kept.
        counts: Takes measurements.
        engines: All that have an address: with others, or other models, the same request is another question.
    """

    def __init__(self, below: Serves, redis: Redis, counts: Counts, engines: Iterable[EngineSpec]) -> None:
        self._below, self._cache = below, ResponseCache(redis, counts)
        self._salt = " ".join(sorted(f"{spec.name}={spec.adapter or spec.model}" for spec in engines))

    async def settled(self) -> None:
        """Return once every answer that was to be kept is."""
        await self._cache.settled()

    async def execute(
        self,
        request: InferenceRequest,
        decision: Decision,
        *,
        asker: Asker,
        deadline: Deadline,
        listener: Listener | None = None,
    ) -> InferenceResult:
        """An answer; the same request of the same tenant within a day is answered by what was answered then.

        Unless tools or an NPC speak: what an NPC says is one player's, and not the same every time.

        Raises:
            BadInput, Unavailable: As the silver tier does.
        """

        async def make() -> InferenceResult:
            return await self._ask(request, decision, asker=asker, deadline=deadline, listener=listener)

        found = await self._cache.answer(await self._key(request, asker), make, deadline=deadline)
        if found.engine is None:
            found = replace(found, tier=decision.tier)
        return replace(found, outside=found.outside or asker.tainted)

    async def _key(self, request: InferenceRequest, asker: Asker) -> str | None:
        """Under what the answer is kept."""
        if request.persona == NPC:
            return None
        messages = request.conversation()
        if request.persona is not None:
            messages = in_persona(messages, await persona_named(request.persona))
        return key_of(asker.tenant, request, messages, salt=self._salt)

    async def _ask(
        self,
        request: InferenceRequest,
        decision: Decision,
        *,
        asker: Asker,
        deadline: Deadline,
        listener: Listener | None,
    ) -> InferenceResult:
        options = _options(request, decision)
        if options is None:
            return await self._below.execute(request, decision, asker=asker, deadline=deadline, listener=listener)
        asked = replace(
            request, choices=(), schema=options.schema(), max_tokens=max(request.max_tokens, options.json_tokens())
        )
        quiet = None if listener is None else Quiet(listener)
        found = await self._below.execute(asked, decision, asker=asker, deadline=deadline, listener=quiet)
        if found.tool_calls:
            return found
        chosen = options.chosen(found.text, found.finish)
        assert chosen is not None, "what does not obey the schema is not accepted"
        if listener is not None:
            await listener(Told("text", chosen, found.outside))
        return replace(found, text=chosen)


def _options(request: InferenceRequest, decision: Decision) -> Options | None:
    """The choices, where the engines take them as JSON Schema alone."""
    dialects = {candidate.engine.spec.dialect for candidate in decision.candidates}
    return options_among(request.choices) if request.choices and not dialects & GRAMMARS else None
