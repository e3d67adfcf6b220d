"""The game_state server's reads over HTTP, by the official client: what they show, how far they may be trusted, what they leave out."""

from __future__ import annotations

from typing import Any

from mcp import Client

from body_broker.storage.postgres import Pool
from tests.mcp_servers.game_state.conftest import HOSTILE, REMARK, WORLD, put, tell
from tests.mcp_servers.hub.conftest import Hub, error_of
from tests.waiting import wait_until


def trusted(read: dict[str, Any]) -> tuple[str, int]:
    """Source and tick of a read, whose age is checked to be one."""
    assert isinstance(read["age_ms"], int)
    assert read["age_ms"] >= 0
    return read["source"], read["as_of_tick"]


async def test_an_npc_s_state_is_told_with_version_tick_age_and_source(silver: Client) -> None:
    found = (await silver.call_tool("get_npc_state", {"npc_id": "mara"})).structured_content
    assert found is not None
    assert trusted(found) == ("map", 1)
    assert (found["id"], found["region"], found["version"]) == ("mara", "ashmere", 1)
    assert found["state"] == {
        "name": "Mara",
        "role": "broker of bodies",
        "place": "morgue",
        "position": [3.0, 4.0],
        "driver": "tier:gold",
        "inventory": ["ledger"],
        "health": 100,
        "alive": True,
        "mood": "calm",
    }


async def test_a_fresh_read_asks_the_database_and_says_so(silver: Client, world: Pool) -> None:
    await world.execute("UPDATE world_entity SET data = data || '{\"mood\": \"afraid\"}' WHERE id = 'mara'")
    kept = await tell(silver, "get_npc_state", npc_id="mara", fields=["mood"])
    fresh = await tell(silver, "get_npc_state", npc_id="mara", fields=["mood"], fresh=True)
    assert (kept["state"], trusted(kept)) == ({"mood": "calm"}, ("map", 1))
    assert (fresh["state"], trusted(fresh)) == ({"mood": "afraid"}, ("database", 1))
    assert fresh["age_ms"] == 0


async def test_a_field_that_is_named_is_told_even_if_it_is_empty(silver: Client) -> None:
    found = await tell(silver, "get_npc_state", npc_id="osric", fields=["inventory", "role", "disposition"])
    assert found["state"] == {"inventory": [], "role": None, "disposition": {}}


async def test_a_field_that_no_npc_has_is_refused_with_those_that_it_has(silver: Client) -> None:
    error = error_of(await silver.call_tool("get_npc_state", {"npc_id": "mara", "fields": ["mana", "mood"]}))
    assert error["code"] == "bad_input"
    assert "mana" in error["message"]
    assert "memories" in error["next_step"]


async def test_who_is_no_npc_is_not_found_with_what_it_is(silver: Client) -> None:
    for npc_id, said in (
        ("nobody", "no npc 'nobody'"),
        ("ann", "'ann' is of kind player, not npc"),
        ("ashmere", "is of kind region"),
    ):
        for fresh in (False, True):
            error = error_of(await silver.call_tool("get_npc_state", {"npc_id": npc_id, "fresh": fresh}))
            assert error["code"] == "not_found"
            assert said in error["message"]


async def test_reading_the_words_of_a_player_taints_and_reading_the_plain_state_does_not(silver: Client) -> None:
    async def tainted() -> bool:
        return (await tell(silver, "whoami"))["tainted"]

    plain = await silver.call_tool("get_npc_state", {"npc_id": "mara"})
    own = await silver.call_tool("get_npc_state", {"npc_id": "mara", "fields": ["last_said"]})
    await tell(silver, "get_world_state", region="ashmere")
    await tell(silver, "find_entities", kind="npc")
    await tell(silver, "get_npc_states", npc_ids=["mara"])
    await tell(silver, "get_events", after_pos=0, entity_id="osric")
    assert HOSTILE not in repr(plain)
    assert own.structured_content is not None
    assert own.structured_content["state"]["last_said"]["text"] == "The ledger never lies."
    assert not await tainted()

    told = await silver.call_tool("get_npc_state", {"npc_id": "mara", "fields": ["memories"]})
    assert told.structured_content is not None
    assert told.structured_content["state"]["memories"] == [REMARK]
    assert told.meta == {"body-broker/outside": True} or (told.meta or {})["body-broker/outside"] is True
    assert await tainted()


WAYS: dict[str, dict[str, Any]] = {
    "get_npc_states": {"npc_ids": ["osric", "mara"], "fields": ["memories"]},
    "find_entities": {"ids": ["mara"], "fields": ["memories"]},
    "get_entity_history": {"entity_id": "mara", "fields": ["memories"]},
    "get_events": {"after_pos": 0, "entity_id": "mara", "fields": ["memories"]},
}


async def test_every_way_to_the_words_of_a_player_taints(hub: Hub) -> None:
    for n, (tool, arguments) in enumerate(WAYS.items()):
        async with hub.client(f"service:reader{n}") as code, hub.client(f"person:reader{n}", "designer") as person:
            assert HOSTILE in str(await tell(person, tool, **arguments))
            assert (await tell(person, "whoami"))["tainted"]
            assert HOSTILE in str(await tell(code, tool, **arguments))
            assert not (await tell(code, "whoami"))["tainted"]  # a service by itself is code


async def test_several_npcs_are_told_at_one_moment_and_what_is_none_is_named(silver: Client) -> None:
    found = await tell(silver, "get_npc_states", npc_ids=["osric", "nobody", "mara", "ann", "osric"], fields=["name"])
    assert [(e["id"], e["state"]) for e in found["items"]] == [("osric", {"name": "Osric"}), ("mara", {"name": "Mara"})]
    assert found["missing"] == ["nobody", "ann"]
    assert found["version"] == len(WORLD)
    too_many = error_of(await silver.call_tool("get_npc_states", {"npc_ids": [f"n{i}" for i in range(257)]}))
    assert too_many["code"] == "bad_input"


async def test_a_player_s_state_is_told(silver: Client) -> None:
    found = await tell(silver, "get_player_state", player_id="ann")
    assert (found["state"]["sanity"], found["version"]) == (80, 1)
    assert error_of(await silver.call_tool("get_player_state", {"player_id": "mara"}))["code"] == "not_found"


async def test_a_region_is_told_in_short_with_everything_in_it(silver: Client) -> None:
    found = await tell(silver, "get_world_state", region="ashmere")
    assert trusted(found) == ("map", 1)
    assert (found["region"], found["version"], found["pos"]) == ("ashmere", 1, len(WORLD))
    assert found["state"] == {"name": "Ashmere", "weather": "fog", "time_of_day": "night", "danger": 4}
    inside = sorted(entity_id for entity_id, (_, region, _) in WORLD.items() if region == "ashmere")
    assert [e["id"] for e in found["items"]] == inside
    mara = next(e for e in found["items"] if e["id"] == "mara")
    assert mara["state"] == {
        "name": "Mara",
        "role": "broker of bodies",
        "place": "morgue",
        "alive": True,
        "mood": "calm",
    }
    assert found["next_cursor"] is None


async def test_a_region_is_told_of_some_kinds_alone(silver: Client) -> None:
    found = await tell(silver, "get_world_state", region="ashmere", include=["npc", "item"])
    assert {e["kind"] for e in found["items"]} == {"npc", "item"}
    error = error_of(await silver.call_tool("get_world_state", {"region": "ashmere", "include": ["dragon"]}))
    assert "'npc'" in error["message"]


async def test_what_is_no_region_is_not_found(silver: Client) -> None:
    for region in ("nowhere", "morgue"):
        for fresh in (False, True):
            call = {"region": region, "fresh": fresh}
            assert error_of(await silver.call_tool("get_world_state", call))["code"] == "not_found"


async def test_a_large_region_is_paged_through_with_cursors_that_serve_their_caller_alone(
    hub: Hub, silver: Client, world: Pool
) -> None:
    await put(world, {f"crow-{n:03}": ("npc", "hollow", {"name": f"Crow {n}"}) for n in range(120)})
    await wait_until(lambda: hub.runtime.services.world.get("crow-119"), "the map has them")
    for fresh in (False, True):
        seen: list[str] = []
        cursor: str | None = None
        while True:
            page = await tell(silver, "get_world_state", region="hollow", cursor=cursor, fresh=fresh)
            assert len(page["items"]) <= 50
            seen += [e["id"] for e in page["items"]]
            cursor = page["next_cursor"]
            if cursor is None:
                break
            async with hub.client("tier:bronze") as bronze:
                stolen = {"region": "hollow", "cursor": cursor}
                assert error_of(await bronze.call_tool("get_world_state", stolen))["code"] == "bad_input"
            assert error_of(await silver.call_tool("find_entities", {"cursor": cursor}))["code"] == "bad_input"
        assert seen == sorted(["cellar", *(f"crow-{n:03}" for n in range(120))])


async def test_entities_are_found_by_what_is_said_of_them(silver: Client) -> None:
    wanted: list[tuple[dict[str, Any], list[str]]] = [
        ({"kind": "npc"}, ["grete", "mara", "osric"]),
        ({"kind": "npc", "where": {"alive": True}}, ["mara", "osric"]),
        ({"region": "hollow"}, ["cellar", "hollow"]),
        ({"region": "ashmere", "where": {"alive": False}}, ["grete"]),
        ({"where": {"tags": "cursed"}}, ["bell"]),
        ({"where": {"holder": "mara"}, "kind": "item"}, ["ledger"]),
        ({"kind": "flag", "where": {"value": False}}, ["vault-open"]),
        ({"kind": "flag", "where": {"value": 0}}, []),
        ({"ids": ["osric", "nobody", "mara", "osric"]}, ["mara", "osric"]),
        ({"ids": ["osric", "mara"], "kind": "item"}, []),
        ({"near": "mara"}, ["ledger", "ann", "morgue", "bell", "grete", "osric", "quay"]),
        ({"near": "mara", "radius": 5, "kind": "place"}, ["morgue"]),
        ({"near": "cellar", "radius": 2000}, []),
    ]
    for arguments, ids in wanted:
        found = await tell(silver, "find_entities", **arguments)
        assert ([e["id"] for e in found["items"]], found["source"]) == (ids, "map"), arguments
        if arguments.keys() & {"ids", "region", "near"}:
            found = await tell(silver, "find_entities", **arguments, fresh=True)
            assert ([e["id"] for e in found["items"]], found["source"]) == (ids, "database"), arguments


async def test_a_fresh_search_is_one_of_ids_of_a_region_or_of_what_is_near(silver: Client) -> None:
    error = error_of(await silver.call_tool("find_entities", {"kind": "npc", "fresh": True}))
    assert (error["code"], "region" in error["next_step"]) == ("bad_input", True)
    for fresh in (False, True):
        call = {"region": "nowhere", "fresh": fresh}
        assert error_of(await silver.call_tool("find_entities", call))["code"] == "not_found"


async def test_what_is_near_is_paged_through_the_nearest_first(silver: Client) -> None:
    seen: list[str] = []
    cursor: str | None = None
    while True:
        page = await tell(silver, "find_entities", near="mara", limit=2, cursor=cursor, fields=["name"])
        seen += [e["id"] for e in page["items"]]
        cursor = page["next_cursor"]
        if cursor is None:
            break
    assert seen == ["ledger", "ann", "morgue", "bell", "grete", "osric", "quay"]
