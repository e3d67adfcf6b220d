"""What of durable work is told to whoever follows it: each move of a job once its transaction commits, and nothing of the hub's own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from body_broker.storage.postgres import Pool
from body_broker.work import queue
from body_broker.work.model import Origin
from body_broker.work.moves import Moves
from tests.body_broker.work.bench import Bench
from tests.waiting import wait_until

_CUT = """
SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
WHERE application_name = 'body-broker moves' AND datname = current_database()
"""
_MOVES = (
    "UPDATE work SET state = 'running', lease_until = now() WHERE id = $1",
    """UPDATE work SET progress = '{"done": 1, "total": 2, "message": "half"}' WHERE id = $1""",
    "UPDATE work SET state = 'waiting', lease_until = NULL, waits_for = 'expert:x' WHERE id = $1",
    "UPDATE work SET waits_for = 'expert:y' WHERE id = $1",
    "UPDATE work SET state = 'cancelled', finished_at = now() WHERE id = $1",
)
_SILENT = "UPDATE work SET priority = 1, state = state, progress = progress WHERE id = $1"


@pytest.fixture
async def moves(database_url: str) -> AsyncIterator[Moves]:
    made = Moves(database_url)
    yield made
    await made.close()


async def test_each_move_of_a_job_is_told_and_what_moves_nothing_is_not(bench: Bench, moves: Moves) -> None:
    job, other = await bench.add("nobody.runs"), await bench.add("nobody.runs")
    async with moves.following([job, "fence"]) as follower, moves.following([job]) as also:
        for move in _MOVES:
            await bench.pool.execute(move, other)
            await bench.pool.execute(move, job)
            assert await follower.moved() == [job]
            assert await also.moved() == [job]
        await bench.pool.execute(_SILENT, job)
        await bench.pool.execute("SELECT pg_notify('work_moved', 'fence')")
        assert await follower.moved() == ["fence"]


@pytest.mark.parametrize(
    ("owner", "kind"), [("service:body-broker", "results.purge"), ("person:anna", "approved_call")]
)
async def test_the_hub_s_own_work_and_approved_calls_are_not_told(
    bench: Bench, moves: Moves, owner: str, kind: str
) -> None:
    quiet = await queue.enqueue(bench.pool, kind, {}, origin=Origin(chain=(owner,), session="s"))
    told = await bench.add("nobody.runs")
    async with moves.following([quiet, told]) as follower:
        for each in (quiet, told):
            await bench.pool.execute("UPDATE work SET state = 'waiting' WHERE id = $1", each)
        assert await follower.moved() == [told]


async def test_after_a_lost_connection_everything_followed_is_looked_at(pool: Pool, moves: Moves) -> None:
    async with moves.following(["job_x", "job_y"]) as follower:
        await wait_until(lambda: pool.fetchval(_CUT), "its connection is cut")
        async with asyncio.timeout(60):
            assert sorted(await follower.moved()) == ["job_x", "job_y"]
