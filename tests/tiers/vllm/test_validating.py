"""What `validate` tries holds against the real vLLM: its grammar, its choices, its tool calls. How fast the tiny model is says nothing."""

from __future__ import annotations

from dataclasses import replace

import pytest

from body_broker.storage.postgres import Pool
from tiers.catalogue import Caps
from tiers.chain import Chain
from tiers.cost import CostLedger
from tiers.counts import Counts
from tiers.engine import Engine
from tiers.model import Tier
from tiers.validating import Target, Validation

pytestmark = [pytest.mark.requires("vllm"), pytest.mark.timeout(400)]
PATIENT = Target(600, 600)


@pytest.mark.parametrize(
    ("tier", "left_out"), [(Tier.SILVER, set[str]()), (Tier.GOLD, {"tools"})], ids=["silver", "gold"]
)
async def test_a_real_engine_passes_every_check_of_its_tier(
    engine: Engine, pool: Pool, tier: Tier, left_out: set[str]
) -> None:
    tried = Engine(replace(engine.spec, tier=tier), Counts())
    try:
        async with CostLedger.opened(pool, Caps({}, {}, {}), Counts()) as ledger:
            validation = Validation(tried, Chain(ledger, Counts()), tenant="operator:anna", requests=2, target=PATIENT)
            checks = {check.name: check async for check in validation.run()}
    finally:
        await tried.close()
    assert {name for name, check in checks.items() if check.verdict == "failed"} == set(), checks
    assert {name for name, check in checks.items() if check.verdict == "left out"} == left_out
