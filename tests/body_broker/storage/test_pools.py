"""Connections have limits: who finds all in use waits, and what cannot be reached is said without repeating its URL."""

from __future__ import annotations

import asyncio

import pytest

from body_broker.errors import StoreStartError
from body_broker.storage.postgres import STATEMENT_TIMEOUT_S, Pool, open_pool
from body_broker.storage.redis import Redis, open_redis
from tests.waiting import wait_until


async def test_a_pool_opens_no_more_connections_than_it_may_and_the_rest_wait(database_url: str, pool: Pool) -> None:
    count = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'narrow'"
    async with open_pool(database_url, connections_max=2, name="narrow") as narrow:
        first, second = await narrow.acquire(), await narrow.acquire()
        third = asyncio.create_task(narrow.fetchval("SELECT 3"))
        assert await pool.fetchval(count) == 2
        assert not third.done()

        await narrow.release(first)
        assert await third == 3
        assert await pool.fetchval(count) == 2
        await narrow.release(second)
    await wait_until(lambda: _is_zero(pool, count), "all are closed")


async def test_a_hundred_commands_share_the_few_connections_redis_may_have(redis_url: str, redis: Redis) -> None:
    async with open_redis(redis_url, connections_max=3) as narrow:
        assert await asyncio.gather(*(narrow.incr("n") for _ in range(100))) != []
        assert await redis.get("n") == b"100"

        async def few() -> bool:
            return len(await redis.client_list()) <= 3 + 1  # pyright: ignore[reportUnknownMemberType]  # redis-py's hints

        await wait_until(few, "there are no more than these, once those of the tests before have gone")


async def test_a_connection_gives_up_a_statement_that_takes_too_long(pool: Pool) -> None:
    assert await pool.fetchval("SHOW statement_timeout") == f"{STATEMENT_TIMEOUT_S}s"
    assert await pool.fetchval("SHOW timezone") == "UTC"


@pytest.mark.parametrize(
    "url", ["postgresql://anna:hunter2@127.0.0.1:1/x", "postgresql://anna:hunter2@[/x", "hunter2", "redis://hunter2"]
)
async def test_a_database_that_cannot_be_reached_is_named_without_its_secret(url: str) -> None:
    with pytest.raises(StoreStartError) as caught:
        async with open_pool(url):
            pass
    assert "hunter2" not in f"{caught.value.message} {caught.value.next_step}"
    assert "BODY_BROKER_DATABASE_URL" in caught.value.next_step


@pytest.mark.parametrize(
    "url", ["redis://:hunter2@127.0.0.1:1", "hunter2", "unix:///hunter2.sock", "redis://x:hunter2"]
)
async def test_a_redis_that_cannot_be_reached_is_named_without_its_secret(url: str) -> None:
    with pytest.raises(StoreStartError) as caught:
        async with open_redis(url):
            pass
    said = f"{caught.value.message} {caught.value.next_step}"
    assert "hunter2" not in said
    assert "BODY_BROKER_REDIS_URL" in said


async def _is_zero(pool: Pool, count: str) -> bool:
    return await pool.fetchval(count) == 0
