"""Owns the proof that no answer is wrong while hub, worker and OpenSearch are killed, and that the copy is whole afterwards."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.kill.copying import survive
from tests.kill.harness import seed_of_tests


@pytest.mark.requires("java", "opensearch")
@pytest.mark.timeout(600)
async def test_answers_stay_right_and_the_copy_becomes_whole_in_twenty_kills_of_hub_worker_and_opensearch(
    tmp_path: Path,
) -> None:
    harness = await survive(tmp_path, seed=seed_of_tests(), rounds=20)
    harness.require_every_name_was_hit()
