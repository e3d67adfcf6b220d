"""Owns the spans of objects: which of the four calls it was and how long it took; never a key."""

from __future__ import annotations

from body_broker.storage.objects.model import JSON_TYPE, Objects
from body_broker.tracing import on, store


def traced(objects: Objects, system: str) -> Objects:
    """The same objects, with spans where this process records any.

    Args:
        objects: Where they are.
        system: `db.system.name`.
    """
    return _Traced(objects, system) if on() else objects


class _Traced:
    def __init__(self, objects: Objects, system: str) -> None:
        self._objects, self._system = objects, system

    async def put(self, key: str, body: bytes, *, content_type: str = JSON_TYPE) -> None:
        with store(self._system, "put"):
            await self._objects.put(key, body, content_type=content_type)

    async def get(self, key: str) -> bytes:
        with store(self._system, "get"):
            return await self._objects.get(key)

    async def head(self, key: str) -> int | None:
        with store(self._system, "head"):
            return await self._objects.head(key)

    async def drop(self, key: str) -> None:
        with store(self._system, "drop"):
            await self._objects.drop(key)
