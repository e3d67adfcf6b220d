"""Owns what listeners hear: one Redis stream that every hub tails, so that a change made through one is heard on all."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Collection, Mapping
from contextlib import asynccontextmanager
from typing import Any, Literal, cast

from mcp.server.subscriptions import (
    InMemorySubscriptionBus,
    PromptsListChanged,
    ResourcesListChanged,
    ResourceUpdated,
    ServerEvent,
    ToolsListChanged,
)

from body_broker.background import running
from body_broker.errors import Unavailable
from body_broker.storage.redis import LOST, Redis
from body_broker.telemetry import get_logger
from body_broker.work.moves import Moves

log = get_logger(__name__)

Fields = dict[Any, Any]  # redis-py is invariant in its field types

STREAM = "body-broker:events"
KEPT = 10_000
_BLOCK_MS = 2_000
_LOG_LEVEL = "log-level:"
_LOG_LEVEL_KEPT_S = 24 * 3600
ListKind = Literal["tools", "resources", "prompts"]
_LISTS: Mapping[str, type[ToolsListChanged | ResourcesListChanged | PromptsListChanged]] = {
    "tools": ToolsListChanged,
    "resources": ResourcesListChanged,
    "prompts": PromptsListChanged,
}


class EventBus(InMemorySubscriptionBus):
    """The SDK's bus over Redis: `publish` writes to the stream, a tail delivers what any hub wrote to the listeners here.

    Beside them it has `moves`, what jobs and approvals say of themselves, where they are listened to.
    It also keeps the level of the log lines that a login of before 2026-07-28 wants to hear.
    """

    def __init__(self, redis: Redis, moves: Moves | None = None) -> None:
        super().__init__()
        self._redis, self.moves = redis, moves

    async def publish(self, event: ServerEvent) -> None:
        """Tell every hub's listeners; fire and forget, as the protocol has it: a lost event is a refetch, never a lie."""
        match event:
            case ResourceUpdated():
                fields: Fields = {"kind": "updated", "uri": str(event.uri)}
            case ToolsListChanged():
                fields = {"kind": "list", "of": "tools"}
            case ResourcesListChanged():
                fields = {"kind": "list", "of": "resources"}
            case PromptsListChanged():
                fields = {"kind": "list", "of": "prompts"}
        try:
            await self._redis.xadd(STREAM, fields, maxlen=KEPT, approximate=True)
        except LOST:
            log.warning("event_not_published")

    async def resource_updated(self, uri: str) -> None:
        """A resource has new content; what rooms are given to announce their changes."""
        await self.publish(ResourceUpdated(uri=uri))

    async def heard_here(self, uri: str) -> None:
        """A resource has new content, and every hub learns of it by itself: tell only who listens here."""
        await super().publish(ResourceUpdated(uri=uri))

    async def lists_changed_here(self, kinds: Collection[ListKind]) -> None:
        """Lists are others now, and every hub learns of it by itself: tell only who listens here, once they are."""
        for kind in kinds:
            await super().publish(_LISTS[kind]())

    async def set_log_level(self, session: str, level: str) -> None:
        """What this login wants to hear from now on, for a day.

        Raises:
            Unavailable: Redis is away.
        """
        try:
            await self._redis.set(_LOG_LEVEL + session, level, ex=_LOG_LEVEL_KEPT_S)
        except LOST as error:
            raise Unavailable("The store of log levels is away.", details={"component": "redis"}) from error

    async def log_level(self, session: str) -> str | None:
        """What this login wants to hear; None where it never said, or nobody can tell."""
        try:
            found = await self._redis.get(_LOG_LEVEL + session)
        except LOST:
            return None
        return found.decode() if isinstance(found, bytes) else found

    @asynccontextmanager
    async def tailing(self) -> AsyncGenerator[None]:
        """Deliver events while open; resumes from the last one after a lost connection."""
        async with running(self._tail(), name="events"):
            yield

    async def _tail(self) -> None:
        last = "$"
        while True:
            try:
                found = await self._redis.xread({STREAM: last}, block=_BLOCK_MS, count=256)
            except LOST:
                log.warning("events_lost_connection")
                await asyncio.sleep(0.5)
                continue
            for entry_id, fields in _entries(found):
                last = entry_id
                event = _event(fields)
                if event is not None:
                    await super().publish(event)


def _entries(reply: Any) -> list[tuple[str, dict[bytes, bytes]]]:  # XREAD's reply in RESP2's or RESP3's shape
    streams: list[Any] = (
        list(cast("dict[bytes, Any]", reply).values())
        if isinstance(reply, dict)
        else [pair[1] for pair in cast("list[Any]", reply or [])]
    )
    entries: list[tuple[str, dict[bytes, bytes]]] = []
    for stream in streams:
        batches: list[Any] = stream if stream and isinstance(stream[0], list) else [stream]
        for batch in batches:
            entries += [(entry_id.decode(), fields) for entry_id, fields in batch]
    return entries


def _event(fields: dict[bytes, bytes]) -> ServerEvent | None:
    if fields.get(b"kind") == b"updated":
        return ResourceUpdated(uri=fields.get(b"uri", b"").decode())
    made = _LISTS.get(fields.get(b"of", b"").decode())
    return made() if made else None
