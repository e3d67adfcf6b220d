"""Owns the proof of effects under a key: once, whoever repeats them, and all or nothing with what they gave."""

from __future__ import annotations

import asyncio

import pytest

from body_broker.calls import Json
from body_broker.errors import Conflict
from body_broker.storage.postgres import Pool
from body_broker.work import keyed, queue
from body_broker.work.model import Origin


@pytest.fixture
async def made(pool: Pool) -> Pool:
    await pool.execute("CREATE TABLE made (n integer)")
    return pool


async def once(pool: Pool, key: str | None, *, fails: bool = False) -> Json:
    """Make a row under a key; how many there are."""
    async with pool.acquire() as connection, connection.transaction():

        async def effect() -> Json:
            await connection.execute("INSERT INTO made VALUES (1)")
            if fails:
                raise Conflict("Not now.")
            return await connection.fetchval("SELECT count(*) FROM made")

        return await keyed.once(connection, key, effect)


async def test_the_same_key_is_the_same_effect_and_gives_what_it_gave(made: Pool) -> None:
    assert [await once(made, "apr_1"), await once(made, "apr_1"), await once(made, "apr_2")] == [1, 1, 2]
    assert await keyed.recall(made, "apr_1") == 1
    assert await keyed.recall(made, "apr_3") is None


async def test_without_a_key_it_happens_each_time(made: Pool) -> None:
    assert [await once(made, None), await once(made, None)] == [1, 2]


async def test_what_failed_did_not_happen_and_may_be_done_under_its_key(made: Pool) -> None:
    with pytest.raises(Conflict, match="Not now"):
        await once(made, "apr_1", fails=True)
    assert await once(made, "apr_1") == 1


async def test_two_at_the_same_moment_are_one(made: Pool) -> None:
    assert await asyncio.gather(*(once(made, "apr_1") for _ in range(4))) == [1, 1, 1, 1]


async def test_what_is_old_is_forgotten(made: Pool) -> None:
    await once(made, "apr_1")
    assert await keyed.purge(made, older_than_s=60) == 0
    assert await keyed.purge(made, older_than_s=-60) == 1
    assert await keyed.recall(made, "apr_1") is None


@pytest.mark.parametrize("ended", [True, False])
async def test_what_is_old_is_kept_while_its_work_may_still_be_done_again(made: Pool, *, ended: bool) -> None:
    origin = Origin(chain=("person:anna",), session="s_1")
    async with made.acquire() as connection, connection.transaction():
        key = await queue.enqueue(connection, "approved_call", {}, origin=origin)
    await once(made, key)
    if ended:
        await queue.cancel(made, key, owner="person:anna")
    assert await keyed.purge(made, older_than_s=-60) == (1 if ended else 0)
    assert await keyed.recall(made, key) == (None if ended else 1)


@pytest.mark.parametrize("ended", [True, False])
async def test_what_a_job_did_is_kept_while_the_job_may_do_it_again(made: Pool, *, ended: bool) -> None:
    origin = Origin(chain=("person:anna",), session="s_1")
    async with made.acquire() as connection, connection.transaction():
        job = await queue.enqueue(connection, "expert", {}, origin=origin)
    await once(made, f"{job} 3.1")
    if ended:
        await queue.cancel(made, job, owner="person:anna")
    assert await keyed.purge(made, older_than_s=-60) == (1 if ended else 0)
