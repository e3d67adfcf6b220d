"""Owns the proof that no change is lost or applied twice when hub, engine or a store is killed while four clients ask for them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.kill.harness import seed_of_tests
from tests.kill.world import survive


@pytest.mark.timeout(600)
async def test_no_acknowledged_change_is_lost_or_applied_twice_in_twenty_kills(tmp_path: Path) -> None:
    harness = await survive(tmp_path, seed=seed_of_tests(), rounds=20)
    harness.require_every_name_was_hit()
