"""A hub that is paused in the middle of a move: nobody waits for it for long, and it is thrown out."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import pytest

from approvals import store, sweeper
from approvals.desk import Desk
from body_broker.errors import Unavailable
from body_broker.storage.postgres import Pool
from policies.engine import Policy
from tests.approvals.scene import past_its_time, subject, yes
from tests.approvals.test_sweeper import run_of
from tests.waiting import wait_until


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits in a test."""
    monkeypatch.setattr(store, "_LOCKED_MAX_S", 0.2)


@asynccontextmanager
async def paused(pool: Pool, statement: str, *values: str) -> AsyncGenerator[None]:
    """Another hub that stands still in a transaction of its own."""
    async with pool.acquire() as connection, connection.transaction():
        await connection.execute(statement, *values)
        yield


async def test_who_votes_or_settles_meanwhile_is_told_to_repeat_it(desk: Desk, policy: Policy, pool: Pool) -> None:
    approval = (await desk.ask(subject(policy))).approval
    async with paused(pool, "SELECT true FROM approval WHERE id = $1 FOR UPDATE", approval.id):
        with pytest.raises(Unavailable, match="Somebody else is deciding it") as refusal:
            await yes(desk, approval)
        assert "Repeat it in a few seconds" in refusal.value.next_step
    assert (await yes(desk, approval)).standing == "approved"


async def test_who_asks_for_something_else_meanwhile_is_told_to_repeat_it(
    desk: Desk, policy: Policy, pool: Pool
) -> None:
    lock = "SELECT pg_advisory_xact_lock(hashtextextended('approval ' || $1, 0))"
    async with paused(pool, lock, "tier:bronze"):
        with pytest.raises(Unavailable, match="Somebody else"):
            await desk.ask(subject(policy))
    assert not (await desk.ask(subject(policy))).joined


async def test_a_hub_that_stands_still_inside_a_move_is_thrown_out(
    desk: Desk, policy: Policy, pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "_PAUSED_MAX_S", 0.2)
    idle = "SELECT count(*) FROM pg_stat_activity WHERE state = 'idle in transaction' AND datname = current_database()"

    async def gone() -> bool:
        return await pool.fetchval(idle) == 0

    async def stand_still() -> None:
        async with store.moving(pool) as connection:
            await store.lock_requester(connection, "tier:bronze")
            await wait_until(gone, "its session is ended")
            await connection.execute("SELECT 1")

    with pytest.raises(Exception, match=r"idle-in-transaction|connection"):
        await stand_still()
    assert not (await desk.ask(subject(policy))).joined


async def test_one_row_that_is_held_keeps_the_sweep_from_no_other(desk: Desk, policy: Policy, pool: Pool) -> None:
    held = (await desk.ask(subject(policy))).approval
    other = (await desk.ask(subject(policy, count=2))).approval
    for each in (held, other):
        await past_its_time(pool, each.id)
    async with paused(pool, "SELECT true FROM approval WHERE id = $1 FOR UPDATE", held.id):
        done = await sweeper.handlers(desk)[sweeper.SWEEP](run_of(pool, sweeper.SWEEP))
        assert done["expired"] == 1
    state = "SELECT state FROM approval WHERE id = $1"
    assert [await pool.fetchval(state, each.id) for each in (held, other)] == ["pending", "expired"]
