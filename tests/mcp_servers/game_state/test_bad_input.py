"""What the game_state server does with input that makes no sense, and with one client that asks for too much."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx2
from mcp import Client

from body_broker.storage.postgres import Pool
from mcp_servers.hub.engine import arbitrating
from tests.mcp_servers.game_state.conftest import OpenHub, tell
from tests.mcp_servers.game_state.test_changing import decided
from tests.mcp_servers.hub.conftest import Hub, error_of
from tests.mcp_servers.hub.test_gate import modern, request

HURT = {"entity_id": "osric", "op": "hurt", "payload": {"by": 1}}


async def refused(client: Client, change: dict[str, Any], **more: Any) -> dict[str, Any]:
    error = error_of(await client.call_tool("queue_state_change", {"change": change, **more}))
    assert error["next_step"]
    return error


async def test_an_unknown_op_is_refused_with_the_ops_for_that_kind(game: Client) -> None:
    error = await refused(game, {**HURT, "op": "explode"})
    assert (error["code"], error["message"]) == ("bad_input", "'explode' is no op.")
    assert {"hurt", "move", "say"} <= set(error["ops"])
    assert {"set_flag", "spawn"}.isdisjoint(error["ops"])
    assert error["next_step"].startswith("Ops for kind npc are: ")
    assert "game://operations" in error["next_step"]


async def test_an_op_of_another_kind_is_refused_with_those_that_fit(game: Client) -> None:
    error = await refused(game, {"entity_id": "vault-open", "op": "hurt", "payload": {"by": 1}})
    assert "is no op for kind flag" in error["message"]
    assert "set_flag" in error["ops"]


async def test_an_op_that_does_not_commute_asks_for_a_version_and_names_the_current_one(game: Client) -> None:
    error = await refused(game, {"entity_id": "mara", "op": "move", "payload": {"to": "quay"}})
    assert error["current_version"] == 1
    assert "move" in error["message"]


NONSENSE: list[tuple[dict[str, Any], str]] = [
    ({**HURT, "entity_id": "nobody"}, "nobody"),
    ({**HURT, "entity_id": "Not An Id!"}, "id of an entity"),
    ({**HURT, "payload": {}}, "payload.by"),
    ({**HURT, "payload": {"by": 0}}, "payload.by"),
    ({**HURT, "payload": {"by": 1, "extra": 1}}, "payload.extra"),
    ({**HURT, "payload": {"by": "1"}}, "payload.by"),
    ({**HURT, "payload": [1]}, "change.payload"),
    ({"op": "hurt"}, "change.entity_id"),
    ({**HURT, "who": "me"}, "change.who"),
]


async def test_a_change_that_makes_no_sense_is_refused_by_the_name_of_what_is_wrong(game: Client, world: Pool) -> None:
    for change, said in NONSENSE:
        error = await refused(game, change)
        assert error["code"] == "bad_input"
        assert said in error["message"]
    assert await world.fetchval("SELECT count(*) FROM world_change") == 0


async def test_a_huge_or_a_deep_payload_is_refused(game: Client) -> None:
    said = {"entity_id": "osric", "op": "say", "payload": {"text": "x" * 20_000}}
    assert (await refused(game, said))["code"] == "too_large"
    deep: dict[str, Any] = {}
    for _ in range(40):
        deep = {"a": deep}
    assert (await refused(game, {**HURT, "payload": deep}))["code"] == "too_large"


async def test_a_number_that_is_none_is_refused_before_anything_reads_it(hub: Hub, world: Pool) -> None:
    headers = modern(await hub.token("service:game"), "tools/call", "queue_state_change")
    change = {**HURT, "payload": {"by": 12345}}
    body = request("tools/call", {"name": "queue_state_change", "arguments": {"change": change}})
    async with httpx2.AsyncClient(timeout=60) as http:
        for number in (b"NaN", b"Infinity", b"-Infinity", b"1e999"):
            content = httpx2.Request("POST", hub.url, json=body).read().replace(b"12345", number)
            answer = await http.post(hub.url, headers=headers, content=content)
            assert answer.json()["result"]["structuredContent"]["error"]["code"] == "bad_input", number
    assert await world.fetchval("SELECT count(*) FROM world_change") == 0


async def test_a_cause_that_there_is_not_is_refused(game: Client) -> None:
    for cause in ("sch_nobodys", "event:999999", "event:x"):
        assert "causation" in (await refused(game, HURT, causation_id=cause))["message"]


async def test_changes_that_cause_each_other_come_to_an_end(hub: Hub, game: Client) -> None:
    answer = {"entity_id": "mara", "op": "say", "payload": {"text": "No, you."}}
    async with arbitrating(hub.runtime):
        cause = (await tell(game, "queue_state_change", change=HURT))["change_id"]
        reply = await tell(game, "queue_state_change", change=answer, causation_id=cause)
        same = await tell(game, "queue_state_change", change=HURT, causation_id=reply["change_id"])
        status = await decided(game, same["change_id"])
        assert (status["status"], status["rule"]) == ("rejected", "same_cause")

        for n in range(8):
            change = {"entity_id": "osric", "op": "say", "payload": {"text": f"{n}"}}
            cause = (await tell(game, "queue_state_change", change=change, causation_id=cause))["change_id"]
        error = await refused(game, HURT, causation_id=cause)
    assert "deep" in error["message"]


async def test_a_change_is_asked_for_by_its_id_or_its_key_and_not_by_both(game: Client) -> None:
    for given in ({}, {"change_id": "sch_12345", "idempotency_key": "k"}):
        assert error_of(await game.call_tool("get_change_status", given))["code"] == "bad_input"


SEARCHES: list[tuple[dict[str, Any], str]] = [
    ({"radius": 3}, "near"),
    ({"near": "brokers"}, "'brokers' is nowhere"),
    ({"near": "nobody"}, "'nobody' is nowhere"),
    ({"where": {"memories": "x"}}, "memories"),
    ({"where": {"mana": 1}}, "mana"),
    ({"kind": "npc", "fields": ["weather"]}, "weather"),
    ({"kind": "dragon"}, "kind"),
    ({"limit": 101}, "limit"),
]


async def test_a_search_that_makes_no_sense_is_refused(silver: Client) -> None:
    for arguments, said in SEARCHES:
        error = error_of(await silver.call_tool("find_entities", arguments))
        assert error["code"] == "bad_input"
        assert said in error["message"]


async def test_who_has_too_many_changes_waiting_is_told_when_to_come_back_and_others_go_on(
    open_hub: OpenHub, world: Pool
) -> None:
    _ = world
    async with (
        open_hub(world_open_changes_max=5) as hub,
        hub.client("tier:bronze") as bronze,
        hub.client("service:game") as game,
    ):
        for _ in range(5):
            await tell(bronze, "queue_state_change", change=HURT)
        error = await refused(bronze, HURT)
        assert (error["code"], error["open_changes_max"]) == ("rate_limited", 5)
        assert error["retry_after_s"] > 0
        assert (await tell(game, "queue_state_change", change=HURT))["status"] == "queued"
        async with arbitrating(hub.runtime):
            await decided(game, (await tell(game, "queue_state_change", change=HURT))["change_id"])
            assert (await tell(bronze, "queue_state_change", change=HURT))["status"] == "queued"


async def test_a_flood_from_one_client_leaves_the_others_served(open_hub: OpenHub, world: Pool) -> None:
    async with open_hub(world_open_changes_max=30, rate_per_s=100) as hub, arbitrating(hub.runtime):
        token = await hub.token("tier:bronze")
        headers = modern(token, "tools/call", "queue_state_change")
        body = request("tools/call", {"name": "queue_state_change", "arguments": {"change": HURT}})
        async with (
            httpx2.AsyncClient(timeout=60) as http,
            hub.client("service:game") as game,
            hub.client("tier:silver") as silver,
        ):
            flood = [asyncio.create_task(http.post(hub.url, headers=headers, json=body)) for _ in range(400)]
            mine: list[str] = []
            for _ in range(10):
                mine.append((await tell(game, "queue_state_change", change=HURT))["change_id"])
                assert (await tell(silver, "get_npc_state", npc_id="mara"))["source"] == "map"
            answers = [(await each).json()["result"] for each in flood]
            for change_id in mine:
                assert (await decided(game, change_id))["status"] in {"applied", "rejected"}
    codes = [a["structuredContent"]["error"]["code"] if a.get("isError") else "ok" for a in answers]
    # A session that cannot be read in the crowd counts as tainted, and people would be asked.
    assert set(codes) <= {"ok", "rate_limited", "too_busy", "approval_pending"}
    assert len(set(codes)) > 1
    taken = await world.fetchval("SELECT count(*) FROM world_change WHERE actor = 'tier:bronze'")
    assert taken == codes.count("ok")
