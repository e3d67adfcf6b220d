"""Owns the fuzzers in full: 100,000 calls drawn from the tools' schemas, and as many mutated requests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from body_broker.storage.redis import Redis
from tests.fuzz.calls import told
from tests.fuzz.conftest import Served, open_hub, patient_engines, patient_models, served, settings_for
from tests.fuzz.studio import fuzzed
from tests.fuzz.table import TOOLS
from tests.fuzz.test_calls_by_schema import seed_here
from tests.fuzz.test_connection_limits import fine
from tests.fuzz.wire_fuzz import WireFuzz
from tests.mcp_servers.hub.conftest import OpenHub
from tests.waiting import wait_until

__all__ = ["open_hub", "patient_engines", "patient_models", "served", "settings_for"]

_CALLS = 100_000


def calls() -> int:
    """BODY_BROKER_TEST_CALLS, else all of them."""
    return int(os.environ.get("BODY_BROKER_TEST_CALLS", str(_CALLS)))  # noqa: TID251  # tests' own


@pytest.mark.timeout(3 * 3600)
async def test_a_hundred_thousand_drawn_calls_are_decided_as_the_table_says(
    open_hub: OpenHub, redis: Redis, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    if not request.config.getoption("--soak"):
        pytest.skip("it takes minutes: poe soak")
    _ = redis  # flushed before the test
    async with fuzzed(open_hub, tmp_path) as (fuzz, _hub):
        await fuzz.run(calls(), seed=seed_here())
        tally = fuzz.tally
        print(told(tally, TOOLS))
        assert not tally.faults, "\n".join([told(tally, TOOLS), *tally.faults[:20]])
        assert tally.reached * 2 >= tally.calls >= calls()


@pytest.mark.timeout(3 * 3600)
async def test_a_hundred_thousand_mutated_requests_are_answered_by_the_specifications(
    served: Served, request: pytest.FixtureRequest
) -> None:
    if not request.config.getoption("--soak"):
        pytest.skip("it takes minutes: poe soak")
    heard = await WireFuzz(served.url, await served.token("person:ada", "admin")).run(calls(), seed=seed_here() + 1)
    print(heard.requests, dict(heard.statuses), dict(heard.codes))
    assert not heard.faults, "\n".join(heard.faults[:20])
    await wait_until(lambda: not served.connections, "nothing is left of it")
    assert await fine(served)
