"""Gold sees an NPC as the hub lets the asker and gold together see it: by the tools, from the cache, without anybody's words."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

import pytest

from body_broker.settings import Settings
from body_broker.storage.postgres import Pool
from mcp_servers.hub.rooms import ROOMS
from mcp_servers.hub.runtime import Runtime, open_runtime
from tests.mcp_servers.game_state.conftest import HOSTILE, world
from tests.mcp_servers.hub.conversing import asker_of, inner_tools
from tiers.deadline import Deadline
from tiers.gold.intents import Present, Scene
from tiers.gold.sight import HubSight
from tiers.model import InferenceRequest, Tier

__all__ = ["world"]  # fixtures


@dataclass
class Seeing:
    runtime: Runtime
    sight: HubSight

    async def __call__(self, npc_id: str, principal: str, *roles: str, within_s: float = 20.0) -> Scene | None:
        asker = await asker_of(self.runtime, principal, *roles)
        return await self.sight(asker, npc_id, Deadline.after(within_s))


@pytest.fixture
async def seeing(settings_for: Callable[..., Settings], world: Pool) -> AsyncIterator[Seeing]:
    _ = world
    async with open_runtime(settings_for(), ROOMS) as runtime, inner_tools(runtime) as tools:
        yield Seeing(runtime, HubSight(tools))


async def test_it_sees_how_the_npc_stands_and_who_of_the_living_is_with_it(seeing: Seeing) -> None:
    mara, osric = await seeing("mara", "service:game"), await seeing("osric", "service:game")
    assert mara is not None
    assert osric is not None
    assert (mara.place, mara.alive, mara.health, mara.role) == ("morgue", True, 100, "broker of bodies")
    assert mara.present == (Present("ann", "player"),)
    assert mara.version == 1
    assert osric.present == (), "the dead are nobody's target"


async def test_it_sees_that_somebody_is_dead(seeing: Seeing) -> None:
    grete = await seeing("grete", "service:game")
    assert grete is not None
    assert not grete.alive


async def test_it_reads_nobody_s_words(seeing: Seeing) -> None:
    assert HOSTILE not in repr(await seeing("mara", "service:game"))


async def test_what_words_from_outside_went_into_is_marked(settings_for: Callable[..., Settings], world: Pool) -> None:
    await world.execute("UPDATE world_entity SET outside = '{role}' WHERE id = 'mara'")
    async with open_runtime(settings_for(), ROOMS) as runtime, inner_tools(runtime) as tools:
        seeing = Seeing(runtime, HubSight(tools))
        mara, osric = await seeing("mara", "service:game"), await seeing("osric", "service:game")
    assert mara is not None
    assert osric is not None
    assert (mara.outside, osric.outside) == (True, False)


@pytest.mark.parametrize(
    ("npc_id", "principal", "roles"),
    [("mara", "person:sam", ("security",)), ("nobody", "service:game", ()), ("ann", "service:game", ())],
    ids=["not for security", "not there", "a player"],
)
async def test_it_sees_nothing_where_it_may_not_or_there_is_nothing(
    seeing: Seeing, npc_id: str, principal: str, roles: tuple[str, ...]
) -> None:
    assert await seeing(npc_id, principal, *roles) is None


async def test_it_sees_nothing_after_its_deadline(seeing: Seeing) -> None:
    assert await seeing("mara", "service:game", within_s=-1) is None


async def test_the_tiers_of_a_hub_decide_by_what_they_see_and_tell_nobody_more_than_they_may_know(
    seeing: Seeing,
) -> None:
    tiers = await seeing.runtime.inferring.tiers()
    asked = InferenceRequest(
        prompt="A bell rings.", sla="real-time", max_tokens=8, npc_id="mara", latency_budget_ms=20_000
    )
    game = await tiers.router.execute(asked, asker=await asker_of(seeing.runtime, "service:game"))
    security = await tiers.router.execute(asked, asker=await asker_of(seeing.runtime, "person:sam", "security"))
    assert (game.text, game.source, game.tier) == ("watch ann", "policy", Tier.GOLD)
    assert (security.text, security.source) == ("wait", "policy")
