"""Owns the proof that nothing acknowledged is lost or done twice when any program or store is killed while everybody is at work."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.kill.everyone import survive
from tests.kill.harness import seed_of_tests


@pytest.mark.timeout(900)
async def test_nothing_is_lost_or_done_twice_in_twenty_kills_among_two_hubs_and_all_their_programs(
    tmp_path: Path,
) -> None:
    harness = await survive(tmp_path, seed=seed_of_tests(), rounds=20)
    harness.require_every_name_was_hit()
