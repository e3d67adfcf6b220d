"""Owns an engine played by hand: a test says each message itself, right or wrong."""

from __future__ import annotations

from typing import Any, TypeVar

import orjson
from pydantic import BaseModel

from body_broker.storage.redis import Redis
from body_broker.world.engine.coding import Unreadable, read_order
from body_broker.world.engine.messages import TO_ENGINE, TO_HUB, Change, Order, Snapshot, Taken, Welcome
from body_broker.world.engine.streams import FIRST, Stream
from tests.waiting import wait_until

M = TypeVar("M", bound=BaseModel)


class Hand:
    """One instance of one engine, which knows what was said to it."""

    def __init__(self, redis: Redis, engine: str = "hand", instance: str = "1") -> None:
        self._orders, self._reports = Stream(redis, TO_ENGINE), Stream(redis, TO_HUB)
        self.engine, self.instance = engine, instance
        self.heard: list[Order] = []
        self.raw: list[bytes] = []
        self._after = FIRST
        self.epoch = 0
        self.n = 0

    async def join(self) -> Welcome:
        """Be welcome."""
        found = await self.greet(Welcome)
        self.epoch, self.n = found.epoch, 0
        await self.hear(Snapshot)
        return found

    async def greet(self, answer: type[M]) -> M:
        """Say hello, and the answer of this type to it."""
        place = len(self.heard)
        await self.say(type="hello", engine=self.engine, instance=self.instance)
        return await self.hear(
            answer,
            after=place,
            engine=self.engine,
            instance=self.instance,
        )

    async def say(self, raw: bytes | None = None, /, **fields: Any) -> str:
        """Write a message; the id of its entry."""
        return await self._reports.add(raw if raw is not None else orjson.dumps({"v": 1, **fields}))

    async def count(self, **fields: Any) -> str:
        """Say a message of this epoch with the next number."""
        self.n += 1
        return await self.say(epoch=self.epoch, n=self.n, **fields)

    async def outcome(self, *outcomes: dict[str, Any]) -> str:
        """Say what became of changes."""
        return await self.count(type="outcome", tick=200, outcomes=list(outcomes))

    async def change(self, change_id: str) -> Change:
        """The message that has this change."""

        async def look() -> Change | None:
            await self._listen()
            every = [order for order in self.heard if isinstance(order, Change) and order.epoch == self.epoch]
            return next((o for o in every if any(c.change_id == change_id for c in o.changes)), None)

        found = await wait_until(look, f"{change_id} was sent")
        assert found is not None
        return found

    async def hear(self, kind: type[M], *, after: int = 0, **fields: Any) -> M:
        """The first message of this type with these fields, of all since that place."""

        async def look() -> M | None:
            await self._listen()
            return next((o for o in self.heard[after:] if isinstance(o, kind) and _has(o, fields)), None)

        found = await wait_until(look, f"{kind.__name__} {fields} was said; there is {self.heard[after:]}")
        assert found is not None
        return found

    async def _listen(self) -> None:
        for entry, raw in await self._orders.read(self._after):
            self._after = entry
            order = read_order(raw)
            assert not isinstance(order, Unreadable), order
            self.heard.append(order)
            self.raw.append(raw)


def _has(order: BaseModel, fields: dict[str, Any]) -> bool:
    return all(getattr(order, name) == value for name, value in fields.items())


def effect(entity_id: str, version: int, **more: Any) -> dict[str, Any]:
    """An effect that hurts."""
    return {"entity_id": entity_id, "version": version, "type": "hurt", "patch": {"health": 70}, **more}


def applied(change_id: str, *effects: dict[str, Any]) -> dict[str, Any]:
    return {"change_id": change_id, "state": "applied", "effects": list(effects)}


__all__ = ["Hand", "Taken", "applied", "effect"]
