"""`engine check`: two engines that have nothing in common pass it, and each check finds the engine that breaks its promise."""

from __future__ import annotations

import pytest

from body_broker.background import running
from body_broker.storage.redis import Redis
from body_broker.world.engine.checks import CHECKS, run_checks
from tests.body_broker.world.engine.broken import BROKEN, Broken
from tests.body_broker.world.engine.outside import outside
from tests.body_broker.world.engine.scene import playing

PASSED = {check.name: None for check in CHECKS}


async def test_our_own_engine_passes_every_check(redis: Redis) -> None:
    async with playing(redis):
        found = [finding async for finding in run_checks(redis, patience_s=30.0)]

    assert {f.check.name: f.fault for f in found} == PASSED


async def test_an_engine_written_from_the_page_alone_passes_every_check(redis: Redis, redis_url: str) -> None:
    async with outside(redis_url):
        found = [finding async for finding in run_checks(redis, patience_s=30.0)]

    assert {f.check.name: f.fault for f in found} == PASSED


async def test_an_engine_that_never_says_hello_is_found_at_once(redis: Redis) -> None:

    (found,) = [finding async for finding in run_checks(redis, start_s=0.1)]

    assert (found.check.name, found.fault) == ("hello", "waited 0.1 s for hello")


@pytest.mark.parametrize("broken", BROKEN, ids=lambda broken: broken.check)
async def test_a_check_finds_the_engine_that_breaks_its_promise(broken: Broken, redis: Redis) -> None:
    checks = tuple(check for check in CHECKS if check.name in {"hello", broken.check})

    arbiter = broken.arbiter()
    client = broken.client(redis, arbiter, engine="broken")
    async with running(client.run(), name="broken"):
        # Where a check is to wait in vain it need not wait long; who answers has time to.
        patience_s = 1.5 if broken.says == "waited" else 30.0
        found = [finding async for finding in run_checks(redis, checks=checks, patience_s=patience_s)]

    faults = {f.check.name: f.fault for f in found}
    assert faults["hello"] is None
    assert broken.says in (faults[broken.check] or "")


def test_every_check_has_an_engine_that_it_finds() -> None:
    assert {check.name for check in CHECKS} - {broken.check for broken in BROKEN} == {"hello"}
