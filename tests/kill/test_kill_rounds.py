"""Owns the proof that nothing acknowledged is lost when hub, worker, keeper, PostgreSQL or Valkey is killed at a named step."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.kill.harness import seed_of_tests
from tests.kill.scenario import survive


@pytest.mark.timeout(600)
async def test_nothing_acknowledged_is_lost_in_twenty_kills_at_named_steps(tmp_path: Path) -> None:
    harness = await survive(tmp_path / "data", tmp_path, seed=seed_of_tests(), rounds=20)
    harness.require_every_name_was_hit()
