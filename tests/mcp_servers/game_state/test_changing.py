"""Changes through the game_state server with our engine deciding: queued, tried, waited for, repeated, batched, taken back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from mcp import Client

from body_broker.storage.postgres import Pool
from mcp_servers.hub.engine import arbitrating
from tests.mcp_servers.game_state.conftest import HOSTILE, WORLD, tell
from tests.mcp_servers.hub.conftest import Hub, error_of
from tests.waiting import wait_until

HURT = {"entity_id": "osric", "op": "hurt", "payload": {"by": 10}}
FLAG = {"entity_id": "vault-open", "op": "set_flag", "payload": {"value": True}}


@pytest.fixture
async def engine(hub: Hub) -> AsyncIterator[None]:
    async with arbitrating(hub.runtime):
        yield


async def decided(client: Client, change_id: str) -> dict[str, Any]:
    """A change's status once the engine has decided it."""

    async def is_decided() -> bool:
        return (await tell(client, "get_change_status", change_id=change_id))["status"] != "queued"

    await wait_until(is_decided, "the engine decides it")
    return await tell(client, "get_change_status", change_id=change_id)


async def queued_here(world: Pool) -> int:
    return await world.fetchval("SELECT count(*) FROM world_change")


@pytest.mark.usefixtures("engine")
async def test_the_seed_s_call_queues_a_change_that_the_engine_applies_and_reads_show(hub: Hub, game: Client) -> None:
    change = {"entity_id": "osric", "op": "hurt", "payload": {"by": 10}}
    answer = (await game.call_tool("queue_state_change", {"change": change})).structured_content
    assert answer is not None
    assert answer["change_id"].startswith("sch_")
    assert (answer["status"], answer["duplicate"], answer["current_version"]) == ("queued", False, 1)

    status = await decided(game, answer["change_id"])
    assert (status["status"], status["rule"], status["version"]) == ("applied", None, 2)
    assert [(e["entity_id"], e["version"], e["type"], e["patch"]) for e in status["observed"]["events"]] == [
        ("osric", 2, "hurt", {"health": 90})
    ]
    assert (await tell(game, "get_npc_state", npc_id="osric", fresh=True))["state"]["health"] == 90
    await wait_until(lambda: _version(hub, "osric") == 2, "the map has it")
    found = await tell(game, "get_npc_state", npc_id="osric")
    assert (found["state"]["health"], found["version"], found["source"]) == (90, 2, "map")


@pytest.mark.usefixtures("engine")
async def test_a_change_without_a_key_is_new_each_time_and_the_answer_says_its_key(game: Client) -> None:
    one = await tell(game, "queue_state_change", change=HURT)
    other = await tell(game, "queue_state_change", change=HURT)
    again = await tell(game, "queue_state_change", change=HURT, idempotency_key=one["idempotency_key"])
    assert one["change_id"] != other["change_id"]
    assert (again["change_id"], again["duplicate"]) == (one["change_id"], True)
    for each in (one, other):
        assert (await decided(game, each["change_id"]))["status"] == "applied"
    assert (await tell(game, "get_npc_state", npc_id="osric", fresh=True))["state"]["health"] == 80


@pytest.mark.usefixtures("engine")
async def test_a_key_is_one_change_for_its_requester_and_tells_what_became_of_it(hub: Hub, game: Client) -> None:
    dead = {"entity_id": "grete", "op": "hurt", "payload": {"by": 1}}
    first = await tell(game, "queue_state_change", change=dead, idempotency_key="k1")
    assert (await decided(game, first["change_id"]))["rule"] == "dead_actor"
    again = await tell(game, "queue_state_change", change=dead, idempotency_key="k1")
    assert again == first | {"status": "rejected", "rule": "dead_actor", "duplicate": True}
    by_key = await tell(game, "get_change_status", idempotency_key="k1")
    assert by_key["change_id"] == first["change_id"]

    other = error_of(await game.call_tool("queue_state_change", {"change": HURT, "idempotency_key": "k1"}))
    assert other["code"] == "conflict"
    async with hub.client("tier:bronze") as bronze:
        assert error_of(await bronze.call_tool("get_change_status", {"idempotency_key": "k1"}))["code"] == "not_found"
        mine = await tell(bronze, "queue_state_change", change=HURT, idempotency_key="k1")
    assert mine["change_id"] != first["change_id"]


@pytest.mark.parametrize("tool", ["get_change_status", "wait_for_change", "cancel_state_change"])
async def test_somebody_else_s_change_is_not_found(hub: Hub, game: Client, tool: str) -> None:
    queued = await tell(game, "queue_state_change", change=HURT)
    async with hub.client("tier:bronze") as bronze:
        error = error_of(await bronze.call_tool(tool, {"change_id": queued["change_id"]}))
    assert error["code"] == "not_found"


@pytest.mark.usefixtures("engine")
async def test_a_stale_version_is_a_conflict_that_names_the_current_one(game: Client) -> None:
    first = await tell(game, "queue_state_change", change=FLAG, expect_version=1)
    assert (await decided(game, first["change_id"]))["status"] == "applied"
    late = await tell(game, "queue_state_change", change=FLAG, expect_version=1)
    status = await decided(game, late["change_id"])
    assert (status["status"], status["current_version"], status["version"]) == ("conflict", 2, 2)
    assert status["observed"] in (None, {"events": []})


@pytest.mark.usefixtures("engine")
async def test_a_dry_run_says_what_would_become_of_a_change_and_queues_nothing(game: Client, world: Pool) -> None:
    async def tried(change: dict[str, Any], **more: Any) -> tuple[str, str | None]:
        answer = await tell(game, "queue_state_change", change=change, dry_run=True, **more)
        assert answer["change_id"] is None
        return answer["status"], answer["rule"]

    assert await tried(HURT) == ("would_apply", None)
    assert await tried(FLAG, expect_version=7) == ("would_conflict", None)
    assert await tried({**HURT, "entity_id": "grete"}) == ("would_be_rejected", "dead_actor")
    way = {"entity_id": "mara", "op": "move", "payload": {"to": "cellar"}}
    assert await tried(way, expect_version=1) == ("would_be_rejected", "not_reachable")
    bad = await game.call_tool("queue_state_change", {"change": {**HURT, "payload": {"by": 0}}, "dry_run": True})
    assert error_of(bad)["code"] == "bad_input"
    assert await queued_here(world) == 0


@pytest.mark.usefixtures("engine")
async def test_an_atomic_batch_is_applied_whole_or_not_at_all(game: Client) -> None:
    drop: dict[str, Any] = {"entity_id": "ledger", "op": "drop", "payload": {}, "expect_version": 1}
    impossible = {"entity_id": "grete", "op": "hurt", "payload": {"by": 1}}
    batch = await tell(game, "queue_state_changes", changes=[drop, impossible])
    first, second = [await decided(game, one["change_id"]) for one in batch["changes"]]
    assert (first["status"], first["rule"]) == ("rejected", "batch")
    assert (second["status"], second["rule"]) == ("rejected", "dead_actor")

    batch = await tell(game, "queue_state_changes", changes=[drop, HURT], atomic=True)
    assert len({one["idempotency_key"] for one in batch["changes"]}) == 2
    for one in batch["changes"]:
        assert (await decided(game, one["change_id"]))["status"] == "applied"
    alone = await tell(game, "queue_state_changes", changes=[HURT, impossible], atomic=False)
    states = [(await decided(game, one["change_id"]))["status"] for one in alone["changes"]]
    assert states == ["applied", "rejected"]


async def test_a_batch_with_one_bad_change_queues_none(game: Client, world: Pool) -> None:
    changes = [HURT, {**HURT, "op": "explode"}]
    error = error_of(await game.call_tool("queue_state_changes", {"changes": changes, "atomic": False}))
    assert "'explode'" in error["message"]
    assert await queued_here(world) == 0
    too_many = error_of(await game.call_tool("queue_state_changes", {"changes": [HURT] * 65}))
    assert too_many["code"] == "bad_input"


async def test_waiting_ends_with_the_decision_or_with_the_time(hub: Hub, game: Client) -> None:
    queued = await tell(game, "queue_state_change", change=HURT)
    assert (await tell(game, "wait_for_change", change_id=queued["change_id"], timeout_ms=1))["status"] == "queued"

    async def waited() -> bool:  # again where the engine takes longer to begin than one call may wait
        told = await tell(game, "wait_for_change", change_id=queued["change_id"], timeout_ms=2000)
        assert told["status"] in {"queued", "applied"}
        return told["status"] == "applied"

    waiting = asyncio.create_task(wait_until(waited, "the wait ends with the decision"))
    async with arbitrating(hub.runtime):
        await decided(game, queued["change_id"])
        await waiting
    error = error_of(await game.call_tool("wait_for_change", {"change_id": queued["change_id"], "timeout_ms": 2001}))
    assert error["code"] == "bad_input"


async def test_what_expires_before_an_engine_is_there_is_never_applied(hub: Hub, game: Client) -> None:
    brief = await tell(game, "queue_state_change", change=HURT, expires_in_ms=1)
    lasting = await tell(game, "queue_state_change", change=HURT)
    async with arbitrating(hub.runtime):
        assert (await decided(game, lasting["change_id"]))["status"] == "applied"
        assert (await decided(game, brief["change_id"]))["status"] == "expired"
    assert (await tell(game, "get_npc_state", npc_id="osric", fresh=True))["state"]["health"] == 90


async def test_a_change_that_nobody_decided_is_taken_back_and_one_that_was_is_not(hub: Hub, game: Client) -> None:
    queued = await tell(game, "queue_state_change", change=HURT)
    status = await tell(game, "cancel_state_change", change_id=queued["change_id"])
    assert status["status"] == "cancelled"
    async with arbitrating(hub.runtime):
        applied = await tell(game, "queue_state_change", change=HURT)
        await decided(game, applied["change_id"])
        error = error_of(await game.call_tool("cancel_state_change", {"change_id": applied["change_id"]}))
    assert (error["code"], "applied" in error["message"]) == ("conflict", True)
    assert (await tell(game, "get_npc_state", npc_id="osric", fresh=True))["state"]["health"] == 90


async def test_a_player_s_input_goes_before_what_everybody_else_queued(hub: Hub, game: Client) -> None:
    async with hub.client("tier:bronze") as bronze:
        urgent = await tell(bronze, "queue_state_change", change=FLAG, expect_version=1, priority=9)
    server = await tell(game, "queue_state_change", change=FLAG, expect_version=1)
    player = await tell(game, "queue_state_change", change=FLAG, expect_version=1, player_id="ann")
    async with arbitrating(hub.runtime):
        assert (await decided(game, player["change_id"]))["status"] == "applied"
        assert (await decided(game, server["change_id"]))["status"] == "conflict"
        async with hub.client("tier:bronze") as bronze:
            assert (await decided(bronze, urgent["change_id"]))["status"] == "conflict"


async def test_while_no_engine_is_there_changes_stay_queued_and_the_status_says_so(hub: Hub, game: Client) -> None:
    before = await tell(game, "get_engine_status")
    assert (before["engines"], before["queue_depth"], before["oldest_ms"]) == ([], 0, 0)
    queued = await tell(game, "queue_state_change", change=HURT)
    assert (await tell(game, "get_change_status", change_id=queued["change_id"]))["status"] == "queued"
    waiting = await tell(game, "get_engine_status")
    assert (waiting["engines"], waiting["queue_depth"]) == ([], 1)
    async with arbitrating(hub.runtime):
        await decided(game, queued["change_id"])
        (running,) = (await tell(game, "get_engine_status"))["engines"]
        assert (running["live"], running["external"], running["tick_hz"]) == (True, False, 200)
    (gone,) = (await tell(game, "get_engine_status"))["engines"]
    assert gone["live"] is False


@pytest.mark.usefixtures("engine")
async def test_events_are_read_on_from_a_position_without_gaps(game: Client) -> None:
    start = (await tell(game, "get_world_state", region="ashmere"))["pos"]
    assert start == len(WORLD)
    for _ in range(3):
        await decided(game, (await tell(game, "queue_state_change", change=HURT))["change_id"])
    page = await tell(game, "get_events", after_pos=start, limit=2)
    assert ([e["pos"] for e in page["items"]], page["next"], page["more"]) == ([start + 1, start + 2], start + 2, True)
    rest = await tell(game, "get_events", after_pos=page["next"])
    assert ([e["pos"] for e in rest["items"]], rest["next"], rest["more"]) == ([start + 3], start + 3, False)
    assert (await tell(game, "get_events", after_pos=rest["next"]))["items"] == []
    elsewhere = await tell(game, "get_events", after_pos=start, region="hollow")
    assert (elsewhere["items"], elsewhere["next"]) == ([], start + 3)
    assert (await tell(game, "get_events", after_pos=start, types=["healed"]))["items"] == []


@pytest.mark.usefixtures("engine")
async def test_what_a_player_says_is_in_the_record_and_taints_only_who_asks_for_it(
    hub: Hub, game: Client, silver: Client
) -> None:
    said = {"entity_id": "ann", "op": "say", "payload": {"text": HOSTILE, "to": "mara"}}
    queued = await tell(game, "queue_state_change", change=said, player_id="ann")
    status = await decided(game, queued["change_id"])
    assert status["status"] == "applied"
    assert HOSTILE not in str(status)
    await wait_until(lambda: _version(hub, "mara") == 2, "mara remembers")
    page = await tell(silver, "get_events", after_pos=len(WORLD))
    assert [(e["type"], e["patch"], e["outside"]) for e in page["items"]] == [
        ("said", {}, True),
        ("remembered", {}, True),
    ]
    assert HOSTILE not in str(await tell(silver, "get_player_state", player_id="ann"))
    assert not (await tell(silver, "whoami"))["tainted"]
    told = await tell(silver, "get_player_state", player_id="ann", fields=["last_said"])
    assert told["state"]["last_said"] | {"tick": 0} == {"text": HOSTILE, "by": "ann", "outside": True, "tick": 0}
    assert (await tell(silver, "whoami"))["tainted"]


@pytest.mark.usefixtures("engine")
async def test_an_entity_s_history_is_told_by_versions_even_after_its_removal(game: Client) -> None:
    steps: list[tuple[str, dict[str, str]]] = [("take", {"by": "osric"}), ("destroy", {}), ("remove", {})]
    for version, (op, payload) in enumerate(steps, start=1):
        change = {"entity_id": "bell", "op": op, "payload": payload}
        queued = await tell(game, "queue_state_change", change=change, expect_version=version)
        assert (await decided(game, queued["change_id"]))["status"] == "applied"
    page = await tell(game, "get_entity_history", entity_id="bell", limit=3)
    assert ([(e["version"], e["type"]) for e in page["items"]], page["next"], page["more"]) == (
        [(1, "loaded"), (2, "taken"), (3, "destroyed")],
        4,
        True,
    )
    rest = await tell(game, "get_entity_history", entity_id="bell", from_version=page["next"])
    assert [(e["version"], e["type"]) for e in rest["items"]] == [(4, "removed")]
    assert (await tell(game, "find_entities", ids=["bell"], fresh=True))["items"] == []
    assert error_of(await game.call_tool("get_entity_history", {"entity_id": "nobody"}))["code"] == "not_found"


def _version(hub: Hub, entity_id: str) -> int:
    entity = hub.runtime.services.world.get(entity_id)
    return 0 if entity is None else entity.version
