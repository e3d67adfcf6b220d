"""Owns the kill rounds in full: every victim at every step, several times over (BODY_BROKER_TEST_ROUNDS, default 200)."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.kill.harness import seed_of_tests
from tests.kill.scenario import survive


@pytest.mark.timeout(4 * 3600)
async def test_nothing_acknowledged_is_lost_in_hundreds_of_kills(
    tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    if not request.config.getoption("--soak"):
        pytest.skip("it takes half an hour: poe soak")
    rounds = int(os.environ.get("BODY_BROKER_TEST_ROUNDS", "200"))  # noqa: TID251  # tests' own
    harness = await survive(tmp_path / "data", tmp_path, seed=seed_of_tests(), rounds=rounds)
    harness.require_every_name_was_hit()
