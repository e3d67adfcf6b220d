"""What the game_state server still answers while PostgreSQL or the stream of events is gone, and that it comes back by itself."""

from __future__ import annotations

from typing import Any

from mcp import Client

from body_broker.storage.postgres import Pool
from mcp_servers.hub.engine import arbitrating
from tests.counterparts.line import Line
from tests.mcp_servers.game_state.conftest import OpenHub, tell
from tests.mcp_servers.game_state.test_changing import HURT, decided
from tests.mcp_servers.hub.conftest import error_of
from tests.waiting import wait_until


async def code(client: Client, tool: str, **arguments: Any) -> str | None:
    """The error's code, or None where the call succeeds."""
    result = await client.call_tool(tool, arguments)
    return error_of(result)["code"] if result.is_error else None


async def test_while_postgresql_is_away_the_map_answers_with_its_age_and_nothing_is_said_to_be_queued(
    open_hub: OpenHub, world: Pool, line: Line
) -> None:
    async with (
        open_hub(database_url=line.url, tools="all") as hub,
        hub.client("tier:silver") as silver,
        hub.client("service:game") as game,
    ):
        assert await code(game, "queue_state_change", change=HURT) is None
        young = (await tell(silver, "get_npc_state", npc_id="osric"))["age_ms"]
        line.become("cut")

        async def is_old() -> bool:
            read = await tell(silver, "get_npc_state", npc_id="osric")
            assert (read["source"], read["version"]) == ("map", 1)
            return read["age_ms"] > max(young, 1_500)

        await wait_until(is_old, "the map says that it is older than it ever is")
        assert (await tell(silver, "get_world_state", region="ashmere"))["age_ms"] > 1_000
        assert len((await tell(silver, "find_entities", kind="npc"))["items"]) == 3
        assert await code(silver, "get_npc_state", npc_id="osric", fresh=True) == "unavailable"
        assert await code(silver, "get_events", after_pos=0) == "unavailable"
        assert await code(silver, "get_engine_status") == "unavailable"
        assert await code(game, "queue_state_change", change=HURT) == "unavailable"
        assert await world.fetchval("SELECT count(*) FROM world_change") == 1

        line.become("open")

        async def is_back() -> bool:
            return await code(game, "queue_state_change", change=HURT) is None

        await wait_until(is_back, "changes are queued again")
        async with arbitrating(hub.runtime):
            queued = await tell(game, "queue_state_change", change=HURT)
            assert (await decided(game, queued["change_id"]))["status"] == "applied"

        async def is_young() -> bool:
            read = await tell(silver, "get_npc_state", npc_id="osric")
            return read["version"] > 1 and read["age_ms"] <= 1_500

        await wait_until(is_young, "the map follows again")


async def test_events_that_the_stream_lost_reach_the_map_all_the_same(
    open_hub: OpenHub, world: Pool, redis: Any
) -> None:
    _ = world
    async with open_hub() as hub, arbitrating(hub.runtime), hub.client("service:game") as game:
        for n in range(1, 4):
            await redis.delete("world-event")
            queued = await tell(game, "queue_state_change", change=HURT)
            await decided(game, queued["change_id"])
            await redis.delete("world-event")

            async def is_known(version: int = n + 1) -> bool:
                return (await tell(game, "get_npc_state", npc_id="osric"))["version"] == version

            await wait_until(is_known, "the map has it")
