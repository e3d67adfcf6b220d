"""Owns the kill rounds around the copy in full (BODY_BROKER_TEST_ROUNDS, default 200)."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.kill.copying import survive
from tests.kill.harness import seed_of_tests


@pytest.mark.requires("java", "opensearch")
@pytest.mark.timeout(4 * 3600)
async def test_answers_stay_right_in_hundreds_of_kills_of_hub_worker_and_opensearch(
    tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    if not request.config.getoption("--soak"):
        pytest.skip("it takes half an hour: poe soak")
    rounds = int(os.environ.get("BODY_BROKER_TEST_ROUNDS", "200"))  # noqa: TID251  # tests' own
    harness = await survive(tmp_path, seed=seed_of_tests(), rounds=rounds)
    harness.require_every_name_was_hit()
