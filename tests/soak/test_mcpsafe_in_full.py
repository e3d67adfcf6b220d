"""Owns mcpsafe in full: every part of it, its fuzzing, load, timing and memory too, against our hub over HTTP."""

from __future__ import annotations

from pathlib import Path

import pytest

from mcp_servers.hub.rooms import ROOMS
from tests.attacks.test_scanners import by_mcpsafe, unreviewed
from tests.mcp_servers.hub.conftest import OpenHub, open_hub, patient_engines, patient_models, settings_for

__all__ = ["open_hub", "patient_engines", "patient_models", "settings_for"]


@pytest.mark.timeout(3 * 3600)
async def test_every_part_of_mcpsafe_finds_what_the_reviewed_file_says_and_no_more(
    open_hub: OpenHub, redis: object, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    if not request.config.getoption("--soak"):
        pytest.skip("it takes minutes: poe soak")
    _ = redis  # flushed before the test
    async with open_hub(rooms=ROOMS, rate_per_s=1_000_000) as hub:
        attacked = await by_mcpsafe(hub, tmp_path, "all", timeout_s=3600)

    print(sorted(attacked.parts))
    without, stale = unreviewed("mcpsafe", set(attacked.failed))
    assert {each: attacked.failed[each] for each in without} == {}
    assert stale == set()
    assert len(attacked.parts) > 20, attacked.parts
