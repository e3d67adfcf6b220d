"""Owns the fuzzers in full: 100,000 calls drawn from the tools' schemas, in memory that stays flat, and as many mutated requests."""

from __future__ import annotations

import asyncio
import gc
import os
import tracemalloc
from pathlib import Path

import pytest

from body_broker.storage.redis import Redis
from tests.fuzz.calls import Fuzz, told
from tests.fuzz.conftest import Served, open_hub, patient_engines, patient_models, served, settings_for
from tests.fuzz.studio import fuzzed
from tests.fuzz.table import TOOLS
from tests.fuzz.test_calls_by_schema import seed_here
from tests.fuzz.test_connection_limits import fine
from tests.fuzz.wire_fuzz import WireFuzz
from tests.mcp_servers.hub.conftest import OpenHub
from tests.waiting import wait_until

__all__ = ["open_hub", "patient_engines", "patient_models", "served", "settings_for"]

_CALLS, _PARTS = 100_000, 20
_WARM_PARTS = 5
_GROWTH_MAX = 0.08
"""How much larger than after the warm-up the process may be at the end: what 75,000 calls may leave, were it a leak, is more."""


def calls() -> int:
    """BODY_BROKER_TEST_CALLS, else all of them."""
    return int(os.environ.get("BODY_BROKER_TEST_CALLS", str(_CALLS)))  # noqa: TID251  # tests' own


def resident() -> int:
    """Bytes of this process that are in memory."""
    pages = int(Path("/proc/self/statm").read_text("ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


async def in_parts(fuzz: Fuzz, per_part: int) -> list[int]:
    """The memory after each part of the calls."""
    found: list[int] = []
    for part in range(_PARTS):
        await fuzz.run(per_part, seed=seed_here() * 1000 + part)
        gc.collect()
        found.append(await asyncio.to_thread(resident))
    return found


async def what_grew(fuzz: Fuzz, per_part: int) -> str:
    """The lines of code that hold more after another part than before."""
    tracemalloc.start(10)
    try:
        await fuzz.run(per_part, seed=1)
        gc.collect()
        before = tracemalloc.take_snapshot()
        await fuzz.run(per_part, seed=2)
        gc.collect()
        grown = tracemalloc.take_snapshot().compare_to(before, "lineno")
    finally:
        tracemalloc.stop()
    return "\n".join(str(line) for line in grown[:15])


@pytest.mark.timeout(3 * 3600)
async def test_a_hundred_thousand_drawn_calls_are_decided_as_the_table_says_in_flat_memory(
    open_hub: OpenHub, redis: Redis, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    if not request.config.getoption("--soak"):
        pytest.skip("it takes minutes: poe soak")
    _ = redis  # flushed before the test
    async with fuzzed(open_hub, tmp_path) as (fuzz, _hub):
        sizes = await in_parts(fuzz, calls() // _PARTS)
        tally = fuzz.tally
        print(told(tally, TOOLS))
        print([size // 1024 for size in sizes], "KiB")
        assert not tally.faults, "\n".join([told(tally, TOOLS), *tally.faults[:20]])
        assert tally.reached * 2 >= tally.calls >= calls()
        warm, last = sizes[_WARM_PARTS - 1], max(sizes[-3:])
        grew = last > warm * (1 + _GROWTH_MAX)
        assert not grew, f"{[size // 1024 for size in sizes]} KiB\n{await what_grew(fuzz, calls() // _PARTS)}"


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
