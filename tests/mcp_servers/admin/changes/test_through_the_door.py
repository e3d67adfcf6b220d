"""Each kind of change end to end: an agent asks, people see the diff and vote, it is made, and the usual tools read it back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from typing import Any

import pytest
from mcp import Client

from body_broker.settings import Settings
from body_broker.storage.postgres import Pool
from mcp_servers.hub.engine import arbitrating
from mcp_servers.hub.worker import working
from tests.body_broker.world.scene import populate
from tests.mcp_servers.hub.conftest import Hub, error_of
from tests.mcp_servers.hub.deeds import APPROVERS, Deeds, Studio, pending, say
from tests.waiting import wait_until

BRONZE = "tier:bronze"


@pytest.fixture
async def hub(settings_for: Callable[..., Settings], tmp_path: Path, pool: Pool, redis: object) -> AsyncGenerator[Hub]:
    """A hub with a small world, its worker, and people who may say yes."""
    _ = redis  # flushed before the test
    approvers = tmp_path / "approvers.toml"
    approvers.write_text(APPROVERS, encoding="utf-8")
    await populate(pool)
    studio = Studio(settings_for, approvers, Deeds())
    async with studio.hub(works=False, tools="all") as found, working(found.runtime):
        yield found


async def approve(hub: Hub, client: Client, *who: str, **request: Any) -> tuple[Any, Any]:
    """The result of a change that these people said yes to, and what they were shown."""
    call = asyncio.create_task(
        client.call_tool("approve_change", {"change_request": request}, meta={"body-broker/wait_s": 120})
    )
    approval_id, _ = await pending(hub.runtime.stores.pool, "approve_change")
    shown = await hub.runtime.approvals.desk.get(approval_id)
    for each in who or ("person:otto",):
        await say(hub.runtime.approvals.desk, approval_id, who=each)
    result = await call
    assert not result.is_error, result
    return result.structured_content, shown


async def read(client: Client, tool: str, **arguments: Any) -> Any:
    result = await client.call_tool(tool, arguments)
    assert not result.is_error, result
    return result.structured_content


async def test_a_figure_is_set(hub: Hub) -> None:
    async with hub.client(BRONZE) as bronze:
        found, shown = await approve(hub, bronze, kind="config", target="spawn.rate", params={"value": 2})
        assert (found["approved"], found["state"]) == (True, "done")
        assert found["verified"] == "spawn.rate has version 1 with the value that was approved."
        assert (shown.headline, shown.effect) == ("Set “spawn.rate” to 2", "repeatable")
        assert shown.preview.endswith("+ 2")
        assert (await read(bronze, "get_config", key="spawn.rate"))["value"] == 2


async def test_who_repeats_what_was_done_is_told_that_it_was(hub: Hub) -> None:
    request: dict[str, Any] = {"kind": "config", "target": "spawn.rate", "params": {"value": 2}}
    async with hub.client(BRONZE) as bronze:
        _, shown = await approve(hub, bronze, **request)
        error = error_of(await bronze.call_tool("approve_change", {"change_request": request}))
    assert (error["code"], error["earlier"]) == ("conflict", shown.id)
    assert f"get_approval {shown.id} says what came of it" in error["next_step"]


async def test_an_entity_goes_for_ever_after_two_people_have_said_so(hub: Hub) -> None:
    async with hub.client(BRONZE) as bronze:
        request: dict[str, Any] = {"kind": "world_remove", "target": "shards", "params": {"remove": True}}
        found, shown = await approve(hub, bronze, "person:otto", "person:vera", **request)
    assert found["state"] == "done"
    assert shown.headline == "Remove “shards” from the world for ever"
    assert "destruction-by-agents-needs-two" in shown.rules


async def test_documents_become_canon(hub: Hub) -> None:
    document = {"title": "The bell", "text": "Nobody rings it."}
    async with hub.client(BRONZE) as bronze:
        found, shown = await approve(hub, bronze, kind="ingest", target="shared", params={"documents": [document]})
        assert found["state"] == "done", found
        assert "+ Nobody rings it." in shown.preview
        (item,) = (await read(bronze, "search_lore", query="who rings the bell"))["items"]
        assert (item["title"], item["source"]) == ("The bell", "canon")


async def test_an_entity_is_corrected_and_the_engine_goes_on(hub: Hub) -> None:
    async with arbitrating(hub.runtime), hub.client(BRONZE) as bronze:
        found, shown = await approve(
            hub, bronze, kind="world_patch", target="mara", params={"fields": {"role": "Undertaker"}}
        )
        assert found["state"] == "done"
        assert '+ role: "Undertaker"' in shown.preview
        mara = await read(bronze, "get_npc_state", npc_id="mara")
        assert (mara["state"]["role"], mara["version"]) == ("Undertaker", 2)
        change = {"entity_id": "mara", "op": "set", "payload": {"fields": {"mood": "wry"}}}
        queued = await read(bronze, "queue_state_change", change=change, expect_version=2)

        async def applied() -> bool:
            return (await read(bronze, "get_change_status", change_id=queued["change_id"]))["status"] == "applied"

        await wait_until(applied, "the engine decides again, on the world as it was corrected")


async def test_a_document_is_deleted_after_two_people_have_said_so(hub: Hub) -> None:
    document = {"title": "The bell", "text": "Nobody rings it."}
    async with hub.client(BRONZE) as bronze:
        await approve(hub, bronze, kind="ingest", target="shared", params={"documents": [document]})
        (item,) = (await read(bronze, "search_lore", query="who rings the bell"))["items"]
        found, shown = await approve(
            hub, bronze, "person:otto", "person:vera", kind="delete_lore", target=item["doc_id"]
        )
        assert found["state"] == "done"
        assert "- Nobody rings it." in shown.preview
        assert (await read(bronze, "search_lore", query="who rings the bell"))["items"] == []
        assert error_of(await bronze.call_tool("get_document", {"id": item["doc_id"]}))["code"] == "not_found"


async def test_the_engine_is_paused_and_resumed(hub: Hub) -> None:
    async with arbitrating(hub.runtime), hub.client(BRONZE) as bronze:
        found, _ = await approve(hub, bronze, kind="pause", target="engine")
        assert found["verified"].startswith("The engine is paused since ")
        status = await read(bronze, "get_engine_status")
        assert (status["engines"], status["paused_by"]) == ([], BRONZE)
        change = {"entity_id": "mara", "op": "set", "payload": {"fields": {"mood": "wry"}}}
        queued = await read(bronze, "queue_state_change", change=change, expect_version=1)
        region = await read(bronze, "get_world_state", region="harbour", fresh=True)
        assert region["paused_since"] == status["paused_since"]
        assert (await read(bronze, "get_change_status", change_id=queued["change_id"]))["status"] == "queued"

        found, shown = await approve(hub, bronze, kind="resume", target="engine")
        assert found["state"] == "done"
        assert f"by {BRONZE}" in shown.preview

        async def applied() -> bool:
            return (await read(bronze, "get_change_status", change_id=queued["change_id"]))["status"] == "applied"

        await wait_until(applied, "what waited is decided")
        assert (await read(bronze, "get_world_state", region="harbour", fresh=True))["paused_by"] is None


async def test_what_was_changed_since_the_ask_is_not_made_and_the_agent_hears_why(hub: Hub) -> None:
    request = {"kind": "config", "target": "spawn.rate", "params": {"value": 2}}
    async with hub.client(BRONZE) as bronze:
        call = asyncio.create_task(
            bronze.call_tool("approve_change", {"change_request": request}, meta={"body-broker/wait_s": 120})
        )
        approval_id, _ = await pending(hub.runtime.stores.pool, "approve_change")
        await hub.runtime.services.rag.tuning.set("spawn.rate", 5, by="operator:ann")
        await say(hub.runtime.approvals.desk, approval_id)
        refused = error_of(await call)
        assert refused["code"] == "conflict"
        assert "no longer what was shown" in refused["message"]
        assert (await read(bronze, "get_config", key="spawn.rate"))["value"] == 5


@pytest.mark.parametrize(
    ("request_", "code", "words"),
    [
        ({"kind": "config", "target": "spawn.rate"}, "bad_input", "params.value: Field required"),
        ({"kind": "config", "target": "spawn.rate", "params": {"valeu": 1}}, "bad_input", "params.valeu"),
        ({"kind": "config", "target": "spawn.rate", "reason": "x"}, "bad_input", "reason"),
        ({"kind": "deploy", "target": "hub"}, "not_configured", "deploys nothing"),
        ({"kind": "resume", "target": "engine"}, "conflict", "not paused"),
        ({"kind": "delete_lore", "target": "doc_none"}, "not_found", "no document"),
        ({"kind": "format_disk", "target": "sda"}, "denied", "unknown-kind-of-change"),
    ],
)
async def test_nobody_is_asked_for_what_could_only_fail(
    hub: Hub, request_: dict[str, Any], code: str, words: str
) -> None:
    async with hub.client(BRONZE) as bronze:
        refused = error_of(await bronze.call_tool("approve_change", {"change_request": request_}))
    assert refused["code"] == code
    assert words in refused["message"]
    assert await hub.runtime.stores.pool.fetchval("SELECT count(*) FROM approval") == 0


async def test_a_draft_shows_the_diff_to_whoever_considers_it_and_asks_nobody(hub: Hub) -> None:
    request = {"kind": "world_patch", "target": "mara", "params": {"fields": {"mood": "afraid"}}}
    async with hub.client("person:emil", "designer") as emil:
        draft = await read(emil, "propose_change", change_request=request)
        assert draft["state"] == "draft"
        assert '- mood: "calm"\n+ mood: "afraid"' in draft["diff"]
        unknown = error_of(
            await emil.call_tool("propose_change", {"change_request": {"kind": "format_disk", "target": "sda"}})
        )
        assert "config, ingest, world_patch" in unknown["next_step"]
    pool = hub.runtime.stores.pool
    assert await pool.fetchval("SELECT count(*) FROM approval") == 0
    assert await pool.fetchval("SELECT version FROM world_entity WHERE id = 'mara'") == 1


async def test_a_draft_that_repeats_text_from_outside_taints_who_reads_it(hub: Hub) -> None:
    async with hub.client("person:emil", "designer") as emil:
        taken = await do_ingest(hub, emil)
        before = (await read(emil, "whoami"))["tainted"]
        await read(emil, "propose_change", change_request={"kind": "delete_lore", "target": taken})
        assert (before, (await read(emil, "whoami"))["tainted"]) == (False, True)


async def do_ingest(hub: Hub, client: Client) -> str:
    """A document from outside; its id."""
    documents = [{"title": "The rumour", "text": "The mayor is a ghost."}]
    call = asyncio.create_task(
        client.call_tool("ingest_documents", {"documents": documents}, meta={"body-broker/wait_s": 120})
    )
    approval_id, _ = await pending(hub.runtime.stores.pool, "ingest_documents")
    await say(hub.runtime.approvals.desk, approval_id)
    result = await call
    assert not result.is_error, result
    document_id: str = result.structured_content["documents"][0]["doc_id"]

    async def there() -> bool:
        return bool(await hub.runtime.stores.pool.fetchval("SELECT rev FROM lore_document WHERE id = $1", document_id))

    await wait_until(there, "it is imported")
    return document_id


async def test_a_draft_shows_nobody_what_they_may_not_read(hub: Hub) -> None:
    await hub.runtime.services.rag.tuning.set("spawn.rate", 0.031, by="operator:ann")
    requests: list[tuple[dict[str, Any], str]] = [
        ({"kind": "config", "target": "spawn.rate", "params": {"value": 0}}, "config_read"),
        ({"kind": "world_patch", "target": "mara", "params": {"fields": {"mood": "wry"}}}, "state_read"),
        ({"kind": "pause", "target": "engine"}, "state_read"),
    ]
    async with hub.client("person:sam", "security") as sam, hub.client("person:emil", "designer") as emil:
        for request, rule in requests:
            refused = error_of(await sam.call_tool("propose_change", {"change_request": request}))
            assert (refused["code"], refused["rules"]) == ("denied", [f"default-deny:{rule}"]), request
            assert "0.031" not in str(refused)
            await read(emil, "propose_change", change_request=request)
