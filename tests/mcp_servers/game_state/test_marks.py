"""Players' words in ordinary fields of the world: every way to them marks and taints, reading other fields does not."""

from __future__ import annotations

from typing import Any

import pytest
from mcp import Client

from body_broker.storage.postgres import Pool
from mcp_servers.hub.engine import arbitrating
from tests.mcp_servers.game_state.conftest import HOSTILE, tell
from tests.mcp_servers.game_state.test_changing import decided
from tests.mcp_servers.hub.conftest import Hub, error_of
from tests.waiting import wait_until

WAYS: list[tuple[str, dict[str, Any]]] = [
    ("get_npc_state", {"npc_id": "osric"}),
    ("get_npc_state", {"npc_id": "osric", "fields": ["role"], "fresh": True}),
    ("get_npc_states", {"npc_ids": ["grete", "osric"]}),
    ("find_entities", {"ids": ["osric"]}),
    ("find_entities", {"region": "ashmere", "kind": "npc", "fresh": True}),
    ("find_entities", {"ids": ["evil"]}),
    ("get_world_state", {"region": "ashmere", "include": ["npc"]}),
    ("get_world_state", {"region": "ashmere", "fresh": True}),
    ("get_events", {"after_pos": 0, "entity_id": "osric"}),
]
PLAIN: list[tuple[str, dict[str, Any]]] = [
    ("get_npc_state", {"npc_id": "osric", "fields": ["name", "mood", "place"]}),
    ("get_npc_state", {"npc_id": "osric", "fields": ["mood"], "fresh": True}),
    ("get_npc_state", {"npc_id": "grete"}),
    ("find_entities", {"ids": ["osric"], "fields": ["mood"]}),
    ("get_npc_states", {"npc_ids": ["osric", "grete"], "fields": ["name"]}),
    ("get_world_state", {"region": "ashmere", "include": ["place"]}),
]


@pytest.fixture
async def marked(hub: Hub, game: Client) -> None:
    """A player has put words into an NPC's role and into a flag."""
    role = {"entity_id": "osric", "op": "set", "payload": {"fields": {"role": HOSTILE, "mood": "afraid"}}}
    flag = {"entity_id": "evil", "op": "spawn", "payload": {"kind": "flag", "data": {"value": HOSTILE}}}
    async with arbitrating(hub.runtime):
        for change, more in ((role, {"expect_version": 1}), (flag, {})):
            queued = await tell(game, "queue_state_change", change=change, player_id="ann", **more)
            assert (await decided(game, queued["change_id"]))["status"] == "applied"
    await wait_until(lambda: hub.runtime.services.world.get("evil"), "the map has it")


@pytest.mark.usefixtures("marked")
async def test_every_way_to_a_player_s_words_in_a_field_taints_and_reading_other_fields_does_not(hub: Hub) -> None:
    for n, (tool, arguments) in enumerate([*PLAIN, *WAYS]):
        async with hub.client(f"person:reader{n}", "designer") as person:
            told = str(await tell(person, tool, **arguments))
            is_told = (tool, arguments) in WAYS
            assert (HOSTILE in told) is is_told, (tool, arguments)
            assert (await tell(person, "whoami"))["tainted"] is is_told, (tool, arguments)


@pytest.mark.usefixtures("marked")
async def test_a_resource_that_shows_a_player_s_words_taints(hub: Hub) -> None:
    uris = {
        "game://npc/osric": True,
        "game://region/ashmere": True,
        "game://events/ashmere": True,
        "game://npc/grete": False,
        "game://region/hollow": False,
    }
    for n, (uri, is_told) in enumerate(uris.items()):
        async with hub.client(f"person:reader{n}", "designer") as person:
            assert (HOSTILE in str(await person.read_resource(uri))) is is_told, uri
            assert (await tell(person, "whoami"))["tainted"] is is_told, uri


@pytest.mark.usefixtures("marked")
async def test_words_of_our_own_in_their_place_are_read_without_a_mark(hub: Hub, game: Client, silver: Client) -> None:
    ours = {"entity_id": "osric", "op": "set", "payload": {"fields": {"role": "ferryman"}}}
    async with arbitrating(hub.runtime):
        queued = await tell(game, "queue_state_change", change=ours, expect_version=2)
        assert (await decided(game, queued["change_id"]))["status"] == "applied"
    await wait_until(lambda: hub.runtime.services.world.entities["osric"].version == 3, "the map has it")
    assert (await tell(silver, "get_npc_state", npc_id="osric"))["state"]["role"] == "ferryman"
    assert not (await tell(silver, "whoami"))["tainted"]


async def test_a_version_of_none_and_a_driver_of_the_newborn_are_refused_at_the_door(game: Client, world: Pool) -> None:
    flag = {"entity_id": "vault-open", "op": "set_flag", "payload": {"value": True}}
    for version in (0, 2**53, 10**30):
        error = error_of(await game.call_tool("queue_state_change", {"change": flag, "expect_version": version}))
        assert error["code"] == "bad_input"
    minion = {"kind": "npc", "data": {"name": "M", "driver": "tier:gold"}}
    error = error_of(
        await game.call_tool("queue_state_change", {"change": {"entity_id": "m", "op": "spawn", "payload": minion}})
    )
    assert "driver" in error["message"]
    for tool, arguments in (
        ("get_events", {"after_pos": 10**30}),
        ("get_entity_history", {"entity_id": "mara", "from_version": 2**63}),
    ):
        assert error_of(await game.call_tool(tool, arguments))["code"] == "bad_input"
    assert await world.fetchval("SELECT count(*) FROM world_change") == 0
