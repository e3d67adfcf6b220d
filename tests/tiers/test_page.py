"""docs/tiers.md's models.toml works as it stands there: it is read, and what it has can be paid for."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from body_broker.storage.postgres import Pool
from tests.tools.project import ROOT
from tiers.catalogue import Catalogue, Given
from tiers.cost import CostLedger
from tiers.counts import Counts
from tiers.model import Tier
from tiers.reading import read_catalogue
from tiers.wire.base import Ask

_KEY = "/run/secrets/silver-night"
PROMPT_TOKENS = 8_000
LONGEST = Ask(model="m", messages=(), max_tokens=1_024)


@pytest.fixture
def example(tmp_path: Path) -> Catalogue:
    (found,) = re.findall(
        r"^```toml\n(.*?)^```$", (ROOT / "docs" / "tiers.md").read_text("utf-8"), re.MULTILINE | re.DOTALL
    )
    key, file = tmp_path / "key", tmp_path / "models.toml"
    key.write_text("sk-night\n", "utf-8")
    assert found.count(_KEY) == 1
    file.write_text(found.replace(_KEY, str(key)), "utf-8")
    return read_catalogue(Given(file=file))


def test_the_page_s_example_is_read_whole(example: Catalogue) -> None:
    engine = example.engines["silver-night"]

    assert (engine.tier, engine.url, engine.key) == (Tier.SILVER, "http://10.0.0.7:8000", "sk-night")
    assert engine.price is not None
    assert example.then[Tier.SILVER] == ()
    assert example.tool_groups["kitchen"] == ("search_lore", "get_npc_state")


@pytest.mark.parametrize("asker", ["person:anna", "service:game"])
async def test_every_engine_of_the_page_s_example_can_be_paid_for(pool: Pool, example: Catalogue, asker: str) -> None:
    ledger = CostLedger(pool, example.caps, Counts(), engines=example.engines.values())

    for engine in example.engines.values():
        if engine.price is not None:
            reserved = await ledger.reserve(engine.tier, asker, engine, LONGEST, PROMPT_TOKENS)
            assert reserved is not None, engine.name
            ledger.release(reserved)
            await ledger.settled()
