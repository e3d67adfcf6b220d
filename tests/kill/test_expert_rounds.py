"""Owns the proof that no expert's job is lost, done twice or billed twice when hub or worker is killed at a named step, or sleeps."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.kill.experts import sleep_through, survive
from tests.kill.harness import seed_of_tests


@pytest.mark.timeout(900)
async def test_no_job_is_lost_done_twice_or_billed_twice_in_twenty_kills(tmp_path: Path) -> None:
    harness = await survive(tmp_path, seed=seed_of_tests(), rounds=20)
    harness.require_every_name_was_hit()


@pytest.mark.timeout(600)
async def test_a_worker_that_slept_through_its_lease_changes_nothing(tmp_path: Path) -> None:
    await sleep_through(tmp_path)
