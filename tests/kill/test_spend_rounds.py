"""Owns the proof that caps hold, and nothing spent is forgotten, while processes that spend are killed in the middle of it."""

from __future__ import annotations

import asyncio
import math
import multiprocessing
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from decimal import Decimal
from multiprocessing.context import ForkServerProcess

import pytest

from body_broker.storage.postgres import Pool
from tests.counterparts.faultwall.wall import FaultWall, Reply, Seen, fault_wall
from tests.kill.harness import seed_of_tests
from tests.kill.spender import PRICE, TOKENS_MAX, Orders, spend
from tests.waiting import wait_until
from tiers.cost import CostLedger
from tiers.counts import Counts
from tiers.model import Message, Usage, prompt_bytes
from tiers.money import A_DOLLAR, cost_of

ASKERS = ("person:anna", "person:anna", "person:ben", "service:bard")
"""Anna asks as often as the others together: her own cap is the first to be reached."""
TIER_CAP, ASKER_CAP = Decimal(20), Decimal("9.5")
PROCESSES, CLIENTS = 2, 8
KILLS = 12
BETWEEN_KILLS = 10
"""Requests that are paid between two kills."""


@dataclass
class Till:
    """Who is paid, and remembers it, whoever dies: every request costs what it was answered with, heard to the end or not.

    Attributes:
        hurries: How many requests are still answered quickly. The others take seconds, so that the money lasts for every kill,
            however long a busy machine takes to kill a process and to start another.
    """

    chance: random.Random
    hurries: float = 0
    taken: Counter[str] = field(default_factory=Counter[str])
    requests: int = 0

    def answer(self, seen: Seen) -> Reply:
        tenant = str(seen.body["messages"][0]["content"])
        if self.chance.random() < 0.1:
            return Reply(fault="unavailable")
        bound = prompt_bytes([Message(role="user", content=tenant)])
        used = Usage(self.chance.randint(1, bound), self.chance.randint(1, TOKENS_MAX))
        self.taken[tenant] += cost_of(PRICE, used)
        self.requests += 1
        fault = "cut" if self.chance.random() < 0.1 else None
        self.hurries -= 1
        gap_s = 0.005 if self.hurries >= 0 else 0.5
        return Reply(text="a b c d", usage=(used.prompt, used.completion, 0), gap_s=gap_s, fault=fault)

    def dollars(self, tenant: str | None = None) -> Decimal:
        return Decimal(self.taken.total() if tenant is None else self.taken[tenant]) / A_DOLLAR


@dataclass
class Spenders:
    """The processes that spend; one that is killed is replaced."""

    orders: Orders
    running: list[ForkServerProcess] = field(default_factory=list[ForkServerProcess])
    context = multiprocessing.get_context("forkserver")

    def __post_init__(self) -> None:
        self.context.set_forkserver_preload([spend.__module__])  # each begins with everything imported

    def start(self) -> None:
        process = self.context.Process(target=spend, args=(self.orders,), daemon=True)
        process.start()
        self.running.append(process)

    def kill(self, place: int) -> None:
        victim = self.running.pop(place)
        victim.kill()
        victim.join()
        assert victim.exitcode == -9, "it had ended before"
        self.start()

    def over(self) -> bool:
        return not any(process.is_alive() for process in self.running)


async def in_a_thread(work: Callable[[], object]) -> None:
    await asyncio.to_thread(work)


@pytest.fixture
def chance() -> random.Random:
    return random.Random(seed_of_tests())  # noqa: S311  # repeatable, nothing secret


@pytest.mark.timeout(400)
async def test_no_cap_is_passed_and_nothing_spent_is_forgotten_in_twelve_kills_among_sixteen_clients(
    pool: Pool, database_url: str, chance: random.Random
) -> None:
    async with fault_wall() as wall:
        till = Till(chance)
        wall.answers["openai"] = till.answer
        spenders = Spenders(Orders(database_url, wall.url["openai"], CLIENTS, ASKERS, TIER_CAP, ASKER_CAP))
        for _ in range(PROCESSES):
            await in_a_thread(spenders.start)
        await wait_until(lambda: wall.peak["openai"] > CLIENTS, "both processes ask", 60)
        for _ in range(KILLS):
            await kill_one(wall, till, spenders, chance)
            require_caps(till)
        peak, till.hurries = wall.peak["openai"], math.inf
        await wait_until(spenders.over, "no money is left", 90)
        require_caps(till)

    ledger = CostLedger(pool, spenders.orders.caps(), Counts())
    left = await pool.fetchval("SELECT coalesce(sum(amount), 0) FROM spend_reservation")
    figures = {each.asker: each for each in await ledger.figures()}
    assert figures["*"].reserved_usd == Decimal(left) / A_DOLLAR > 0, "whoever was killed left money behind"
    await pool.execute("UPDATE spend_reservation SET expires_at = clock_timestamp()")
    await pool.fetchval("SELECT spend_sweep(100000)")

    figures = {each.asker: each for each in await ledger.figures()}
    for tenant, cap in (("*", TIER_CAP), *((asker, ASKER_CAP) for asker in set(ASKERS))):
        paid = till.dollars(None if tenant == "*" else tenant)
        assert figures[tenant].reserved_usd == 0
        assert paid <= figures[tenant].spent_usd <= cap, tenant
    assert till.dollars("person:anna") > ASKER_CAP * Decimal("0.5"), "hers was worth nothing to be passed"
    assert peak > CLIENTS, "never were both processes at it"
    print(f"{till.requests} requests, {till.dollars()} of {TIER_CAP} dollars paid, {figures['*'].spent_usd} booked")


async def kill_one(wall: FaultWall, till: Till, spenders: Spenders, chance: random.Random) -> None:
    """One of them dies while requests are being answered."""
    before, till.hurries = till.requests, BETWEEN_KILLS

    def amid() -> bool:
        return till.requests >= before + BETWEEN_KILLS and wall.inside["openai"] > 0

    await wait_until(amid, "requests are being answered", 60)
    await in_a_thread(lambda: spenders.kill(chance.randrange(PROCESSES)))


def require_caps(till: Till) -> None:
    """Counted by who is paid."""
    assert till.dollars() <= TIER_CAP
    assert all(till.dollars(asker) <= ASKER_CAP for asker in ASKERS), till.taken
