"""The hub's own tools about approvals: read as often as asked for a day, by who asked and nobody else, and taken back in time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from mcp import Client

from body_broker.errors import Conflict
from body_broker.settings import Settings
from tests.mcp_servers.hub.conftest import Hub, error_of
from tests.mcp_servers.hub.deeds import APPROVERS, Deeds, Studio, do, pending, say, settles
from tests.waiting import wait_until

BRONZE = "tier:bronze"


@pytest.fixture
async def hub(settings_for: Callable[..., Settings], tmp_path: Path, redis: object) -> AsyncIterator[Hub]:
    """A hub that serves and works."""
    _ = redis  # flushed before the test
    approvers = tmp_path / "approvers.toml"
    approvers.write_text(APPROVERS, encoding="utf-8")
    async with Studio(settings_for, approvers, Deeds()).hub(tools="all") as found:
        yield found


async def tell(client: Client, tool: str, **arguments: Any) -> dict[str, Any]:
    result = await client.call_tool(tool, arguments)
    assert not result.is_error, result
    assert result.structured_content is not None
    return result.structured_content


async def asked(client: Client, tool: str = "deed_once", **arguments: Any) -> str:
    return error_of(await do(client, tool, arguments=arguments))["approval"]


async def done(hub: Hub, approval_id: str) -> None:
    await say(hub.runtime.approvals.desk, approval_id)
    await settles(hub.runtime.approvals.desk, approval_id, "done")


async def test_an_approval_says_how_it_stands_from_the_question_to_the_result(hub: Hub) -> None:
    async with hub.client(BRONZE) as client:
        approval_id = await asked(client)
        open_one = await tell(client, "get_approval", id=approval_id)
        assert (open_one["standing"], open_one["said"]) == ("pending", "Waiting for sre or admin: 0 of 1.")
        assert open_one["approve_at"] == hub.runtime.approvals.desk.approve_at(approval_id)
        await done(hub, approval_id)
        for _ in range(3):
            read = await tell(client, "get_approval", id=approval_id)
            assert read["result"] == {"did": "lamp", "under": approval_id, "tainted": False}
            assert (read["standing"], read["from_outside"], read["approve_at"]) == ("done", False, None)


async def test_a_result_that_was_read_is_told_and_the_same_call_asks_anew(hub: Hub) -> None:
    async with hub.client(BRONZE) as client:
        approval_id = await asked(client)
        await done(hub, approval_id)
        await tell(client, "get_approval", id=approval_id)
        anew = error_of(await do(client, "deed_once"))
    assert (anew["code"], anew["earlier"]) == ("approval_pending", approval_id)


async def test_a_result_is_readable_for_a_day(hub: Hub) -> None:
    async with hub.client(BRONZE) as client:
        approval_id = await asked(client)
        await done(hub, approval_id)
        pool = hub.runtime.stores.pool
        age = "UPDATE approval SET ended_at = clock_timestamp() - make_interval(secs => $2::float8) WHERE id = $1"
        await pool.execute(age, approval_id, 24 * 3600 - 60)
        assert (await tell(client, "get_approval", id=approval_id))["result"] is not None
        await pool.execute(age, approval_id, 24 * 3600 + 60)
        old = await tell(client, "get_approval", id=approval_id)
        assert (old["standing"], old["result"]) == ("done", None)
        assert "kept for a day" in old["said"]


async def test_nobody_learns_of_another_s_approval(hub: Hub) -> None:
    tokens = hub.runtime.tokens
    anna = await hub.runtime.identities.authenticate(await hub.token("person:anna", "engineer"))
    await hub.token(BRONZE)
    for_anna = await tokens.mint(anna, BRONZE, "cnv_of_the_tests", 600)
    async with hub.client_with(for_anna) as acting:
        approval_id = await asked(acting)
        assert (await tell(acting, "get_approval", id=approval_id))["standing"] == "pending"
    async with hub.client("person:anna") as herself:
        assert (await tell(herself, "get_approval", id=approval_id))["standing"] == "pending"
        assert [each["id"] for each in (await tell(herself, "list_my_approvals"))["items"]] == [approval_id]
    for who in (BRONZE, "person:otto", "service:game"):
        async with hub.client(who) as other:
            for tool in ("get_approval", "cancel_approval", "get_job", "cancel_job"):
                error = error_of(await other.call_tool(tool, {"id": approval_id}))
                assert (error["code"], error["message"]) == ("not_found", "You have no approval by that id.")
            assert (await tell(other, "list_my_approvals"))["items"] == []


async def test_a_person_who_looks_takes_nothing_from_the_tier_that_asked(hub: Hub) -> None:
    anna = await hub.runtime.identities.authenticate(await hub.token("person:anna", "engineer"))
    await hub.token(BRONZE)
    acting = await hub.runtime.tokens.mint(anna, BRONZE, "cnv_of_the_tests", 600)
    async with hub.client_with(acting) as tier, hub.client("person:anna") as herself:
        approval_id = await asked(tier)
        await done(hub, approval_id)
        assert (await tell(herself, "get_approval", id=approval_id))["standing"] == "done"
        assert (await do(tier, "deed_once")).structured_content["under"] == approval_id


async def test_requests_are_listed_newest_first_page_by_page_and_by_standing(hub: Hub) -> None:
    async with hub.client(BRONZE) as client:
        ids = [await asked(client, note=str(number)) for number in range(5)]
        await say(hub.runtime.approvals.desk, ids[2], "deny", reason="no")
        first = await tell(client, "list_my_approvals", limit=3)
        rest = await tell(client, "list_my_approvals", limit=3, cursor=first["next_cursor"])
        assert [each["id"] for each in first["items"] + rest["items"]] == ids[::-1]
        assert rest["next_cursor"] is None
        (denied,) = (await tell(client, "list_my_approvals", standing="denied"))["items"]
        assert (denied["id"], denied["said"]) == (ids[2], "A person refused deed_once. They say: no")


async def test_what_is_taken_back_never_runs_and_nobody_can_say_yes_to_it(hub: Hub) -> None:
    desk = hub.runtime.approvals.desk
    async with hub.client(BRONZE) as client, hub.client(BRONZE) as another:
        waiting = asyncio.create_task(do(another, "deed_once", wait_s=60))
        approval_id, _ = await pending(hub.runtime.stores.pool, "deed_once")
        await wait_until(lambda: hub.runtime.approvals.waiters.waiting(approval_id) == 1, "it waits")
        assert (await tell(client, "cancel_approval", id=approval_id))["standing"] == "cancelled"
        with pytest.raises(Conflict, match="cancelled before it was decided"):
            await say(desk, approval_id)
        told = error_of(await waiting)
        assert (told["code"], told["reason"]) == ("approval_cancelled", "Its requester took it back.")
        assert await asked(client) != approval_id


async def test_a_result_from_outside_marks_the_answer_and_taints_its_reader(hub: Hub) -> None:
    async with hub.client(BRONZE) as client:
        approval_id = await asked(client, "deed_outside")
        await done(hub, approval_id)
        assert not (await tell(client, "whoami"))["tainted"]
        assert (await tell(client, "get_approval", id=approval_id))["from_outside"]
        assert (await tell(client, "whoami"))["tainted"]


@pytest.mark.parametrize(
    ("verdict", "state", "code"), [("approve", "succeeded", None), ("deny", "failed", "approval_denied")]
)
async def test_get_job_answers_for_an_approval_too(hub: Hub, verdict: Any, state: str, code: str | None) -> None:
    async with hub.client(BRONZE) as client:
        approval_id = await asked(client)
        waiting = await tell(client, "get_job", id=approval_id)
        assert (waiting["state"], waiting["progress"]["message"]) == ("waiting", "waiting for sre or admin: 0 of 1")
        assert (await tell(client, "list_jobs"))["items"] == []
        await say(hub.runtime.approvals.desk, approval_id, verdict)
        await settles(hub.runtime.approvals.desk, approval_id, "done" if verdict == "approve" else "denied")
        job = await tell(client, "get_job", id=approval_id)
    assert job["state"] == state
    assert (job["error"]["code"] if job["error"] else None) == code


async def test_a_job_s_cancel_takes_an_approval_back_whole(hub: Hub) -> None:
    async with hub.client(BRONZE) as client:
        approval_id = await asked(client)
        assert (await tell(client, "cancel_job", id=approval_id))["state"] == "cancelled"
    assert (await hub.runtime.approvals.desk.get(approval_id)).standing == "cancelled"


async def test_whoever_is_never_asked_for_anything_is_not_shown_the_tools(hub: Hub) -> None:
    tools = {"get_approval", "list_my_approvals", "cancel_approval"}
    for who, shown in (("tier:silver", False), ("tier:gold", False), (BRONZE, True)):
        async with hub.client(who) as client:
            listed = {tool.name for tool in (await client.list_tools()).tools}
            assert (tools <= listed, tools.isdisjoint(listed)) == (shown, not shown)
            assert (await tell(client, "list_my_approvals"))["items"] == []
