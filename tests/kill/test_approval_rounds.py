"""Owns the proof that no approved call is lost or run twice when hub or worker is killed at a named step."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.kill.approving import survive
from tests.kill.harness import seed_of_tests


@pytest.mark.timeout(600)
async def test_no_approved_call_is_lost_or_run_twice_in_twenty_kills(tmp_path: Path) -> None:
    harness = await survive(tmp_path, seed=seed_of_tests(), rounds=20)
    harness.require_every_name_was_hit()
