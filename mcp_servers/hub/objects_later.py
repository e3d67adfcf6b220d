"""Owns objects that are opened at their first use: a process that puts and reads none makes no directory and loads no client of S3."""

from __future__ import annotations

import asyncio
from contextlib import AbstractAsyncContextManager, AsyncExitStack

from body_broker.errors import Unavailable
from body_broker.settings import Settings
from body_broker.storage.objects import Objects, open_objects

_JSON = "application/json"


class LaterObjects:
    """The place of `results`, as `storage.objects.Objects` has it.

    Args:
        settings: Which place.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._opening, self._stack = asyncio.Lock(), AsyncExitStack()
        self._objects: Objects | None = None
        self._closed = False

    async def ready(self) -> Objects:
        """The place, opened now if nobody has used it before.

        Raises:
            SettingsError: The setting names no place.
            NotConfigured: Its directory cannot be made.
            Unavailable: Its disk fails, or this process is stopping.
        """
        if self._objects is None:
            async with self._opening:
                if self._closed:
                    raise Unavailable("The results of this hub are not open.", details={"component": "results"})
                if self._objects is None:
                    self._objects = await self._stack.enter_async_context(_open(self._settings))
        return self._objects

    async def put(self, key: str, body: bytes, *, content_type: str = _JSON) -> None:
        """As `Objects` has it."""
        await (await self.ready()).put(key, body, content_type=content_type)

    async def get(self, key: str) -> bytes:
        """As `Objects` has it."""
        return await (await self.ready()).get(key)

    async def head(self, key: str) -> int | None:
        """As `Objects` has it."""
        return await (await self.ready()).head(key)

    async def drop(self, key: str) -> None:
        """As `Objects` has it."""
        await (await self.ready()).drop(key)

    async def close(self) -> None:
        """Put and read nothing more."""
        async with self._opening:
            self._closed, self._objects = True, None
            await self._stack.aclose()


def _open(settings: Settings) -> AbstractAsyncContextManager[Objects]:
    where = settings.results or str(settings.data_dir / "results")
    every = settings.aws_endpoint_url if "://" in where else None
    return open_objects(where, endpoint_url=settings.results_endpoint_url or every, region=settings.aws_region)
