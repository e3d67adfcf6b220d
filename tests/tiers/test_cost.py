"""The ledger over a real database: what is reserved and spent never passes a cap, and nothing that may have been spent is forgotten."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from body_broker.storage.postgres import Pool, open_pool
from body_broker.work.worker import Worker
from tests.waiting import wait_until
from tiers import cost, sweeping
from tiers.catalogue import Caps, EngineSpec, Price
from tiers.cost import CostLedger
from tiers.counts import Counts
from tiers.faults import EngineFault
from tiers.model import Tier, Usage
from tiers.money import Reservation, cost_of
from tiers.wire.base import Ask

ANNA, BEN = "person:anna", "person:ben"


PRICE = Price(Decimal(1000), Decimal(2000), Decimal(100), "a test", "2026-11")
"""A thousandth of a dollar for a token of the prompt, two for one of the answer."""
PAID = EngineSpec(name="paid", tier=Tier.CLOUD, dialect="openai", price=PRICE)
FREE = EngineSpec(name="free", tier=Tier.SILVER, dialect="vllm")
ASK = Ask(model="m", messages=(), max_tokens=50)
BOUND = 100
MOST = Decimal("0.2")
"""What ASK can cost with BOUND."""


class Spent(Counts):
    """Counts what was spent."""

    def __init__(self) -> None:
        self.usd: list[float] = []

    def spent(self, tier: str, usd: float) -> None:
        assert tier == Tier.CLOUD
        self.usd.append(usd)


def caps(tier: str = "10", asker: str = "2", **askers: str) -> Caps:
    singles = {f"person:{name}": Decimal(dollars) for name, dollars in askers.items()}
    return Caps({Tier.CLOUD: Decimal(tier)}, {Tier.CLOUD: Decimal(asker)}, singles)


@pytest.fixture
async def ledger(pool: Pool) -> AsyncIterator[CostLedger]:
    found = CostLedger(pool, caps(), Counts())
    yield found
    await found.settled()


async def reserve(ledger: CostLedger, tenant: str = ANNA) -> Reservation:
    found = await ledger.reserve(Tier.CLOUD, tenant, PAID, ASK, BOUND)
    assert found is not None
    return found


async def refusal(ledger: CostLedger, tenant: str = ANNA) -> str:
    with pytest.raises(EngineFault) as refused:
        await reserve(ledger, tenant)
    return refused.value.reason


async def stands(ledger: CostLedger) -> dict[str, tuple[Decimal, Decimal, int]]:
    """Reserved, spent and requests, by asker."""
    await ledger.settled()
    return {each.asker: (each.reserved_usd, each.spent_usd, each.requests) for each in await ledger.figures()}


async def test_the_most_is_set_aside_and_what_it_cost_is_booked(ledger: CostLedger) -> None:
    reservation = await reserve(ledger)
    assert await stands(ledger) == {"*": (MOST, 0, 0), ANNA: (MOST, 0, 0)}

    assert ledger.settle(reservation, Tier.CLOUD, ANNA, Usage(40, 10, cached=20)) == 0.042

    assert await stands(ledger) == {"*": (0, Decimal("0.042"), 1), ANNA: (0, Decimal("0.042"), 1)}
    everybody, anna = await ledger.figures()
    assert (everybody.prompt_tokens, everybody.completion_tokens) == (anna.prompt_tokens, anna.completion_tokens)
    assert (anna.tier, anna.prompt_tokens, anna.completion_tokens) == ("cloud", 40, 10)


async def test_an_engine_without_a_price_asks_no_database(pool: Pool) -> None:
    ledger = CostLedger(pool, caps(), Counts())
    await pool.close()

    assert await ledger.reserve(Tier.SILVER, ANNA, FREE, ASK, BOUND) is None
    assert ledger.settle(None, Tier.SILVER, ANNA, Usage(3, 4)) == 0.0


async def test_the_tokens_of_what_costs_nothing_are_written_together_with_others(pool: Pool) -> None:
    async with CostLedger.opened(pool, caps(), Counts()) as ledger:
        for tokens in (1, 2, 3):
            ledger.settle(None, Tier.SILVER, ANNA, Usage(tokens, 10))
        ledger.settle(None, Tier.SILVER, BEN, Usage(7, 7))
        assert await ledger.figures() == ()

    found = {each.asker: (each.requests, each.prompt_tokens, each.completion_tokens) for each in await ledger.figures()}
    assert found == {"*": (4, 13, 37), ANNA: (3, 6, 30), BEN: (1, 7, 7)}


async def test_of_fifty_at_once_exactly_those_get_money_for_whom_there_is_some(ledger: CostLedger) -> None:
    found = await asyncio.gather(*(reserve(ledger) for _ in range(50)), return_exceptions=True)

    granted = [each for each in found if isinstance(each, Reservation)]
    assert len(granted) == 10, "2 dollars for ANNA, 0.2 for each"
    assert {each.reason for each in found if isinstance(each, EngineFault)} == {"budget"}
    assert (await stands(ledger))[ANNA] == (2, 0, 0)


async def test_one_askers_cap_is_not_anothers_and_the_tiers_is_everybodys(pool: Pool) -> None:
    ledger = CostLedger(pool, caps(tier="0.6", asker="0.4"), Counts())
    for tenant in (ANNA, ANNA, BEN):
        await reserve(ledger, tenant)

    assert await refusal(ledger, ANNA) == "budget"
    assert await refusal(ledger, BEN) == "budget"
    assert await stands(ledger) == {"*": (Decimal("0.6"), 0, 0), ANNA: (Decimal("0.4"), 0, 0), BEN: (MOST, 0, 0)}


async def test_a_single_asker_may_have_another_cap(pool: Pool) -> None:
    ledger = CostLedger(pool, caps(ben="0.2", anna="0"), Counts())
    await reserve(ledger, BEN)

    assert await refusal(ledger, BEN) == "budget"
    assert await refusal(ledger, ANNA) == "budget"


@pytest.mark.parametrize("wrong", ["-1", "0", "NaN", "-Infinity", "0.0000000009"])
async def test_a_budget_that_is_none_asks_for_nothing_and_no_database(pool: Pool, wrong: str) -> None:
    ledgers = [CostLedger(pool, caps(tier=wrong), Counts()), CostLedger(pool, caps(asker=wrong), Counts())]
    ledgers.append(CostLedger(pool, Caps({}, {}, {}), Counts()))
    await pool.close()

    for ledger in ledgers:
        assert await refusal(ledger) == "budget"
        assert Tier.CLOUD in ledger.spent_out(ANNA)


async def test_what_was_not_sent_is_given_back_and_what_may_have_been_spent_is_spent_whole(pool: Pool) -> None:
    counts = Spent()
    ledger = CostLedger(pool, caps(), counts)
    released, forfeited, uncounted = [await reserve(ledger) for _ in range(3)]
    ledger.release(released)
    ledger.forfeit(forfeited)

    assert ledger.settle(uncounted, Tier.CLOUD, ANNA, Usage(1, 1), maybe=True) is None

    assert await stands(ledger) == {"*": (0, 2 * MOST, 2), ANNA: (0, 2 * MOST, 2)}
    assert counts.usd == [0.2, 0.2]


@asynccontextmanager
async def held_up(database_url: str) -> AsyncGenerator[None]:
    """Nobody can reserve."""
    async with open_pool(database_url) as other, other.acquire() as connection, connection.transaction():
        await connection.execute("LOCK TABLE spend_day IN ACCESS EXCLUSIVE MODE")
        yield


async def test_a_client_that_leaves_while_money_is_set_aside_leaves_none_there(
    ledger: CostLedger, database_url: str, pool: Pool
) -> None:
    async with held_up(database_url):
        leaving = asyncio.create_task(reserve(ledger))
        await wait_until(lambda: _waits(pool), "the reservation waits")
        leaving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leaving

    assert (await stands(ledger)).get(ANNA, (0, 0, 0)) == (0, 0, 0)


async def test_where_nobody_can_say_whether_there_is_money_nothing_is_asked(
    ledger: CostLedger, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cost, "_PATIENCE_S", 0.05)
    async with held_up(database_url):
        assert await refusal(ledger) == "budget"

    assert (await stands(ledger)).get(ANNA, (0, 0, 0)) == (0, 0, 0)


async def test_a_request_is_answered_where_its_cost_cannot_be_booked_and_the_money_stays_reserved(
    pool: Pool, database_url: str
) -> None:
    async with open_pool(database_url) as going:
        ledger = CostLedger(going, caps(), Counts())
        reservation = await reserve(ledger)

    assert ledger.settle(reservation, Tier.CLOUD, ANNA, Usage(10, 10)) == 0.03

    assert (await stands(CostLedger(pool, caps(), Counts())))[ANNA] == (MOST, 0, 0)


async def _waits(pool: Pool) -> bool:
    return await pool.fetchval(
        "SELECT count(*) > 0 FROM pg_locks WHERE NOT granted AND relation = 'spend_day'::regclass"
    )


async def test_a_request_belongs_to_the_day_on_which_it_was_reserved(pool: Pool) -> None:
    ledger = CostLedger(pool, caps(tier="0.2", asker="0.2"), Counts())
    late = await reserve(ledger)
    assert await refusal(ledger) == "budget"
    await pool.execute("UPDATE spend_day SET day = day - 1; UPDATE spend_reservation SET day = day - 1")  # midnight

    today = await reserve(ledger)
    ledger.settle(late, Tier.CLOUD, ANNA, Usage(10, 0))

    assert (await stands(ledger))[ANNA] == (MOST, 0, 0), "today's money is today's"
    yesterday = await ledger.figures(await pool.fetchval("SELECT (now() AT TIME ZONE 'UTC')::date - 1"))
    assert [(each.asker, each.reserved_usd, each.spent_usd) for each in yesterday] == [
        ("*", 0, Decimal("0.01")),
        (ANNA, 0, Decimal("0.01")),
    ]
    ledger.release(today)
    await ledger.settled()


async def test_the_day_is_that_of_utc_wherever_the_database_is(pool: Pool) -> None:
    day = "SELECT DISTINCT day = (clock_timestamp() AT TIME ZONE 'UTC')::date FROM spend_day"
    for zone in ("Pacific/Kiritimati", "Pacific/Pago_Pago"):  # one of them has another date now
        async with pool.acquire() as connection:
            await connection.execute(f"SET TIME ZONE '{zone}'")
            about = ("a" + zone, "cloud", ANNA, "paid", 1, 10, 10)
            statement = "SELECT spend_reserve($1, $2, $3, $4, $5, $6, $7, interval '1 hour')"
            await connection.execute(statement, *about)
            await connection.execute("SET TIME ZONE 'UTC'")

    assert [row[0] for row in await pool.fetch(day)] == [True]


async def test_what_the_dead_left_is_spent_by_the_workers_next_round(pool: Pool, database_url: str) -> None:
    ledger = CostLedger(pool, caps(), Counts())
    left, alive = await reserve(ledger), await reserve(ledger, BEN)
    await pool.execute("UPDATE spend_reservation SET expires_at = clock_timestamp() WHERE id = $1", left.id)
    worker = Worker(pool, sweeping.handlers(pool), database_url=database_url, schedules=sweeping.schedules())
    task = asyncio.create_task(worker.run())

    async def booked() -> bool:
        return (await stands(ledger))[ANNA] == (0, MOST, 1)

    await wait_until(booked, "the sweep has come round")
    worker.stop()
    await task

    assert await stands(ledger) == {"*": (MOST, MOST, 1), ANNA: (0, MOST, 1), BEN: (MOST, 0, 0)}
    assert ledger.settle(left, Tier.CLOUD, ANNA, Usage(1, 1)) == 0.003, "whoever was only slow is told"
    assert (await stands(ledger))[ANNA] == (0, MOST, 1), "and it is not booked twice"
    ledger.release(alive)
    await ledger.settled()


_DIED = "UPDATE spend_reservation SET expires_at = clock_timestamp() WHERE id = $1"


async def test_two_that_sweep_at_once_never_hold_what_the_other_waits_for(pool: Pool, database_url: str) -> None:
    everywhere = Caps(dict.fromkeys(Tier, Decimal(10)), dict.fromkeys(Tier, Decimal(10)), {})
    ledger = CostLedger(pool, everywhere, Counts())
    for tier in (Tier.SILVER, Tier.CLOUD):  # not the order in which they are swept
        reservation = await ledger.reserve(tier, ANNA, PAID, ASK, BOUND)
        assert reservation is not None
        await pool.execute(_DIED, reservation.id)
    lock = "SELECT 1 FROM spend_day WHERE tier = $1 AND asker = '*' FOR UPDATE NOWAIT"

    async with open_pool(database_url) as other, other.acquire() as connection:
        async with connection.transaction():
            await connection.execute(lock, Tier.CLOUD)
            sweeping_now = asyncio.create_task(pool.fetchval("SELECT spend_sweep(500)"))
            await wait_until(lambda: _stands_in_line(other), "the sweep waits for the first tier")
            assert await connection.fetchval(lock, Tier.SILVER) == 1, "and holds no other"
        assert await sweeping_now == 2


async def _stands_in_line(pool: Pool) -> bool:
    return await pool.fetchval("SELECT count(*) > 0 FROM pg_locks WHERE NOT granted")


async def test_what_single_askers_took_is_forgotten_after_forty_days_and_what_a_tier_took_is_not(pool: Pool) -> None:
    ledger = CostLedger(pool, caps(), Counts())
    for days in (40, 1):
        ledger.settle(await reserve(ledger), Tier.CLOUD, ANNA, Usage(10, 0))
        await ledger.settled()
        await pool.execute("UPDATE spend_day SET day = day - $1::integer", days)
    under_way = await reserve(ledger)
    await ledger.settled()

    await pool.fetchval("SELECT spend_sweep(500)")

    days = await pool.fetch(
        "SELECT (now() AT TIME ZONE 'UTC')::date - day AS ago, asker FROM spend_day ORDER BY day, asker"
    )
    assert [(row["ago"], row["asker"]) for row in days] == [(41, "*"), (1, "*"), (1, ANNA), (0, "*"), (0, ANNA)]
    ledger.release(under_way)
    await ledger.settled()


async def test_whoever_reserves_settles_and_sweeps_at_once_neither_waits_in_a_circle_nor_loses_a_cent(
    pool: Pool,
) -> None:
    ledger = CostLedger(pool, caps(tier="100", asker="100"), Counts())
    sweep = "SELECT spend_sweep(500)"

    async def client(number: int) -> None:
        for turn in range(10):
            reservation = await reserve(ledger, f"person:{number % 4}")
            if turn % 3 == 0:
                await pool.execute(_DIED, reservation.id)
            if turn % 3 == 1:
                ledger.release(reservation)
            else:
                ledger.settle(reservation, Tier.CLOUD, "", Usage(10, 10))
            if turn % 4 == 0:
                await pool.fetchval(sweep)

    await asyncio.gather(*(client(number) for number in range(16)))
    await ledger.settled()
    await pool.fetchval(sweep)

    found = await stands(ledger)
    everybody = found.pop("*")
    assert everybody == tuple(sum(each[place] for each in found.values()) for place in range(3))
    assert everybody[0] == 0
    assert await pool.fetchval("SELECT count(*) FROM spend_reservation") == 0


class Hands:
    """A clock in the test's hands."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


async def test_a_cap_that_is_used_up_is_believed_for_a_moment_and_then_asked_again(pool: Pool) -> None:
    clock = Hands()
    engines = (PAID, replace(PAID, name="other"))
    ledger = CostLedger(pool, caps(asker="0.2"), Counts(), engines=engines, clock=clock)
    reservation = await reserve(ledger)
    assert (Tier.CLOUD in ledger.spent_out(ANNA), Tier.CLOUD in ledger.spent_out(BEN)) == (True, False)

    ledger.release(reservation)
    await ledger.settled()
    clock.now = cost.BELIEVED_S + 1

    assert ledger.spent_out(ANNA) == frozenset()
    await reserve(ledger)


async def test_another_process_learns_how_somebody_stands_by_looking(pool: Pool) -> None:
    await reserve(CostLedger(pool, caps(asker="0.2"), Counts()))
    fresh = CostLedger(pool, caps(asker="0.2"), Counts(), engines=(PAID,))
    assert fresh.spent_out(ANNA) == frozenset(), "it does not know"

    for tenant in (ANNA, BEN):
        await fresh.look(tenant)

    assert (fresh.spent_out(ANNA), fresh.spent_out(BEN)) == ({Tier.CLOUD}, frozenset())


async def test_what_is_known_of_a_day_is_not_believed_on_the_next(pool: Pool) -> None:
    clock = Hands()
    ledger = CostLedger(pool, caps(asker="0.2"), Counts(), engines=(PAID,), clock=clock)
    await reserve(ledger)
    assert ledger.spent_out(ANNA) == {Tier.CLOUD}
    believe = ledger._believe  # pyright: ignore[reportPrivateUsage]  # midnight cannot be waited for
    believe(Tier.CLOUD, ANNA, 10, 0, timedelta(seconds=2))

    clock.now = 1.9
    assert ledger.spent_out(ANNA) == {Tier.CLOUD}
    clock.now = 2.1
    assert ledger.spent_out(ANNA) == frozenset()


async def test_notes_that_could_not_be_written_are_written_the_next_time(pool: Pool) -> None:
    ledger = CostLedger(pool, caps(), Counts())
    ledger.settle(None, Tier.SILVER, ANNA, Usage(3, 4))
    await pool.execute("ALTER TABLE spend_day RENAME TO spend_gone")
    await ledger.write()
    await pool.execute("ALTER TABLE spend_gone RENAME TO spend_day")
    ledger.settle(None, Tier.SILVER, ANNA, Usage(10, 10))

    await ledger.write()

    found = {each.asker: (each.requests, each.prompt_tokens, each.completion_tokens) for each in await ledger.figures()}
    assert found[ANNA] == (2, 13, 14)


async def test_no_note_is_lost_where_the_writing_is_broken_off(pool: Pool, database_url: str) -> None:
    ledger = CostLedger(pool, caps(), Counts())
    for number in range(10):
        ledger.note(Tier.SILVER, f"person:{number}", Usage(3, 4))
    async with held_up(database_url):
        writing = asyncio.create_task(ledger.write())
        await wait_until(lambda: _waits(pool), "the first note waits")
        writing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await writing

    await ledger.settled()
    await ledger.write()

    assert (await stands(ledger))["*"] == (0, 0, 10)


async def test_a_request_does_not_wait_for_its_cost_to_be_booked(ledger: CostLedger, database_url: str) -> None:
    reservation = await reserve(ledger)
    async with held_up(database_url):
        assert ledger.settle(reservation, Tier.CLOUD, ANNA, Usage(40, 10)) == 0.06

    assert (await stands(ledger))[ANNA] == (0, Decimal("0.06"), 1)


tokens = st.integers(min_value=0, max_value=10**7)
dollars = st.decimals(min_value=0, max_value=10_000, places=12)


@given(
    price=st.tuples(dollars, dollars, dollars),
    bound=st.tuples(tokens, tokens),
    share=st.lists(st.floats(0, 1), min_size=3, max_size=3),
)
def test_no_usage_within_the_bound_costs_more_than_was_set_aside(
    price: tuple[Decimal, Decimal, Decimal], bound: tuple[int, int], share: list[float]
) -> None:
    prompt, completion, cached = price
    known = Price(prompt, completion, min(cached, prompt), "a test", "2026-11")
    used = Usage(int(bound[0] * share[0]), int(bound[1] * share[1]), int(bound[0] * share[0] * share[2]))

    assert cost_of(known, used) <= cost_of(known, Usage(*bound))


def test_a_price_finer_than_a_billionth_is_never_rounded_to_nothing() -> None:
    fine = Price(Decimal("0.0000001"), Decimal("0.00050001"), Decimal(0), "a test", "2026-11")

    assert cost_of(fine, Usage(1, 0)) == 1
    assert cost_of(fine, Usage(0, 1_000)) == 501
    assert [cost_of(fine, Usage(n * 10**7, 0)) for n in (0, 1, 2, 3)] == [0, 1_000, 2_000, 3_000]


@pytest.mark.parametrize("told", [Usage(-5, -5, -5), Usage(10**30, 10**30, -1), Usage(1, 1, 10**30)])
async def test_an_engine_that_lies_about_its_tokens_breaks_no_sum(ledger: CostLedger, told: Usage) -> None:
    for _ in range(2):
        cost_usd = ledger.settle(await reserve(ledger), Tier.CLOUD, ANNA, told)
        assert cost_usd is not None
        if cost_usd > 2:
            assert await refusal(ledger) == "budget"
            return

    reserved, spent, requests = (await stands(ledger))[ANNA]
    assert (reserved, requests) == (0, 2)
    assert 0 <= spent <= 1


def test_caps_are_rounded_down() -> None:
    from_cents = [cost.cap_of(Decimal(text)) for text in ("0.0000000019", "1.9999999999", "3")]

    assert from_cents == [1, 1_999_999_999, 3_000_000_000]
    assert all(low < high for low, high in pairwise(from_cents))
