from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from body_broker.errors import SettingsError, Unavailable
from body_broker.settings import Settings
from mcp_servers.hub.inner_door import InnerDoor
from mcp_servers.hub.protocol import Protocol
from mcp_servers.hub.runtime import open_runtime
from mcp_servers.hub.serve import Address, listening
from tests.mcp_servers.hub.conftest import settings_for
from tests.mcp_servers.hub.conversing import TALKS, Plan, asker_of
from tests.mcp_servers.hub.fixture_room import ROOM, Seen
from tiers.catalogue import EngineSpec
from tiers.model import InferenceRequest, Tier

__all__ = ["settings_for"]

ROOMS = (ROOM, TALKS)


def extra() -> dict[str, object]:
    return {"fixture": Seen(), "talks": Plan()}


@pytest.mark.usefixtures("redis")
async def test_the_tiers_are_opened_once_by_whoever_asks_first_and_closed_with_the_hub(
    settings_for: Callable[..., Settings],
) -> None:
    async with open_runtime(settings_for(), ROOMS, extra_services=extra()) as runtime:
        first = asyncio.create_task(runtime.inferring.tiers())
        others = await asyncio.gather(*(runtime.inferring.tiers() for _ in range(3)))
        tiers = await first
        assert all(other is tiers for other in others)
        # The tools are this very hub's, through the door that nobody else has.
        asker = await asker_of(runtime, "person:anna", "engineer")
        assert "fx_echo" in {tool.name for tool in await tiers.tools.offered(asker, Tier.SILVER)}
        inferring = runtime.inferring

    with pytest.raises(Unavailable):
        await inferring.tiers()


@pytest.mark.usefixtures("redis")
@pytest.mark.parametrize(("gold_url", "opened"), [("http://127.0.0.1:9", True), (None, False)])
async def test_a_hub_listens_with_its_tiers_open_where_an_engine_has_an_address_so_that_no_deadline_pays_for_it(
    settings_for: Callable[..., Settings], gold_url: str | None, *, opened: bool
) -> None:
    async with (
        open_runtime(settings_for(gold_url=gold_url), ROOMS, extra_services=extra()) as runtime,
        listening(runtime, Address("127.0.0.1", 0)),
    ):
        assert runtime.inferring.is_open is opened


@pytest.mark.usefixtures("redis")
async def test_whoever_leaves_while_the_tiers_are_opened_leaves_them_openable(
    settings_for: Callable[..., Settings],
) -> None:
    async with open_runtime(settings_for(), ROOMS, extra_services=extra()) as runtime:
        first = asyncio.create_task(runtime.inferring.tiers())
        await asyncio.sleep(0)
        first.cancel()
        await asyncio.wait({first})

        tiers = await runtime.inferring.tiers()

        assert tiers is await runtime.inferring.tiers()
        asker = await asker_of(runtime, "person:anna", "engineer")
        assert await tiers.tools.offered(asker, Tier.SILVER)


class CountedDoor(InnerDoor):
    """A door that knows how often it stands open."""

    open = 0

    @asynccontextmanager
    async def serving(self) -> AsyncGenerator[None]:
        async with super().serving():
            self.open += 1
            try:
                yield
            finally:
                self.open -= 1


@pytest.mark.usefixtures("redis")
async def test_an_opening_that_fails_half_way_leaves_no_door_open(settings_for: Callable[..., Settings]) -> None:
    async with open_runtime(settings_for(), ROOMS, extra_services=extra()) as runtime:
        inferring, doors = runtime.inferring, list[CountedDoor]()

        def door() -> CountedDoor:
            protocol = Protocol(runtime.gate, runtime.listings, runtime.limits, runtime.bus)
            doors.append(CountedDoor(protocol, runtime.identities, runtime.settings))
            return doors[-1]

        inferring.reaches(door)
        good = inferring.catalogue
        odd: Any = "no dialect"
        spec = EngineSpec(name="odd", tier=Tier.SILVER, dialect=odd, url="http://127.0.0.1:9")
        inferring.catalogue = replace(good, engines={**good.engines, "odd": spec})
        with pytest.raises(KeyError):
            await inferring.tiers()
        assert [each.open for each in doors] == [0]

        inferring.catalogue = good
        await inferring.tiers()
        assert [each.open for each in doors] == [0, 1]
    assert [each.open for each in doors] == [0, 0]


@pytest.mark.usefixtures("redis")
async def test_without_an_engine_the_tiers_are_there_and_say_so(settings_for: Callable[..., Settings]) -> None:
    async with open_runtime(settings_for(), ROOMS, extra_services=extra()) as runtime:
        tiers = await runtime.inferring.tiers()
        asker = await asker_of(runtime, "person:anna", "engineer")

        found = await tiers.router.execute(InferenceRequest(prompt="Who rows?", tools=("fx_echo",)), asker=asker)

        assert (found.source, found.engine) == ("template", None)
        assert {each.reason for each in found.fallbacks} == {"not_configured"}


@pytest.mark.usefixtures("redis")
async def test_a_file_of_models_that_does_not_fit_stops_the_start(
    settings_for: Callable[..., Settings], tmp_path: Path
) -> None:
    (tmp_path / "models.toml").write_text("[engines.silver]\ncontext_tokens = -1\n", "utf-8")

    with pytest.raises(SettingsError):
        async with open_runtime(settings_for(models=tmp_path / "models.toml"), ROOMS, extra_services=extra()):
            pass
