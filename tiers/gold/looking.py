"""Owns looking at an NPC beside everything else: how it stands, its intent, the last good answer; nothing here is waited for too long."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

import orjson

from body_broker.errors import BodyBrokerError
from body_broker.storage.redis import LOST, Redis
from body_broker.world import intents
from tiers.deadline import Deadline
from tiers.gold.intents import Scene, Wanted
from tiers.gold.sight import Sight
from tiers.model import Asker, InferenceRequest

KEPT_MS = intents.TTL_MS
"""How long an answer is the last known good one: as long as an intent is meant."""
_WRITE_S = 0.02


@dataclass(frozen=True, slots=True)
class Line:
    """A line that may stand in for a model's, and whether text from outside went into it."""

    text: str
    outside: bool = False


class Look:
    """What is known of one request's NPC by now.

    Attributes:
        scene: How it stands; None where it may not be seen, is not there, or was not read yet.
        intent: The line that its driver submitted, where it holds still.
    """

    def __init__(self) -> None:
        self.scene: Scene | None = None
        self.intent: Line | None = None
        self.kept: bytes | str | None = None
        self.task: asyncio.Task[None] | None = None

    @property
    def last(self) -> Line | None:
        """What this asker was answered of it last, where it is not known to have changed since."""
        if self.kept is None:
            return None
        kept: dict[str, Any] = orjson.loads(self.kept)
        holds = self.scene is None or kept["version"] in {None, self.scene.version}
        return Line(kept["text"], kept["outside"]) if holds else None

    @property
    def outside(self) -> bool:
        """Whether what is seen has words from outside in it."""
        return self.scene is not None and self.scene.outside

    async def until(self, deadline: Deadline) -> None:
        """Wait for what is still being read, no longer than this."""
        if self.task is not None and not self.task.done():
            await asyncio.wait({self.task}, timeout=max(0.0, deadline.remaining()))


class Looking:
    """Looks at NPCs.

    Args:
        redis: Where intents and last answers are.
        sight: Sees NPCs for an asker; None: nobody sees any.
    """

    def __init__(self, redis: Redis, sight: Sight | None) -> None:
        self._redis, self._sight = redis, sight

    @asynccontextmanager
    async def at(self, request: InferenceRequest, asker: Asker, deadline: Deadline) -> AsyncGenerator[Look]:
        """A look that goes on until the way out; it is empty where the request names no NPC."""
        look = Look()
        if request.npc_id is not None:
            look.task = asyncio.create_task(self._read(look, request, request.npc_id, asker, deadline))
        try:
            yield look
        finally:
            if look.task is not None:
                look.task.cancel()

    async def keep(self, look: Look, request: InferenceRequest, asker: Asker, line: Line, deadline: Deadline) -> None:
        """Remember the last good answer; a store that does not answer holds nobody up."""
        if request.npc_id is None:
            return
        version = None if look.scene is None else look.scene.version
        value = orjson.dumps({"text": line.text, "outside": line.outside, "version": version})
        with suppress(*LOST):
            async with deadline.within(_WRITE_S).scope():
                await self._redis.set(_key(request, asker), value, px=KEPT_MS)

    async def _read(self, look: Look, request: InferenceRequest, npc_id: str, asker: Asker, deadline: Deadline) -> None:
        await asyncio.gather(self._remember(look, request, asker), self._see(look, npc_id, asker, deadline))

    async def _remember(self, look: Look, request: InferenceRequest, asker: Asker) -> None:
        with suppress(*LOST):
            look.kept = await self._redis.get(_key(request, asker))

    async def _see(self, look: Look, npc_id: str, asker: Asker, deadline: Deadline) -> None:
        if self._sight is None:
            return
        try:
            look.scene = await self._sight(asker, npc_id, deadline)
            # Whoever may see the NPC may see its intent: both are reads of state.
            if look.scene is not None:
                look.intent = _fresh(await intents.get(self._redis, npc_id), look.scene)
        except (*LOST, BodyBrokerError):
            return


def _fresh(held: intents.Held | None, scene: Scene) -> Line | None:
    """The intent, where it is meant for the NPC as it is now."""
    if held is None or held.state != "fresh" or held.intent.version != scene.version:
        return None
    return Line(Wanted(held.intent.kind, held.intent.target).line)


def _key(request: InferenceRequest, asker: Asker) -> str:
    # Bound to the requester: nobody is answered what somebody else was. Other choices are another question.
    return f"gold:last:{digest(asker.caller.requester, request.npc_id or '', *request.choices)}"


def digest(*parts: str) -> str:
    """A short name for these parts together."""
    return hashlib.blake2s("\0".join(parts).encode(), digest_size=16).hexdigest()
