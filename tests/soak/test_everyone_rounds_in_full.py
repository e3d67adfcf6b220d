"""Owns the kill rounds of everything at once in full: every program and store, many times over (BODY_BROKER_TEST_ROUNDS, default 100)."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.kill.everyone import survive
from tests.kill.harness import seed_of_tests


@pytest.mark.timeout(2 * 3600)
async def test_nothing_is_lost_or_done_twice_in_a_hundred_kills_among_two_hubs_and_all_their_programs(
    tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    if not request.config.getoption("--soak"):
        pytest.skip("it takes ten minutes: poe soak")
    rounds = int(os.environ.get("BODY_BROKER_TEST_ROUNDS", "100"))  # noqa: TID251  # tests' own
    harness = await survive(tmp_path, seed=seed_of_tests(), rounds=rounds)
    harness.require_every_name_was_hit()
