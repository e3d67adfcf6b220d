"""Owns the kill rounds of approvals in full: hub and worker at every step, several times over (BODY_BROKER_TEST_ROUNDS, default 100)."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.kill.approving import survive
from tests.kill.harness import seed_of_tests


@pytest.mark.timeout(2 * 3600)
async def test_no_approved_call_is_lost_or_run_twice_in_a_hundred_kills(
    tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    if not request.config.getoption("--soak"):
        pytest.skip("it takes ten minutes: poe soak")
    rounds = int(os.environ.get("BODY_BROKER_TEST_ROUNDS", "100"))  # noqa: TID251  # tests' own
    harness = await survive(tmp_path, seed=seed_of_tests(), rounds=rounds)
    harness.require_every_name_was_hit()
