"""Owns a cloud tier over the FaultWall's providers, with money that is counted."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from body_broker.calls import Caller
from body_broker.storage.postgres import Pool
from body_broker.storage.redis import Redis
from tests.counterparts.faultwall.wall import KEY, MODEL, FaultWall, fault_wall
from tests.tiers.clock import clock
from tiers.catalogue import Catalogue, Given
from tiers.chain import Chain
from tiers.cloud.tier import CloudTier
from tiers.cost import CostLedger
from tiers.counts import Counts
from tiers.engine import Engine
from tiers.gold.tier import GoldTier
from tiers.hubtools import HubTools
from tiers.model import Asker, InferenceRequest, InferenceResult, Listener, Tier
from tiers.reading import read_catalogue
from tiers.router import ModelRouter
from tiers.silver.tier import SilverTier
from tiers.toolloop import ToolLoop

__all__ = ["clock"]

STUDIO = """
[caps.tier_day]
cloud = "1"

[caps.asker_day]
cloud = "0.5"

[caps.askers]
"person:broke" = "0"
"""
"""What an operator lays over ours who has nothing but keys."""


PRICES = {
    "openai": ("0.25", "2.00"),
    "openai-large": ("2.00", "8.00"),
    "azure": ("2.00", "8.00"),
    "anthropic": ("1.00", "5.00"),
    "anthropic-large": ("3.00", "15.00"),
}
"""Of a million tokens read and written: those of ours, for the counterpart's model."""


def _engine(name: str, prompt: str, completion: str) -> str:
    return f'[engines.{name}]\nmodel = "{MODEL}"\n[engines.{name}.price]\nprompt = "{prompt}"\ncompletion = "{completion}"\n'


@dataclass
class Paid:
    """A hub's tiers with cloud engines alone."""

    wall: FaultWall
    catalogue: Catalogue
    engines: dict[str, Engine]
    ledger: CostLedger
    router: ModelRouter

    async def ask(
        self,
        request: InferenceRequest,
        *,
        asker: str = "person:anna",
        tainted: bool = False,
        conversation: str = "cnv_1",
        listener: Listener | None = None,
    ) -> InferenceResult:
        """An answer by whoever the router chooses."""
        caller = Caller(chain=(asker,), roles={}, session=f"ses_{asker}")
        known = Asker(caller=caller, conversation=conversation, tainted=tainted)
        return await self.router.execute(request, asker=known, listener=listener)


async def _nobody(*_: Any, **__: Any) -> str:  # whatever a mint is given
    raise AssertionError("nothing here calls tools")


@pytest.fixture
def catalogue_file(tmp_path: Path) -> Path:
    file = tmp_path / "models.toml"
    file.write_text("".join(_engine(name, *usd) for name, usd in PRICES.items()) + STUDIO)
    return file


@pytest.fixture
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stores are waited for as long as a busy machine takes: who is asked does not depend on it."""
    monkeypatch.setattr("tiers.cost._PATIENCE_S", 30.0)
    monkeypatch.setattr("tiers.cache._PATIENCE_S", 30.0)


@pytest.fixture
async def paid(catalogue_file: Path, pool: Pool, redis: Redis, patience: None) -> AsyncIterator[Paid]:
    _ = patience
    async with AsyncExitStack() as stack:
        wall = await stack.enter_async_context(fault_wall("openai", "anthropic", "azure"))
        names = ("openai", "anthropic", "azure")
        given = Given(file=catalogue_file, urls={n: wall.url[n] for n in names}, keys=dict.fromkeys(names, KEY))
        catalogue = await asyncio.to_thread(read_catalogue, given)
        engines = {name: Engine(spec, Counts()) for name, spec in catalogue.engines.items() if spec.url is not None}
        for engine in engines.values():
            stack.push_async_callback(engine.close)
        ledger = await stack.enter_async_context(CostLedger.opened(pool, catalogue.caps, Counts()))
        tools = await stack.enter_async_context(HubTools.opened(_nobody, _nobody, Counts()))
        chain = Chain(ledger, Counts())
        silver = SilverTier(ToolLoop(chain, tools, Counts()), Counts())
        cloud = CloudTier(silver, redis, Counts(), [engine.spec for engine in engines.values()])
        stack.push_async_callback(cloud.settled)
        serving = {Tier.GOLD: GoldTier(chain, redis, Counts()), Tier.SILVER: silver, Tier.CLOUD: cloud}
        router = ModelRouter(catalogue, engines, serving, spent_out=ledger.spent_out)
        yield Paid(wall, catalogue, engines, ledger, router)
