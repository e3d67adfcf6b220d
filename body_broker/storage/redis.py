"""Owns connections to Redis, Valkey or Dragonfly: one client a process, with limits. Strings, Streams, EVAL; nothing else."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import redis.asyncio as aioredis
from redis.exceptions import RedisError

from body_broker.errors import StoreStartError
from body_broker.storage.traced import TracedRedis
from body_broker.tracing import on

Redis = aioredis.Redis
_TIMEOUT_S = 5
LOST: tuple[type[BaseException], ...] = (OSError, RedisError, TimeoutError)
"""What a lost or unreachable Redis raises; expected failures, told as `unavailable` or answered fail-closed."""


@asynccontextmanager
async def open_redis(url: str, *, connections_max: int = 32) -> AsyncGenerator[Redis]:
    """A client that is closed on the way out; replies are bytes.

    Args:
        url: A Redis URL; never logged.
        connections_max: Upper bound of open connections; who finds all in use waits for one, up to 5 s.

    Raises:
        StoreStartError: The server does not answer PING (one that is still loading its file does not either).
    """
    try:
        # driver_info: naming itself to the server, redis-py reads its version from disk for every connection.
        pool = aioredis.BlockingConnectionPool.from_url(  # pyright: ignore[reportUnknownMemberType]  # redis-py's hints
            url,
            max_connections=connections_max,
            timeout=_TIMEOUT_S,
            socket_timeout=_TIMEOUT_S,
            socket_connect_timeout=_TIMEOUT_S,
            driver_info=None,
        )
    except ValueError as error:
        raise StoreStartError(
            "BODY_BROKER_REDIS_URL is not a URL of Redis.", next_step="Use redis://, rediss:// or unix://."
        ) from error
    client: Redis = (TracedRedis if on() else aioredis.Redis).from_pool(pool)
    try:
        try:
            await client.execute_command("PING")  # pyright: ignore[reportUnknownMemberType]  # redis-py's hints
        except LOST as error:
            raise StoreStartError(
                "Redis cannot be reached.", next_step="Check BODY_BROKER_REDIS_URL and that it is up."
            ) from error
        yield client
    finally:
        await client.aclose()
