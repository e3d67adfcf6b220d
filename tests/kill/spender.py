"""Owns a process that spends: clients that ask a paid engine by the chain and the ledger, again and again, until it is killed or no money is left."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal

from body_broker.storage.postgres import open_pool
from tests.counterparts.faultwall.strict import KEY, MODEL
from tiers.catalogue import Caps, EngineSpec, Price
from tiers.chain import Candidate, Chain, Course, Exhausted
from tiers.cost import CostLedger
from tiers.counts import Counts
from tiers.deadline import Deadline
from tiers.engine import Engine
from tiers.model import Message, Tier
from tiers.wire.base import Ask

PRICE = Price(Decimal(1000), Decimal(2000), Decimal(100), "a test", "2026-11")
TOKENS_MAX = 16
_REFUSALS_MAX = 30
"""So many in a row end a client."""
_BUDGET_S = 20.0


@dataclass(frozen=True, slots=True)
class Orders:
    """What a spender is to do.

    Attributes:
        database_url: Where the money is.
        engine_url: Who is paid.
        clients: How many ask at once.
        askers: For whom they ask, in turn.
        tier_cap: Of a day, for everybody.
        asker_cap: Of a day, for each asker.
    """

    database_url: str
    engine_url: str
    clients: int
    askers: tuple[str, ...]
    tier_cap: Decimal
    asker_cap: Decimal

    def caps(self) -> Caps:
        """As the ledger has them."""
        return Caps({Tier.CLOUD: self.tier_cap}, {Tier.CLOUD: self.asker_cap}, {})


def spend(orders: Orders) -> None:
    """Spend until killed, until there is no money, or until nobody is there to be paid."""
    asyncio.run(_spend(orders))


async def _spend(orders: Orders) -> None:
    spec = EngineSpec(
        name="paid",
        tier=Tier.CLOUD,
        dialect="openai",
        url=orders.engine_url,
        key=KEY,
        model=MODEL,
        price=PRICE,
        failure_threshold=100_000,
    )
    engine = Engine(spec, Counts())
    async with open_pool(orders.database_url, name="spender") as pool:
        async with CostLedger.opened(pool, orders.caps(), Counts()) as ledger:
            chain = Chain(ledger, Counts())
            await asyncio.gather(*(_client(chain, engine, orders.askers, n) for n in range(orders.clients)))
        await engine.close()


async def _client(chain: Chain, engine: Engine, askers: tuple[str, ...], number: int) -> None:
    refusals, turn = 0, number
    while refusals < _REFUSALS_MAX:
        turn += 1
        tenant = askers[turn % len(askers)]
        course = Course(make=_makes(tenant), tenant=tenant, deadline=Deadline.after(_BUDGET_S))
        try:
            await chain.run((Candidate(engine, Tier.CLOUD),), course)
        except Exhausted as exhausted:
            refusals = refusals + 1 if exhausted.fallbacks[0].reason in {"budget", "refused"} else 0
        else:
            refusals = 0


def _makes(tenant: str) -> Callable[[Engine, str], Ask]:
    def make(_engine: Engine, model: str) -> Ask:
        return Ask(model=model, messages=(Message(role="user", content=tenant),), max_tokens=TOKENS_MAX)

    return make
