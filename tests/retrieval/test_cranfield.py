from __future__ import annotations

from pathlib import Path

import pytest

from body_broker.lore.ranking import By
from mcp_servers.rag.services import Services
from tests.retrieval.collections import cranfield
from tests.retrieval.measuring import NAMES, cranfield_by

FLOORS: dict[By, float] = {"words": 0.39, "meaning": 0.39, "both": 0.43}


@pytest.mark.timeout(2_000)
@pytest.mark.parametrize("by", ["words", "meaning", "both"])
async def test_cranfield_is_ranked_as_well_as_before(
    collected: Services, test_data: Path, by: By, capsys: pytest.CaptureFixture[str]
) -> None:
    found = await cranfield_by(collected, cranfield(test_data / "cranfield"), by)

    with capsys.disabled():
        print(f"\nCranfield, {NAMES[by]}: nDCG@10 {found.ndcg_at_10:.4f}")
    assert found.unavailable == frozenset()
    assert found.ndcg_at_10 >= FLOORS[by]
