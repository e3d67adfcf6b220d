"""The schema is brought up to date by whoever comes first, whole or not at all, and a newer one is left alone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import asyncpg
import pytest

from body_broker.errors import SchemaTooNew, StoreStartError
from body_broker.storage import embedded
from body_broker.storage.migrations import Migration, migrate, migrations
from body_broker.storage.postgres import Pool, open_pool

KNOWN = migrations()
FIRST = Migration(1, "first", "CREATE TABLE one (n integer); INSERT INTO one VALUES (1)")
SECOND = Migration(2, "second", "ALTER TABLE one ADD COLUMN m integer")
BROKEN = Migration(2, "broken", "CREATE TABLE two (n integer); SELECT nonsense")


@pytest.fixture
async def empty_url(store_urls: embedded.StoreUrls) -> AsyncIterator[str]:
    """A database in which nothing was migrated."""
    admin = await asyncpg.connect(store_urls.database_url)
    await admin.execute("CREATE DATABASE empty")
    yield store_urls.database_url.replace("/postgres?", "/empty?")
    await admin.execute("DROP DATABASE empty WITH (FORCE)")
    await admin.close()


@pytest.fixture
async def empty(empty_url: str) -> AsyncIterator[Pool]:
    async with open_pool(empty_url) as found:
        yield found


def test_the_migrations_are_numbered_without_a_gap() -> None:
    assert [m.number for m in KNOWN] == list(range(1, len(KNOWN) + 1))
    assert len({m.name for m in KNOWN}) == len(KNOWN) > 0


async def test_migrating_again_changes_nothing(empty: Pool) -> None:
    assert await migrate(empty) == len(KNOWN)
    before = await empty.fetch("SELECT number, name, at FROM schema_version ORDER BY number")

    assert await migrate(empty) == len(KNOWN)

    assert await empty.fetch("SELECT number, name, at FROM schema_version ORDER BY number") == before
    assert [row["name"] for row in before] == [m.name for m in KNOWN]


async def test_only_what_is_missing_is_applied(empty: Pool) -> None:
    await migrate(empty, [FIRST])
    assert await migrate(empty, [FIRST, SECOND]) == 2
    assert await empty.fetchval("SELECT count(*) FROM one WHERE m IS NULL") == 1


async def test_many_at_once_apply_each_migration_once(empty_url: str) -> None:
    async def one_process() -> int:
        async with open_pool(empty_url) as pool:
            return await migrate(pool, [FIRST, SECOND])

    assert await asyncio.gather(*(one_process() for _ in range(8))) == [2] * 8

    async with open_pool(empty_url) as pool:
        assert await pool.fetchval("SELECT count(*) FROM one") == 1


async def test_a_newer_schema_is_refused_and_left_alone(empty: Pool) -> None:
    await migrate(empty, [FIRST, SECOND])

    with pytest.raises(SchemaTooNew, match="The database has schema 2; this program knows 1"):
        await migrate(empty, [FIRST])

    assert await empty.fetchval("SELECT count(*) FROM schema_version") == 2


async def test_a_schema_of_another_program_is_refused(empty: Pool) -> None:
    await migrate(empty, [FIRST])

    with pytest.raises(StoreStartError, match="schema 1 is first, here it is other: another program made it"):
        await migrate(empty, [Migration(1, "other", "SELECT 1"), SECOND])


async def test_a_migration_that_does_not_apply_undoes_all_of_them(empty: Pool) -> None:
    with pytest.raises(StoreStartError, match=r"Migration 2 \(broken\) does not apply"):
        await migrate(empty, [FIRST, BROKEN])

    assert await empty.fetchval("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'") == 0


async def test_a_role_that_may_not_write_is_told_so(empty: Pool, empty_url: str) -> None:
    await empty.execute("CREATE ROLE reader LOGIN")
    try:
        async with open_pool(empty_url.replace("postgres@", "reader@")) as pool:
            with pytest.raises(StoreStartError, match="cannot be brought up to date"):
                await migrate(pool)
    finally:
        await empty.execute("DROP ROLE reader")
