"""Owns a gold tier over the FaultWall: gold, gold-small and silver behind three dialects, and an NPC that can be seen."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace

import pytest

from body_broker.calls import Caller
from body_broker.storage.postgres import Pool
from body_broker.storage.redis import Redis
from tests.counterparts.faultwall.wall import KEY, MODEL, FaultWall, fault_wall
from tests.tiers.clock import clock
from tiers.catalogue import Caps, EngineSpec
from tiers.chain import Candidate, Chain
from tiers.cost import CostLedger
from tiers.counts import Counts
from tiers.deadline import Deadline
from tiers.engine import Engine
from tiers.gold.intents import Present, Scene
from tiers.gold.tier import GoldTier
from tiers.model import NEEDS_SILVER_S, Asker, InferenceRequest, InferenceResult, Listener, Tier, Told
from tiers.router import Decision

__all__ = ["clock"]

SCENE = Scene(
    version=7,
    place="quay",
    present=(Present("player-anna", "player"),),
    disposition={"player-anna": 60},
)


class Heard:
    """Remembers what it was told."""

    restarts = True

    def __init__(self) -> None:
        self.told: list[Told] = []

    async def __call__(self, told: Told) -> None:
        self.told.append(told)

    @property
    def texts(self) -> list[str]:
        return [told.text for told in self.told if told.kind == "text"]


@dataclass
class Gold:
    """A tier, its engines, and whom it is asked for."""

    wall: FaultWall
    tier: GoldTier
    engines: dict[str, Engine]
    asker: Asker
    chain: Chain
    scenes: dict[str, Scene] = field(default_factory=dict[str, Scene])

    def decision(self, *names: str) -> Decision:
        """These engines in this order, or all of them."""
        chosen = [self.engines[name] for name in names or self.engines]
        candidates = tuple(
            Candidate(e, e.spec.tier, NEEDS_SILVER_S if e.spec.tier is Tier.SILVER else 0.0) for e in chosen
        )
        return Decision(Tier.GOLD, candidates, "real-time", ())

    async def ask(
        self,
        request: InferenceRequest,
        *names: str,
        within_s: float = 60.0,
        listener: Listener | None = None,
        asker: Asker | None = None,
    ) -> InferenceResult:
        """An answer of the tier."""
        return await self.tier.execute_with_fallback(
            request,
            self.decision(*names),
            asker=asker or self.asker,
            deadline=Deadline.after(within_s),
            listener=listener,
        )


def asker_of(*chain: str, tainted: bool = False) -> Asker:
    caller = Caller(chain=chain, roles={}, session=f"ses_{chain[0]}")
    return Asker(caller=caller, conversation="cnv_1", tainted=tainted)


_SPEC = EngineSpec(name="gold", tier=Tier.GOLD, dialect="trtllm", key=KEY, model=MODEL, ttft_s=120, stall_s=120)


@pytest.fixture
async def gold(pool: Pool, redis: Redis) -> AsyncIterator[Gold]:
    async with AsyncExitStack() as stack:
        wall = await stack.enter_async_context(fault_wall("trtllm", "vllm", "openai"))
        specs = [
            replace(_SPEC, url=wall.url["trtllm"]),
            replace(_SPEC, name="gold-small", smaller=True, dialect="vllm", url=wall.url["vllm"]),
            replace(_SPEC, name="silver", tier=Tier.SILVER, dialect="openai", url=wall.url["openai"]),
        ]
        engines = {spec.name: Engine(spec, Counts()) for spec in specs}
        for engine in engines.values():
            stack.push_async_callback(engine.close)
        ledger = await stack.enter_async_context(CostLedger.opened(pool, Caps({}, {}, {}), Counts()))
        scenes = {"ferryman": SCENE}

        async def sight(asker: Asker, npc_id: str, _deadline: Deadline) -> Scene | None:
            return scenes.get(npc_id) if asker.tenant == "service:game" else None

        chain = Chain(ledger, Counts())
        tier = GoldTier(chain, redis, Counts(), sight=sight)
        yield Gold(wall, tier, engines, asker_of("service:game"), chain, scenes)
