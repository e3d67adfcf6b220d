"""Owns the opening of a process's stores: the configured servers, the embedded ones where a URL is missing, the schema."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from body_broker.background import running
from body_broker.errors import StoreStartError
from body_broker.settings import Settings
from body_broker.storage import embedded
from body_broker.storage.migrations import migrate
from body_broker.storage.postgres import Pool, open_pool
from body_broker.storage.redis import Redis, open_redis
from body_broker.telemetry import get_logger

_KEEPER_CHECK_S = 1.0
_START_S = 120.0  # failures are told at once; only a database that recovers from a crash takes its time
_log = get_logger(__name__)


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
            urls = await stack.enter_async_context(_embedded(settings))
            database_url, redis_url = database_url or urls.database_url, redis_url or urls.redis_url
        pool = await stack.enter_async_context(
            open_pool(database_url, connections_max=settings.database_connections_max, name=f"body-broker {name}")
        )
        redis = await stack.enter_async_context(open_redis(redis_url, connections_max=settings.redis_connections_max))
        await migrate(pool)
        yield Stores(pool, redis, database_url, redis_url)


@asynccontextmanager
async def _embedded(settings: Settings) -> AsyncGenerator[embedded.StoreUrls]:
    urls = await asyncio.to_thread(_start, settings)
    try:
        async with running(_revive_killed_keepers(settings), name="keeper-watch"):
            yield urls
    finally:
        await asyncio.to_thread(embedded.release, settings.data_dir)


def _start(settings: Settings) -> embedded.StoreUrls:
    return embedded.start(settings.data_dir, postgres=settings.database_url is None, valkey=settings.redis_url is None)


def _start_again(settings: Settings) -> None:
    _start(settings)
    embedded.release(settings.data_dir)  # the first hold is still ours


async def _revive_killed_keepers(settings: Settings) -> None:
    """The stores die with their keeper, and only a user brings them back; ours should not wait for the next one."""
    while True:
        await asyncio.sleep(_KEEPER_CHECK_S)
        if (await asyncio.to_thread(embedded.status, settings.data_dir)).keeper_pid is None:
            try:
                await asyncio.to_thread(_start_again, settings)
            except StoreStartError as error:
                _log.error("embedded_stores_lost", reason=error.message, next_step=error.next_step)
            else:
                _log.warning("embedded_stores_started_again")
