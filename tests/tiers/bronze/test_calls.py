"""The record of askings and their money: both change together, under the fence, and whatever ends an asking twice books it once."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from decimal import Decimal

import asyncpg
import pytest

from body_broker.storage.postgres import Pool
from body_broker.work import queue
from body_broker.work.lease import claim
from body_broker.work.model import LeaseLost, Origin
from body_broker.work.run import Run
from tests.tiers.test_cost import ASK, BOUND, PRICE
from tiers.bronze.calls import CallRow, CallStore
from tiers.catalogue import Caps, EngineSpec
from tiers.cost import CostLedger
from tiers.counts import Counts
from tiers.model import Tier, Usage

ANNA = "person:anna"
PAID = EngineSpec(name="dear", tier=Tier.BRONZE, dialect="vllm", price=PRICE)
MOST = 200_000_000
"""What ASK can cost with BOUND, in billionths."""


class Spent(Counts):
    def __init__(self) -> None:
        self.usd: list[float] = []

    def spent(self, tier: str, usd: float) -> None:
        assert tier == Tier.BRONZE
        self.usd.append(usd)


@dataclass
class Books:
    """A job that is claimed, its askings, and the money."""

    pool: Pool
    run: Run
    calls: CallStore
    ledger: CostLedger
    counts: Spent

    async def asking(self, attempt: int = 1, *, paid: bool = True, output: str | None = None) -> CallRow:
        """One that has begun."""
        reservation = None
        if paid:
            found = await self.ledger.reserve(Tier.BRONZE, ANNA, PAID, ASK, BOUND, ttl_s=9_000)
            assert found is not None
            reservation = found.id
        async with self.run.fenced() as connection:
            return await self.calls.begin(
                connection,
                self.run.id,
                1,
                attempt,
                engine="dear",
                model="m",
                due_in_s=60,
                output=output,
                reservation=reservation,
            )

    async def money(self) -> tuple[int, int, int]:
        """Reserved, spent and requests of everybody."""
        row = await self.pool.fetchrow("SELECT reserved, spent, requests FROM spend_day WHERE asker = '*'")
        assert row is not None
        return row["reserved"], row["spent"], row["requests"]


@pytest.fixture
async def books(pool: Pool) -> AsyncIterator[Books]:
    await queue.enqueue(pool, "expert", {}, origin=Origin(chain=(ANNA,), session="s-1"))
    async with pool.acquire() as connection:
        run = await claim(connection, pool, ["expert"], "A", 30.0)
    assert run is not None
    counts = Spent()
    caps = Caps({Tier.BRONZE: Decimal(10)}, {Tier.BRONZE: Decimal(10)}, {})
    async with CostLedger.opened(pool, caps, counts) as ledger:
        yield Books(pool, run, CallStore(pool, counts), ledger, counts)


async def test_what_an_answer_cost_is_booked_with_its_row(books: Books) -> None:
    row = await books.asking()
    assert (row.open, row.left_s > 50, row.age_s < 50) == (True, True, True)
    assert await books.money() == (MOST, 0, 0)

    async with books.run.fenced() as connection:
        ended = await books.calls.answered(connection, row, Usage(40, 10), PRICE)

    assert ended is not None
    assert (ended.state, ended.cost, ended.maybe_spent, ended.prompt_tokens) == ("answered", 60_000_000, False, 40)
    assert await books.money() == (0, 60_000_000, 1)
    assert books.counts.usd == [0.06]


async def test_an_answer_that_was_not_counted_may_have_cost_all_that_was_set_aside(books: Books) -> None:
    row = await books.asking()

    async with books.run.fenced() as connection:
        ended = await books.calls.answered(connection, row, None, PRICE)

    assert ended is not None
    assert (ended.cost, ended.maybe_spent) == (None, True)
    assert await books.money() == (0, MOST, 1)


@pytest.mark.parametrize(("maybe", "spent", "requests"), [(False, 0, 0), (True, MOST, 1)])
async def test_a_failure_gives_money_back_unless_it_may_have_been_run(
    books: Books, *, maybe: bool, spent: int, requests: int
) -> None:
    row = await books.asking()

    async with books.run.fenced() as connection:
        ended = await books.calls.failed(connection, row, "failed", maybe_spent=maybe)

    assert ended is not None
    assert (ended.state, ended.reason, ended.cost, ended.maybe_spent) == (
        "failed",
        "failed",
        None if maybe else 0,
        maybe,
    )
    assert await books.money() == (0, spent, requests)


async def test_whatever_ends_it_twice_books_it_once_and_a_late_answer_is_known_for_what_it_cost(books: Books) -> None:
    row = await books.asking(output="s3://b/k")
    async with books.run.fenced() as connection:
        lost = await books.calls.lost(connection, row, "silent")
        await books.calls.lost(connection, row, "silent")
    assert lost is not None
    assert (lost.state, lost.maybe_spent) == ("lost", True)
    assert await books.money() == (0, MOST, 1)

    async with books.run.fenced() as connection:
        late = await books.calls.answered(connection, lost, Usage(40, 10), PRICE)
        again = await books.calls.answered(connection, lost, Usage(40, 10), PRICE)
        failed = await books.calls.failed(connection, lost, "failed")

    assert late is not None
    assert (late.state, late.reason, late.cost, late.maybe_spent) == ("answered", None, 60_000_000, False)
    assert (again, failed) == (None, None)
    assert await books.money() == (0, MOST, 1), "what was booked stays booked"


async def test_what_costs_nothing_is_lost_without_a_doubt_and_counted_when_answered(books: Books) -> None:
    first, second = await books.asking(paid=False), await books.asking(2, paid=False)

    async with books.run.fenced() as connection:
        lost = await books.calls.lost(connection, first, "reset")
        answered = await books.calls.answered(connection, second, Usage(7, 3), None)

    assert lost is not None
    assert answered is not None
    assert (lost.maybe_spent, lost.cost) == (False, 0)
    assert (answered.maybe_spent, answered.cost) == (False, 0)
    assert await books.money() == (0, 0, 1)
    spent = await books.calls.spent_of(books.run.id)
    assert (spent.asked, spent.usage, spent.cost_usd, spent.unpriced) == (2, Usage(7, 3), 0.0, False)


async def test_an_endpoint_that_may_have_run_it_may_have_cost_though_its_tokens_have_no_price(books: Books) -> None:
    row = await books.asking(paid=False, output="s3://b/k")

    async with books.run.fenced() as connection:
        await books.calls.invoked(connection, row, "s3://b/other", None)
        lost = await books.calls.lost(connection, row, "silent")

    assert lost is not None
    assert (lost.maybe_spent, lost.cost, lost.output) == (True, None, "s3://b/other")
    assert (await books.calls.spent_of(books.run.id)).unpriced


async def test_an_answer_that_does_not_hold_keeps_its_cost_and_counts_as_failed(books: Books) -> None:
    row = await books.asking()
    async with books.run.fenced() as connection:
        await books.calls.answered(connection, row, Usage(40, 10), PRICE)
        await books.calls.spoiled(connection, row, "schema")

    [found] = await books.calls.rows_of(books.run.id, 1)
    assert (found.state, found.reason, found.cost) == ("failed", "schema", 60_000_000)
    assert await books.money() == (0, 60_000_000, 1)


async def test_a_worker_that_was_replaced_ends_no_asking_and_books_nothing(books: Books) -> None:
    row = await books.asking()
    await books.pool.execute("UPDATE work SET token = token + 1 WHERE id = $1", books.run.id)

    with pytest.raises(LeaseLost):
        async with books.run.fenced() as connection:
            await books.calls.answered(connection, row, Usage(40, 10), PRICE)

    [found] = await books.calls.open_of(books.run.id)
    assert found.open
    assert await books.money() == (MOST, 0, 0)


async def test_the_row_and_the_money_are_one_commit(books: Books) -> None:
    row = await books.asking()

    async def twice() -> None:
        async with books.run.fenced() as connection:
            await books.calls.answered(connection, row, Usage(40, 10), PRICE)
            await books.calls.begin(connection, row.job, 1, 1, engine="dear", model="m", due_in_s=1)

    with pytest.raises(asyncpg.UniqueViolationError):
        await twice()

    [found] = await books.calls.rows_of(books.run.id, 1)
    assert found.open
    assert await books.money() == (MOST, 0, 0)
