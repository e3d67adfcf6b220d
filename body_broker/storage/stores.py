"""Owns the opening of a process's stores: the configured servers, the embedded ones where a URL is missing, the schema."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from body_broker.settings import Settings
from body_broker.storage import embedded
from body_broker.storage.migrations import migrate
from body_broker.storage.postgres import Pool, open_pool
from body_broker.storage.redis import Redis, open_redis


@dataclass(frozen=True, slots=True)
class Stores:
    """What a process keeps its state in; the URLs are secrets and are never logged."""

    pool: Pool
    redis: Redis
    database_url: str
    redis_url: str


@asynccontextmanager
async def open_stores(settings: Settings, *, name: str) -> AsyncGenerator[Stores]:
    """The stores of these settings, migrated; closed, and the embedded ones let go, on the way out.

    Args:
        settings: Where a URL is missing, an embedded server takes its place.
        name: What pg_stat_activity shows, such as `hub` or `worker`.

    Raises:
        StoreStartError: A store cannot be reached or started, or a migration does not apply.
        SchemaTooNew: The database was migrated by a newer program.
    """
    async with AsyncExitStack() as stack:
        database_url = settings.database_url.get_secret_value() if settings.database_url else None
        redis_url = settings.redis_url.get_secret_value() if settings.redis_url else None
        if database_url is None or redis_url is None:
            urls = await asyncio.to_thread(
                embedded.start, settings.data_dir, postgres=database_url is None, valkey=redis_url is None
            )
            stack.push_async_callback(asyncio.to_thread, embedded.release, settings.data_dir)
            database_url, redis_url = database_url or urls.database_url, redis_url or urls.redis_url
        pool = await stack.enter_async_context(
            open_pool(database_url, connections_max=settings.database_connections_max, name=f"body-broker {name}")
        )
        redis = await stack.enter_async_context(open_redis(redis_url, connections_max=settings.redis_connections_max))
        await migrate(pool)
        yield Stores(pool, redis, database_url, redis_url)
