"""A process opens its stores from its settings: embedded where a URL is missing, migrated, and closed on the way out."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest

from body_broker.errors import StoreStartError
from body_broker.settings import Settings
from body_broker.storage import embedded
from body_broker.storage.migrations import migrations
from body_broker.storage.postgres import LOST as POSTGRES_LOST
from body_broker.storage.redis import LOST as REDIS_LOST
from body_broker.storage.stores import Stores, open_stores
from tests.body_broker.storage.users import wait_gone
from tests.waiting import wait_until

KNOWN = migrations()


async def test_without_urls_both_stores_are_embedded_migrated_and_let_go(own_dir: Path) -> None:
    async with open_stores(_settings(own_dir), name="test") as stores:
        kept = await _status(own_dir)
        assert kept.postgres_pid
        assert kept.valkey_pid
        assert await stores.pool.fetchval("SELECT max(number) FROM schema_version") == len(KNOWN)
        assert await stores.pool.fetchval("SHOW application_name") == "body-broker test"
        assert await stores.redis.set("a", b"1")
    await asyncio.to_thread(wait_gone, kept)


async def test_a_database_url_replaces_the_embedded_postgresql(own_dir: Path, database_url: str) -> None:
    settings = _settings(own_dir, database_url=database_url)
    async with open_stores(settings, name="test") as stores:
        assert stores.database_url == database_url
        assert await stores.pool.fetchval("SELECT current_database()") in database_url
        assert await stores.redis.set("a", b"1")
        assert (await _status(own_dir)).postgres_pid is None
        assert not await asyncio.to_thread((own_dir / "stores" / "postgres").exists)


async def test_a_redis_url_replaces_the_embedded_valkey(own_dir: Path, redis_url: str) -> None:
    async with open_stores(_settings(own_dir, redis_url=redis_url), name="test") as stores:
        assert stores.redis_url == redis_url
        assert await stores.redis.set("a", b"1")
        assert (await _status(own_dir)).valkey_pid is None
        assert (await _status(own_dir)).postgres_pid


async def test_with_both_urls_the_data_directory_is_not_touched(
    own_dir: Path, database_url: str, redis_url: str
) -> None:
    settings = _settings(own_dir, database_url=database_url, redis_url=redis_url)
    async with open_stores(settings, name="test") as stores:
        assert await stores.pool.fetchval("SELECT 1") == 1
    assert not await asyncio.to_thread(own_dir.exists)


async def test_a_user_whose_keeper_is_killed_has_its_stores_back_by_itself(own_dir: Path) -> None:
    async with open_stores(_settings(own_dir), name="test") as stores:
        await stores.redis.set("kept", b"42")
        await stores.pool.execute("CREATE TABLE kept AS SELECT 42 AS n")
        before = await _status(own_dir)

        os.kill(before.keeper_pid or 0, signal.SIGKILL)
        await wait_until(lambda: _replaced(own_dir, before), "another keeper is there")
        await wait_until(lambda: _kept(stores), "both pools answer again")


async def test_a_store_that_does_not_start_leaves_no_hold(own_dir: Path) -> None:
    with pytest.raises(StoreStartError, match="Redis cannot be reached"):
        async with open_stores(_settings(own_dir, redis_url="unix:///nowhere/at/all.sock"), name="test"):
            pass
    await wait_until(lambda: _is_unkept(own_dir), "the keeper ends")


def _settings(data_dir: Path, **urls: str) -> Settings:
    return Settings.model_validate({"data_dir": data_dir, **urls})


async def _status(data_dir: Path) -> embedded.EmbeddedStatus:
    return await asyncio.to_thread(embedded.status, data_dir)


async def _is_unkept(data_dir: Path) -> bool:
    return (await _status(data_dir)).keeper_pid is None


async def _replaced(data_dir: Path, before: embedded.EmbeddedStatus) -> bool:
    return (await _status(data_dir)).keeper_pid not in {None, before.keeper_pid}


async def _kept(stores: Stores) -> bool:
    try:
        return await stores.pool.fetchval("SELECT n FROM kept") == 42 and await stores.redis.get("kept") == b"42"
    except (*POSTGRES_LOST, *REDIS_LOST):
        return False
