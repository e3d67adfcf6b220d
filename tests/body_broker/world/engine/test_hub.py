"""A hub whose world an engine of strangers arbitrates: agents' calls reach it, and what it decides is what they read."""

from __future__ import annotations

from mcp import Client

from body_broker.storage.postgres import Pool
from mcp_servers.hub.engine import arbitrating
from tests.body_broker.world.engine.outside import outside
from tests.body_broker.world.engine.scene import is_sound, load
from tests.mcp_servers.game_state.conftest import tell
from tests.mcp_servers.hub.conftest import OpenHub, open_hub, settings_for
from tests.waiting import wait_until

__all__ = ["open_hub", "settings_for"]  # fixtures


async def status_of(game: Client, change_id: str) -> dict[str, object]:
    async def look() -> dict[str, object] | None:
        found = await tell(game, "get_change_status", change_id=change_id)
        return None if found["status"] == "queued" else found

    found = await wait_until(look, "the engine decides it")
    assert found is not None
    return found


async def test_a_strangers_engine_arbitrates_in_place_of_ours(open_hub: OpenHub, pool: Pool, redis_url: str) -> None:
    await load(pool)
    async with (
        open_hub(tools="all", engine="external") as hub,
        arbitrating(hub.runtime),
        outside(redis_url) as engine,
        hub.client("service:game") as game,
    ):
        hurt = await tell(game, "queue_state_change", change={"entity_id": "ada", "op": "hurt", "payload": {"by": 5}})
        dead = await tell(game, "queue_state_change", change={"entity_id": "ben", "op": "hurt", "payload": {"by": 5}})
        strange = await tell(
            game,
            "queue_state_change",
            change={"entity_id": "seal", "op": "add", "payload": {"field": "value", "by": 1}},
        )

        assert (await status_of(game, hurt["change_id"]))["status"] == "applied"
        assert (await status_of(game, dead["change_id"]))["rule"] == "dead_actor"
        # Our engine adds to numbers; this one does not know how, and says so.
        assert (await status_of(game, strange["change_id"]))["rule"] == "unknown_operation"
        await wait_until(lambda: _version(hub.runtime.services.game_state.world.get("ada")) == 2, "the map has it")
        ada = await tell(game, "get_npc_state", npc_id="ada")
        assert (ada["version"], ada["state"]["health"], ada["source"]) == (2, 75, "map")
        status = await tell(game, "get_engine_status")
        assert "counterpart" in str(status)

        await engine.walk("ada", "cellar")
        await wait_until(lambda: _version(hub.runtime.services.game_state.world.get("ada")) == 3, "the step is seen")
        events = await tell(game, "get_events", after_pos=0, entity_id="ada")
        assert "moved" in str(events)
    await is_sound(pool)


def _version(entity: object) -> int:
    return getattr(entity, "version", 0)
