"""Owns the proof that no vector is lost or made twice when hub, worker or a store is killed while they are made."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.kill.harness import seed_of_tests
from tests.kill.vectors import survive


@pytest.mark.timeout(600)
async def test_every_passage_gets_its_vector_once_in_ten_kills_while_they_are_made(tmp_path: Path) -> None:
    harness = await survive(tmp_path, seed=seed_of_tests(), rounds=10)
    harness.require_every_name_was_hit()
