"""The bench of the tiers in short: it does the work that its tables tell of. How long that takes is no test's matter."""

from __future__ import annotations

from collections import Counter

from body_broker.storage.postgres import Pool
from tests.bench import slot, stream
from tests.bench.tiers import FAULTS, REQUESTS, decide, everything, fail_over
from tests.counterparts.faultwall.wall import fault_wall
from tests.mcp_servers.hub.conftest import OpenHub, open_hub, settings_for
from tiers.counts import Counts
from tiers.engine import Engine
from tiers.router import ModelRouter

__all__ = ["open_hub", "settings_for"]


def test_deciding_is_measured_over_every_engine_of_the_catalogue() -> None:
    catalogue = everything()
    engines = {name: Engine(spec, Counts()) for name, spec in catalogue.engines.items()}
    router = ModelRouter(catalogue, engines, {})
    counted = [len(router.decide(request, remaining_s=15.0).candidates) for request in REQUESTS.values()]

    times = decide(times=10)

    assert counted == [4, 7, 7, 7]
    assert [len(each.us) for each in times.values()] == [10] * len(REQUESTS)


async def test_failing_over_asks_each_engine_that_fails_once_and_then_the_one_that_answers(pool: Pool) -> None:
    async with fault_wall("vllm") as wall:
        times = await fail_over(pool, wall.url["vllm"], times=2)

    asked = Counter(str(seen.body["model"]) for seen in wall.seen)
    assert set(times) == {"healthy", *FAULTS, *(f"bare {name}" for name in FAULTS)}
    assert all(len(each.us) == 2 for each in times.values())
    del asked["wall-silent"]  # on a busy machine its few milliseconds are over before it has read the request
    assert asked == {"wall": 2 * (1 + len(FAULTS)) + 2 * len(times), "wall-unavailable": 2 * 2, "wall-reset": 2 * 2}


async def test_a_stream_is_read_whole_by_every_way_that_is_compared(pool: Pool) -> None:
    async with stream.serving() as url:
        times = await stream.compare(pool, url, times=2)

    assert list(times) == [stream.BARE, "the engine", "the chain", "the chain, told as it comes"]
    assert all(len(each.us) == 2 for each in times.values())


async def test_a_client_that_leaves_is_timed_until_the_engine_sees_it(open_hub: OpenHub) -> None:
    async with fault_wall("vllm") as wall, open_hub(silver_url=wall.url["vllm"]) as hub:
        times = await slot.leave(wall, hub.base, await hub.token("service:chat"), times=2)

        assert {name: len(took) for name, took in times.items()} == {slot.STRAIGHT: 2, slot.THROUGH: 2}
        assert all(seconds > 0 for took in times.values() for seconds in took)
        assert (wall.left["vllm"], wall.inside["vllm"]) == (4, 0)
        assert [seen.body["model"] for seen in wall.seen] == ["wall"] * 4, "two of them were the hub's"
