"""Under twice the load that an engine can take, requests are answered or fallen back by their deadline, and no cut answer passes for whole."""

from __future__ import annotations

import asyncio

import pytest

from body_broker.storage.postgres import Pool
from body_broker.storage.redis import Redis
from tests.bench.overload import Figures, Scene, flood, scenes
from tests.tiers.clock import Clock, frozen_time

SECONDS = 4.0
STEP_S = 0.002
"""How far the clock moves at a time: what happens between two moves happens at once."""


async def counted(clock: Clock, scene: Scene, seconds: float) -> Figures:
    """A flood whose time is the test's: nothing here depends on how busy the machine is."""
    flooding = asyncio.create_task(flood(scene, seconds))
    while not flooding.done():
        await clock.pass_by(STEP_S, step_s=STEP_S)
    return await flooding


@pytest.mark.parametrize(("place", "used"), [(0, 0.7), (1, 0.7), (2, 0.5)], ids=["gold", "silver", "crowded"])
async def test_all_but_one_in_a_thousand_are_served_by_their_deadline_and_no_place_is_wasted(
    place: int, used: float, pool: Pool, redis: Redis
) -> None:
    async with scenes(pool, redis) as found:
        scene = found[place]
        with frozen_time() as clock:
            figures = await counted(clock, scene, SECONDS)
    assert figures.asked >= SECONDS * scene.capacity * 2 - 1
    assert figures.in_time >= 0.999, figures
    assert figures.unsaid == 0
    assert figures.answered >= used * scene.capacity * SECONDS, (
        f"who cannot be answered in time takes nobody's place: {figures}"
    )
    assert figures.fallen_back > 0, "twice the load cannot all be answered"
