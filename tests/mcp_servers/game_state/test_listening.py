"""The game_state server's resources: what they hold, who may read and hear them, and that a change on one hub is heard on another."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from mcp import Client
from mcp.server.subscriptions import ResourceUpdated
from mcp.shared.exceptions import MCPError
from mcp_types import ResourceTemplateReference, TextResourceContents

from body_broker.storage.postgres import Pool
from body_broker.world.operations import OPERATIONS
from mcp_servers.hub.engine import arbitrating
from mcp_servers.hub.wire import OUTSIDE_META
from tests.mcp_servers.game_state.conftest import HOSTILE, WORLD, OpenHub, put, tell
from tests.mcp_servers.game_state.test_changing import decided
from tests.mcp_servers.hub.conftest import Hub
from tests.waiting import wait_until

HURT = {"entity_id": "osric", "op": "hurt", "payload": {"by": 1}}


async def read(client: Client, uri: str) -> dict[str, Any]:
    """The JSON of a resource that holds nothing from outside."""
    found = await client.read_resource(uri)
    (content,) = found.contents
    assert isinstance(content, TextResourceContents)
    assert content.mime_type == "application/json"
    assert OUTSIDE_META not in (found.meta or {})
    body: dict[str, Any] = json.loads(content.text)
    return body


async def test_an_npc_a_region_and_its_events_are_resources_without_words_from_outside(silver: Client) -> None:
    npc = await read(silver, "game://npc/mara")
    assert (npc["id"], npc["version"], npc["source"]) == ("mara", 1, "map")
    assert "memories" not in npc["state"]
    region = await read(silver, "game://region/ashmere")
    assert (region["region"], region["version"], region["cut_after"]) == ("ashmere", 1, None)
    assert {e["id"] for e in region["items"]} == {i for i, (_, region, _) in WORLD.items() if region == "ashmere"}
    events = await read(silver, "game://events/hollow")
    assert [(e["entity_id"], e["type"]) for e in events["items"]] == [("hollow", "loaded"), ("cellar", "loaded")]
    assert events["next"] == len(WORLD)
    assert not (await tell(silver, "whoami"))["tainted"]


async def test_a_resource_of_nothing_is_not_found(silver: Client) -> None:
    for uri in ("game://npc/nobody", "game://npc/ann", "game://region/morgue", "game://events/nowhere"):
        with pytest.raises(MCPError, match="not_found"):
            await silver.read_resource(uri)


async def test_the_latest_events_of_a_region_are_at_most_fifty(hub: Hub, silver: Client, world: Pool) -> None:
    await put(world, {f"crow-{n:03}": ("npc", "hollow", {"name": f"Crow {n}"}) for n in range(60)})
    await wait_until(lambda: hub.runtime.services.world.get("crow-059"), "the map has them")
    events = await read(silver, "game://events/hollow")
    assert [e["entity_id"] for e in events["items"]] == [f"crow-{n:03}" for n in range(10, 60)]


async def test_a_crowded_region_s_resource_says_where_it_was_cut(hub: Hub, silver: Client, world: Pool) -> None:
    await put(world, {f"crow-{n:03}": ("npc", "hollow", {"name": f"Crow {n}"}) for n in range(600)})
    await wait_until(lambda: hub.runtime.services.world.get("crow-599"), "the map has them")
    region = await read(silver, "game://region/hollow")
    assert (len(region["items"]), region["cut_after"]) == (500, "crow-498")


async def test_every_operation_is_told_with_its_payload_and_the_rules_that_may_refuse_it(silver: Client) -> None:
    table = await read(silver, "game://operations")
    assert set(table["operations"]) == set(OPERATIONS)
    assert table["operations"]["move"] | {"does": ""} == {
        "does": "",
        "kinds": ["npc", "player"],
        "payload": {"to": "string", "position?": "[number -1000000..1000000]"},
        "needs_version": True,
    }
    assert "dead_actor" in table["rules"]


async def test_ids_of_npcs_and_regions_are_completed(silver: Client) -> None:
    async def completed(uri: str, argument: str, value: str) -> list[str]:
        ref = ResourceTemplateReference(uri=uri)
        return (await silver.complete(ref, {"name": argument, "value": value})).completion.values

    assert await completed("game://npc/{id}", "id", "") == ["grete", "mara", "osric"]
    assert await completed("game://npc/{id}", "id", "OS") == ["osric"]
    assert await completed("game://region/{id}", "id", "the") == ["hollow"]
    assert await completed("game://events/{region}", "region", "ash") == ["ashmere"]
    assert await completed("game://npc/{id}", "id", "ann") == []


async def test_a_listener_on_one_hub_hears_of_a_change_made_through_another(open_hub: OpenHub, world: Pool) -> None:
    _ = world
    async with (
        open_hub() as one,
        open_hub() as other,
        arbitrating(other.runtime),
        one.client("tier:silver") as silver,
        other.client("service:game") as game,
    ):
        uris = {"game://npc/osric", "game://region/ashmere", "game://events/ashmere"}
        async with silver.listen(resource_subscriptions=[*uris, "game://npc/mara"]) as heard:
            queued = await tell(game, "queue_state_change", change=HURT)
            said: set[str] = set()
            async with asyncio.timeout(60):
                async for event in heard:
                    assert isinstance(event, ResourceUpdated)
                    said.add(str(event.uri))
                    if said == uris:
                        break
        assert (await read(silver, "game://npc/osric"))["state"]["health"] == 99
        assert (await decided_by(one, queued["change_id"]))["status"] == "applied"


async def test_who_listens_to_a_region_hears_that_somebody_left_it(hub: Hub, game: Client, silver: Client) -> None:
    change = {"entity_id": "osric", "op": "relocate", "payload": {"to": "cellar"}}
    async with arbitrating(hub.runtime), silver.listen(resource_subscriptions=["game://region/ashmere"]) as heard:
        await tell(game, "queue_state_change", change=change, expect_version=1)
        async with asyncio.timeout(60):
            assert isinstance(await anext(aiter(heard)), ResourceUpdated)
        region = await read(silver, "game://region/ashmere")
    assert "osric" not in {e["id"] for e in region["items"]}


async def test_who_may_not_read_a_resource_may_not_listen_to_it(hub: Hub) -> None:
    for who, *roles in (("tier:gold",), ("person:sam", "security"), ("person:stranger",)):
        async with hub.client(who, *roles) as client:
            with pytest.raises(MCPError, match="default-deny:state_read"):
                await client.read_resource("game://npc/mara")
            with pytest.raises(MCPError, match="default-deny:state_read"):
                async with client.listen(resource_subscriptions=["game://npc/mara"]):
                    pass
            templates = [t.uri_template for t in (await client.list_resource_templates()).resource_templates]
            assert not [uri for uri in templates if uri.startswith("game://")] or who == "tier:gold"


async def test_words_of_a_player_reach_no_resource(hub: Hub, game: Client, silver: Client) -> None:
    said = {"entity_id": "ann", "op": "say", "payload": {"text": HOSTILE, "to": "mara"}}
    async with arbitrating(hub.runtime):
        queued = await tell(game, "queue_state_change", change=said, player_id="ann")
        assert (await decided(game, queued["change_id"]))["status"] == "applied"
    await wait_until(lambda: hub.runtime.services.world.entities["mara"].version == 2, "mara remembers")
    for uri in ("game://npc/mara", "game://region/ashmere", "game://events/ashmere"):
        content = (await silver.read_resource(uri)).contents[0]
        assert isinstance(content, TextResourceContents)
        assert HOSTILE not in content.text


async def test_a_change_of_one_hub_is_the_same_change_through_another(open_hub: OpenHub, world: Pool) -> None:
    _ = world
    async with (
        open_hub() as one,
        open_hub() as other,
        one.client("service:game") as game,
        other.client("service:game") as same_game,
    ):
        first = await tell(game, "queue_state_change", change=HURT, idempotency_key="turn-1")
        again = await tell(same_game, "queue_state_change", change=HURT, idempotency_key="turn-1")
        assert (again["change_id"], again["duplicate"]) == (first["change_id"], True)
        found = await tell(game, "find_entities", kind="npc", limit=1)
        rest = await tell(same_game, "find_entities", kind="npc", limit=5, cursor=found["next_cursor"])
        assert [e["id"] for e in found["items"] + rest["items"]] == ["grete", "mara", "osric"]


async def decided_by(hub: Hub, change_id: str) -> dict[str, Any]:
    async with hub.client("service:game") as game:
        return await decided(game, change_id)
