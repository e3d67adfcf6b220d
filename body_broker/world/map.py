"""Owns this process's map of the world: every entity, kept as the engine leaves it, read without a store."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager

from body_broker.storage.postgres import Pool
from body_broker.storage.redis import Redis
from body_broker.world.model import Event

OnEvent = Callable[[Event], Awaitable[None]]


class WorldMap:
    """The world in memory."""

    def __init__(self, pool: Pool, redis: Redis, on_event: OnEvent) -> None:
        self._pool, self._redis, self._on_event = pool, redis, on_event

    @asynccontextmanager
    async def following(self) -> AsyncGenerator[None]:
        """Keep it as the engine leaves the world while open."""
        yield
