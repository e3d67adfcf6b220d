"""Owns the proof that a hub's engine is the one its settings name, beside it and as a process of its own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from body_broker.settings import Settings
from body_broker.work.model import Origin
from body_broker.world import epochs, queue
from body_broker.world.arbiter import Arbiter
from body_broker.world.model import Proposal
from mcp_servers.hub.engine import arbitrating, make_engine
from mcp_servers.hub.runtime import Runtime, open_runtime
from tests.kill.harness import Program
from tests.mcp_servers.hub.conftest import SECRET
from tests.waiting import wait_until

MAKE = Proposal(entity_id="docks", op="spawn", payload={"kind": "region", "data": {"name": "The docks"}}, key="k")


async def submit(runtime: Runtime) -> str:
    """A change that any engine applies."""
    origin = Origin(chain=("service:game",), session="tests")
    (taken,) = await queue.submit(
        runtime.stores.pool, [MAKE], origin=origin, requester="service:game", rank=1, open_changes_max=9
    )
    return taken.change_id


async def test_our_own_engine_decides_beside_the_hub_and_lets_go_when_the_hub_ends(
    settings_for: Callable[..., Settings],
) -> None:
    async with open_runtime(settings_for()) as runtime:
        pool, world = runtime.stores.pool, runtime.services.world
        change = await submit(runtime)
        async with arbitrating(runtime):
            standing = await queue.wait(pool, world, change, "service:game", timeout_s=90)
            assert standing.state == "applied"
            assert world.get("docks") is not None
        status = await epochs.status(pool)
        assert not status.live
        assert status.tick_hz == runtime.settings.engine_tick_hz


async def test_where_no_engine_is_wanted_nothing_is_decided(settings_for: Callable[..., Settings]) -> None:
    async with open_runtime(settings_for(engine="off")) as runtime:
        assert make_engine(runtime.settings, runtime.stores) is None
        change = await submit(runtime)
        async with arbitrating(runtime):
            standing = await queue.standing(runtime.stores.pool, change, "service:game")
            assert standing.state == "queued"
        assert (await epochs.status(runtime.stores.pool)).epoch == 0


async def test_another_engine_is_relayed_to_where_the_settings_say_so(settings_for: Callable[..., Settings]) -> None:
    async with open_runtime(settings_for(engine="external")) as runtime:
        assert not isinstance(make_engine(runtime.settings, runtime.stores), Arbiter | None)
        async with arbitrating(runtime):
            assert not (await epochs.status(runtime.stores.pool)).live, "no engine has said hello"


def program(database_url: str, redis_url: str, folder: Path, **settings: str) -> Program:
    """`body-broker engine` over these stores."""
    stores = {"BODY_BROKER_DATABASE_URL": database_url, "BODY_BROKER_REDIS_URL": redis_url}
    named = {**stores, "BODY_BROKER_SECRET_KEY": SECRET, **settings}
    return Program(["engine", "--data-dir", str(folder)], folder / "log", named)


async def test_the_command_arbitrates_says_under_which_epoch_and_ends_when_told(
    database_url: str, redis_url: str, tmp_path: Path, settings_for: Callable[..., Settings]
) -> None:
    async with open_runtime(settings_for()) as runtime:
        first = program(database_url, redis_url, tmp_path)
        await first.says(lambda said: "Arbitrating under epoch 1." in said or None, "it arbitrates")
        second = program(database_url, redis_url, tmp_path)
        try:
            await second.says(lambda said: "Waiting: another engine arbitrates." in said or None, "it waits")
            change = await submit(runtime)
            world = runtime.services.world
            standing = await queue.wait(runtime.stores.pool, world, change, "service:game", timeout_s=90)
            assert standing.state == "applied"

            await first.stop()
            await second.says(lambda said: "Arbitrating under epoch 2." in said or None, "the other goes on")
            await second.stop()
        finally:
            for each in (first, second):
                each.kill()
        await wait_until(lambda: _is_free(runtime), "nobody holds the epoch")


async def _is_free(runtime: Runtime) -> bool:
    return not (await epochs.status(runtime.stores.pool)).live


async def test_the_command_says_why_it_does_nothing(database_url: str, redis_url: str, tmp_path: Path) -> None:
    found = program(database_url, redis_url, tmp_path, BODY_BROKER_ENGINE="off")

    assert await found.ended() == 1
    assert "BODY_BROKER_ENGINE is off" in found.said()
