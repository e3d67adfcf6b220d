"""Owns answers that are given again: the very same request of the same tenant, within a day; and asked once where several ask at once."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Any

import orjson

from body_broker.storage.redis import LOST, Redis
from body_broker.telemetry import get_logger
from tiers.counts import Counts
from tiers.deadline import Deadline
from tiers.model import InferenceRequest, InferenceResult, Message, Tier, Usage

log = get_logger(__name__)

KEPT_S = 24 * 3600
BYTES_MAX = 256 * 1024
"""A longer answer is not kept."""
_PATIENCE_S = 0.25
"""How long Redis is waited for: the cache makes answers faster or does nothing."""
_PREFIX = "tier:answer:"
_WHOLE = frozenset({"stop", "length", "grammar"})
_MADE = frozenset({"model", "smaller"})
"""What is given to those who wait for the very same; only what the model that was meant has said is kept."""

Make = Callable[[], Awaitable[InferenceResult]]
_Flight = asyncio.Future[InferenceResult | None]
"""What came of a request that others wait for: an answer that is good for all, or none."""


def key_of(tenant: str, request: InferenceRequest, messages: Sequence[Message], *, salt: str = "") -> str | None:
    """Under what the answer of a request is kept; None where it must not be: what tools say now is not what they said before.

    Args:
        tenant: Who pays, and to whom alone it is given again.
        request: As it was asked.
        messages: As an engine is asked, persona and history included.
        salt: Changes with whatever else shapes answers, such as the models that an operator has chosen.
    """
    if request.tools or request.offers:
        return None
    whole = {
        "tenant": tenant,
        "salt": salt,
        "messages": messages,
        "asked": [request.model, request.role, request.persona, request.npc_id, request.requires_expert_reasoning],
        "max_tokens": request.max_tokens,
        "temperature": request.temperature,
        "seed": request.seed,
        "stop": request.stop,
        "schema": None if request.schema is None else dict(request.schema),
        "choices": request.choices,
    }
    try:
        return hashlib.sha256(orjson.dumps(whole, option=orjson.OPT_SORT_KEYS)).hexdigest()
    except TypeError:  # half a surrogate pair, a number past 64 bits: nobody asks that twice
        return None


class ResponseCache:
    """Answers by exact key, in Redis for every hub.

    An answer is given as soon as it is there and kept beside that, by a task that `settled` waits for: a slow Redis delays nobody.

    Args:
        redis: Where they are; without it nothing is kept and everything is answered.
        counts: Told of hits and misses.
    """

    def __init__(self, redis: Redis, counts: Counts) -> None:
        self._redis, self._counts = redis, counts
        self._flights: dict[str, _Flight] = {}
        self._keeping: set[asyncio.Task[None]] = set()

    async def settled(self) -> None:
        """Return once everything that was to be kept is, or has failed to be: within a quarter of a second."""
        while self._keeping:
            await asyncio.wait(self._keeping)

    async def answer(self, key: str | None, make: Make, *, deadline: Deadline) -> InferenceResult:
        """The answer that is kept, that somebody is just being given, or a new one.

        One that was not made for this request has the source `cached` and costs nothing.

        Args:
            key: Of `key_of`; None always makes a new one.
            make: Makes it. Its exceptions leave as they are, to whoever made it.
            deadline: Of the request: another's answer is not waited for longer.
        """
        if key is None:
            return await make()
        began = asyncio.get_running_loop().time()
        while (flight := self._flights.get(key)) is not None:
            try:
                async with deadline.scope():
                    found = await asyncio.shield(flight)
            except TimeoutError:
                return await make()
            if found is not None:
                return self._hit(found, began)
        return await self._led(key, make, began, deadline)

    def _hit(self, kept: InferenceResult, began: float) -> InferenceResult:
        seconds = asyncio.get_running_loop().time() - began
        self._counts.cached(Tier.CLOUD, hit=True)
        self._counts.answered(kept.tier, "cached", seconds)
        return replace(kept, source="cached", usage=Usage(), cost_usd=0.0, ttft_s=None, seconds=seconds, fallbacks=())

    async def _led(self, key: str, make: Make, began: float, deadline: Deadline) -> InferenceResult:
        flight: _Flight = asyncio.get_running_loop().create_future()
        self._flights[key] = flight
        came: InferenceResult | None = None  # the next who waits for it makes it
        kept: bytes | None = None
        try:
            found = await self._read(key, deadline)
            if found is not None:
                came = found
                return self._hit(found, began)
            self._counts.cached(Tier.CLOUD, hit=False)
            made = await make()
            if _is_good_for_others(made):
                came, kept = made, _written(made)
            return made
        finally:
            flight.set_result(came)
            if kept is None:
                del self._flights[key]
            else:
                self._keep(key, kept)

    def _keep(self, key: str, kept: bytes) -> None:
        """Who asks the same before it is kept is answered by its flight."""
        task = asyncio.create_task(self._write(key, kept))
        self._keeping.add(task)
        task.add_done_callback(self._keeping.discard)
        task.add_done_callback(lambda _task: self._flights.pop(key))

    async def _read(self, key: str, deadline: Deadline) -> InferenceResult | None:
        try:
            async with deadline.within(_PATIENCE_S).scope():
                kept = await self._redis.get(_PREFIX + key)
        except LOST as error:
            log.info("answers_not_read", error=type(error).__name__)
            return None
        return None if kept is None else _read(kept)

    async def _write(self, key: str, kept: bytes) -> None:
        try:
            async with asyncio.timeout(_PATIENCE_S):
                await self._redis.set(_PREFIX + key, kept, ex=KEPT_S)
        except LOST as error:
            log.info("answer_not_kept", error=type(error).__name__)


def _is_good_for_others(made: InferenceResult) -> bool:
    return made.source in _MADE and made.finish in _WHOLE and not made.tools and not made.tool_calls and bool(made.text)


def _written(made: InferenceResult) -> bytes | None:
    """None for what is not kept: another model's than was meant, and what is too long."""
    if made.source != "model":
        return None
    kept = orjson.dumps(
        [made.text, made.tier, made.engine, made.model, made.source, made.finish, made.outside, made.reason]
    )
    return kept if len(kept) <= BYTES_MAX else None


def _read(kept: bytes | str) -> InferenceResult | None:
    """None where it is not of this program's making."""
    try:
        text, tier, engine, model, source, finish, outside, reason = orjson.loads(kept)
        fields: dict[str, Any] = {"text": text, "engine": engine, "model": model, "source": source, "finish": finish}
        return InferenceResult(tier=Tier(tier), outside=bool(outside), reason=reason, **fields)
    except (ValueError, TypeError):
        return None
