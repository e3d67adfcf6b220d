"""Owns the tiers of one process, opened together: engines, ledger, tools, and who answers for each tier."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from body_broker.storage.postgres import Pool
from body_broker.storage.redis import Redis
from tiers.bronze.tier import BronzeTier, HubCalls
from tiers.catalogue import Catalogue
from tiers.chain import Chain
from tiers.cloud.tier import CloudTier
from tiers.cost import CostLedger
from tiers.counts import Counts
from tiers.engine import Engine
from tiers.gold.sight import HubSight
from tiers.gold.tier import GoldTier
from tiers.hubtools import Connect, HubTools, Mint, Post
from tiers.model import Tier
from tiers.router import ModelRouter, Serves
from tiers.silver.npc import SilverTierNPC
from tiers.silver.tier import SilverTier
from tiers.toolloop import ToolLoop


@dataclass(frozen=True, slots=True, kw_only=True)
class Tiers:
    """Everything that answers requests in one process."""

    engines: Mapping[str, Engine]
    ledger: CostLedger
    tools: HubTools
    router: ModelRouter
    npc: SilverTierNPC


@asynccontextmanager
async def open_tiers(
    catalogue: Catalogue,
    *,
    pool: Pool,
    redis: Redis,
    counts: Counts,
    connect: Connect,
    mint: Mint,
    post: Post | None = None,
    calls: HubCalls | None = None,
) -> AsyncGenerator[Tiers]:
    """The tiers, until the way out.

    Args:
        catalogue: What models.toml and the settings say.
        pool: Of the database with the money.
        redis: Where dialogue, caches and intents are.
        counts: Takes measurements.
        connect: Makes HTTP clients that reach the hub.
        post: Takes a message to the same hub at less expense.
        mint: Makes a conversation's token.
        calls: The hub's tools, as whoever asks; None where nobody may have jobs.
    """
    async with AsyncExitStack() as stack:
        asked = tuple(spec for spec in catalogue.engines.values() if spec.url is not None)
        engines = {spec.name: Engine(spec, counts) for spec in asked if spec.dialect != "sagemaker"}
        for engine in engines.values():
            stack.push_async_callback(engine.close)
        ledger = await stack.enter_async_context(CostLedger.opened(pool, catalogue.caps, counts, engines=asked))
        tools = await stack.enter_async_context(HubTools.opened(connect, mint, counts, post))
        chain = Chain(ledger, counts)
        gold = GoldTier(chain, redis, counts, sight=HubSight(tools))
        bronze = None if calls is None else BronzeTier(calls, catalogue, counts)
        loop = ToolLoop(chain, tools, counts, catalogue.tool_groups)
        silver = SilverTier(loop, counts, None if bronze is None else bronze.instead)
        cloud = CloudTier(silver, redis, counts, asked)
        stack.push_async_callback(cloud.settled)
        serving: dict[Tier, Serves] = {Tier.GOLD: gold, Tier.SILVER: silver, Tier.CLOUD: cloud}
        if bronze is not None:
            serving[Tier.BRONZE] = bronze
        router = ModelRouter(catalogue, engines, serving, spent_out=ledger.spent_out, money=ledger.words, counts=counts)
        yield Tiers(
            engines=engines,
            ledger=ledger,
            tools=tools,
            router=router,
            npc=SilverTierNPC(router, tools, redis, counts),
        )
