"""Approvals through the door: how each kind of client waits, joins and is told, and that what was approved runs once."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Literal

import httpx2
import mcp_types as types
import orjson
import pytest
from mcp import Client
from mcp.client.streamable_http import streamable_http_client

from approvals.model import Voter
from body_broker.settings import Settings
from body_broker.storage.postgres import Pool
from mcp_servers.hub.requests import WAIT_META
from tests.mcp_servers.hub.conftest import SECRET, Hub, error_of
from tests.mcp_servers.hub.deeds import APPROVERS, Deeds, Studio, do, laboring, pending, say, settles
from tests.mcp_servers.hub.test_gate import audited, modern, request
from tests.waiting import wait_until

BRONZE = "tier:bronze"


@pytest.fixture
def studio(settings_for: Callable[..., Settings], tmp_path: Path, redis: object) -> Studio:
    _ = redis  # flushed before the test
    approvers = tmp_path / "approvers.toml"
    approvers.write_text(APPROVERS, encoding="utf-8")
    return Studio(settings_for, approvers, Deeds())


async def approvals_of(pool: Pool) -> list[Any]:
    return await pool.fetch("SELECT id, state, outcome, delivered_at, reason, earlier FROM approval ORDER BY ordinal")


@pytest.mark.parametrize("mode", ["auto", "legacy"])
async def test_a_client_that_waits_hears_whom_it_waits_for_and_gets_the_result(studio: Studio, mode: str) -> None:
    heard: list[str | None] = []

    async def hear(_done: float, _total: float | None, message: str | None) -> None:
        heard.append(message)

    async with studio.hub() as hub, hub.client(BRONZE, mode=mode) as client:
        call = asyncio.create_task(do(client, "deed_once", wait_s=60, progress_callback=hear))
        approval_id, _ = await pending(hub.runtime.stores.pool, "deed_once")
        await wait_until(lambda: heard, "the client hears that it waits")
        await say(hub.runtime.approvals.desk, approval_id)
        result = await call
    assert not result.is_error
    assert result.structured_content == {"did": "lamp", "under": approval_id, "tainted": False}
    assert heard[0] == "waiting for sre or admin: 0 of 1"
    assert studio.deeds.done == [("deed_once", "lamp", approval_id)]


async def test_a_client_without_patience_joins_gets_the_result_once_and_then_asks_anew(studio: Studio) -> None:
    async with studio.hub() as hub, hub.client(BRONZE) as client:
        desk, pool = hub.runtime.approvals.desk, hub.runtime.stores.pool
        first = await do(client, "deed_once")
        again = await do(client, "deed_once")
        approval_id = first.structured_content["approval"]
        assert error_of(first)["code"] == "approval_pending"
        assert first.structured_content["status"] == "pending"
        assert first.structured_content["approve_at"] == f"{desk.approve_at(approval_id)}"
        assert first.structured_content["approve_at"].startswith("http://localhost:")
        assert again.structured_content["approval"] == approval_id
        assert len(await approvals_of(pool)) == 1

        await say(desk, approval_id)
        await settles(desk, approval_id, "done")
        told = await do(client, "deed_once")
        assert told.structured_content == {"did": "lamp", "under": approval_id, "tainted": False}
        anew = error_of(await do(client, "deed_once"))
        assert anew["approval"] != approval_id
        assert anew["earlier"] == approval_id
        assert approval_id in anew["message"]
    assert studio.deeds.done == [("deed_once", "lamp", approval_id)]


async def test_several_calls_that_wait_for_one_approval_all_get_its_result(studio: Studio) -> None:
    async with studio.hub() as hub, hub.client(BRONZE) as one, hub.client(BRONZE) as two:
        calls = [asyncio.create_task(do(client, "deed_once", wait_s=60)) for client in (one, two, one)]
        approval_id, _ = await pending(hub.runtime.stores.pool, "deed_once")
        await wait_until(lambda: hub.runtime.approvals.waiters.waiting(approval_id) == 3, "all three wait")
        await say(hub.runtime.approvals.desk, approval_id)
        results = await asyncio.gather(*calls)
    assert [result.structured_content["under"] for result in results] == [approval_id] * 3
    assert len(studio.deeds.done) == 1


async def test_who_disconnects_while_waiting_finds_the_result_when_it_comes_back(studio: Studio) -> None:
    async with studio.hub() as hub:
        desk = hub.runtime.approvals.desk
        token = await hub.token(BRONZE)
        body: dict[str, Any] = request("tools/call", {"name": "deed_once", "arguments": {"name": "lamp"}})
        body["params"]["_meta"] |= {WAIT_META: 60}
        async with httpx2.AsyncClient(timeout=60) as http:
            leaving = asyncio.create_task(
                http.post(hub.url, headers=modern(token, "tools/call", "deed_once"), content=orjson.dumps(body))
            )
            approval_id, _ = await pending(hub.runtime.stores.pool, "deed_once")
            await wait_until(lambda: hub.runtime.approvals.waiters.waiting(approval_id) == 1, "it waits")
            leaving.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await leaving
        await wait_until(lambda: hub.runtime.approvals.waiters.waiting(approval_id) == 0, "the hub notices")
        await say(desk, approval_id)
        await settles(desk, approval_id, "done")
        async with hub.client_with(token) as back:
            assert (await do(back, "deed_once")).structured_content["under"] == approval_id
    assert len(studio.deeds.done) == 1


async def test_asked_through_one_hub_voted_through_another_and_run_by_a_third_process(studio: Studio) -> None:
    async with (
        studio.hub(works=False) as one,
        studio.hub(works=False) as two,
        studio.runtime(name="worker") as third,
        one.client(BRONZE) as client,
    ):
        call = asyncio.create_task(do(client, "deed_keep", wait_s=60))
        approval_id, _ = await pending(two.runtime.stores.pool, "deed_keep")
        await say(two.runtime.approvals.desk, approval_id)
        await settles(two.runtime.approvals.desk, approval_id, "approved")
        async with laboring(third):
            result = await call
    assert result.structured_content["under"] == approval_id
    assert studio.deeds.kept == {approval_id: "lamp"}


async def test_a_worker_process_of_its_own_runs_what_was_asked_through_a_hub(studio: Studio) -> None:
    documents = [{"title": "Notes", "text": "The ferry never sank."}]
    async with studio.hub(works=False) as hub, hub.client(BRONZE) as client:
        settings = hub.runtime.settings
        assert settings.database_url is not None
        assert settings.redis_url is not None
        environment = {
            "PATH": os.environ["PATH"],  # noqa: TID251 - a child's environment
            "BODY_BROKER_DATABASE_URL": settings.database_url.get_secret_value(),
            "BODY_BROKER_REDIS_URL": settings.redis_url.get_secret_value(),
            "BODY_BROKER_SECRET_KEY": SECRET,
            "BODY_BROKER_EMBEDDINGS": "off",
        }
        command = (Path(sys.executable).with_name("body-broker"), "worker", "--data-dir", settings.data_dir)
        call = asyncio.create_task(
            client.call_tool("ingest_documents", {"documents": documents}, meta={WAIT_META: 120})
        )
        approval_id, _ = await pending(hub.runtime.stores.pool, "ingest_documents")
        await say(hub.runtime.approvals.desk, approval_id)
        worker = await asyncio.create_subprocess_exec(*command, env=environment, stderr=asyncio.subprocess.DEVNULL)
        try:
            assert (await call).structured_content["documents"][0]["title"] == "Notes"
        finally:
            worker.terminate()
            await worker.wait()


async def test_people_see_what_a_call_would_do_and_are_not_asked_for_what_could_only_fail(studio: Studio) -> None:
    async with studio.hub() as hub, hub.client(BRONZE) as client:
        seen = await hub.runtime.approvals.desk.get(error_of(await do(client, "deed_keep"))["approval"])
        assert (seen.headline, seen.preview, seen.basis) == ("Keep lamp for good", "+ lamp by tier:bronze", "0")
        plain = await hub.runtime.approvals.desk.get(error_of(await do(client, "deed_once"))["approval"])
        assert (plain.headline, plain.preview) == ("Do deed_once: lamp", None)
        refused = error_of(await do(client, "deed_keep", arguments={"name": "nothing"}))
        assert refused["code"] == "not_found"
        assert len(await approvals_of(hub.runtime.stores.pool)) == 2


async def test_what_has_been_done_is_told_though_it_could_not_be_foreseen_any_more(studio: Studio) -> None:
    async with studio.hub() as hub, hub.client(BRONZE) as client:
        desk = hub.runtime.approvals.desk
        approval_id = error_of(await do(client, "deed_keep", arguments={"name": "moth"}))["approval"]
        await say(desk, approval_id)
        await settles(desk, approval_id, "done")
        await hub.runtime.stores.pool.execute("UPDATE approval SET preview = NULL")
        studio.deeds.kept.clear()
        assert (await do(client, "deed_keep", arguments={"name": "moth"})).structured_content["did"] == "moth"


async def test_a_refusal_s_reason_reaches_the_agent_and_expiry_is_no_refusal(studio: Studio) -> None:
    async with studio.hub() as hub, hub.client(BRONZE) as client:
        desk, pool = hub.runtime.approvals.desk, hub.runtime.stores.pool
        call = asyncio.create_task(do(client, "deed_once", wait_s=60))
        approval_id, _ = await pending(pool, "deed_once")
        await say(desk, approval_id, "deny", reason="Not before the festival.")
        denied = error_of(await call)
        assert (denied["code"], denied["reason"]) == ("approval_denied", "Not before the festival.")
        assert "A person refused deed_once. They say: Not before the festival." in denied["message"]

        late = error_of(await do(client, "deed_once"))["approval"]
        assert late != approval_id
        await pool.execute("UPDATE approval SET expires_at = clock_timestamp() - interval '1 s' WHERE id = $1", late)
        expired = error_of(await do(client, "deed_once"))
        assert expired["code"] == "approval_expired"
        assert "nobody answered" in expired["message"]
        assert "not a refusal" in expired["message"]
    assert studio.deeds.done == []


async def test_what_is_not_known_to_have_happened_is_said_until_a_person_settles_it(studio: Studio) -> None:
    async with studio.hub() as hub, hub.client(BRONZE) as client:
        desk = hub.runtime.approvals.desk
        approval_id = error_of(await do(client, "deed_break"))["approval"]
        await say(desk, approval_id)
        await settles(desk, approval_id, "unknown")
        for _ in range(2):
            told = error_of(await do(client, "deed_break"))
            assert (told["code"], told["approval"]) == ("outcome_unknown", approval_id)
            assert "a person must settle it" in told["message"]
        await desk.settle(approval_id, by="person:otto", verdict="failed", note="It never came to it.")
        assert error_of(await do(client, "deed_break"))["approval"] == approval_id


async def test_a_once_effect_that_refused_is_told_as_it_said_and_leaves_nothing_in_doubt(studio: Studio) -> None:
    async with studio.hub() as hub, hub.client(BRONZE) as client:
        desk = hub.runtime.approvals.desk
        studio.deeds.kept["x"] = "y"
        approval_id = error_of(await do(client, "deed_refuse"))["approval"]
        await say(desk, approval_id)
        await settles(desk, approval_id, "failed")
        told = error_of(await do(client, "deed_refuse"))
    assert (told["code"], told["approval"]) == ("conflict", approval_id)
    assert told["message"] == "Something else was kept meanwhile."


async def test_what_may_be_repeated_is_tried_again_and_told_when_it_is_done(studio: Studio) -> None:
    studio.deeds.failures = 2
    async with studio.hub() as hub, hub.client(BRONZE) as client:
        call = asyncio.create_task(do(client, "deed_stumble", wait_s=60))
        approval_id, _ = await pending(hub.runtime.stores.pool, "deed_stumble")
        await say(hub.runtime.approvals.desk, approval_id)
        assert (await call).structured_content["under"] == approval_id
        records = await audited(hub, "deed_stumble")
    ended = [record["verdict"] for record in records if record["kind"] == "outcome"]
    assert sorted(str(each) for each in ended) == ["ok", "ok", "unavailable", "unavailable"]
    decisions = [record for record in records if record["kind"] == "decision"]
    under = {"approval": approval_id}
    assert [record["details"] for record in decisions] == [under, under | {"again": True}, under | {"again": True}]


async def test_a_result_from_outside_taints_whoever_receives_it(studio: Studio) -> None:
    async with studio.hub() as hub, hub.client(BRONZE) as client:
        desk = hub.runtime.approvals.desk
        approval_id = error_of(await do(client, "deed_outside"))["approval"]
        await say(desk, approval_id)
        await settles(desk, approval_id, "done")
        assert not (await client.call_tool("whoami", {})).structured_content["tainted"]
        assert not (await do(client, "deed_outside")).is_error
        assert (await client.call_tool("whoami", {})).structured_content["tainted"]


async def test_waiting_holds_no_connection_of_the_pool(studio: Studio) -> None:
    async with studio.hub(database_connections_max=4) as hub, hub.client(BRONZE) as client:
        waiters = hub.runtime.approvals.waiters
        calls = [
            asyncio.create_task(do(client, "deed_once", wait_s=60, arguments={"note": str(n % 2)})) for n in range(12)
        ]
        await wait_until(lambda: waiters.waiting() == 12, "twelve calls wait")
        assert (await client.call_tool("deed_free", {"name": "lamp"})).structured_content["did"] == "lamp"
        waiters.close()
        assert {error_of(result)["code"] for result in await asyncio.gather(*calls)} == {"approval_pending"}


async def test_a_hub_that_stops_sends_its_waiting_clients_away_with_the_request_open(studio: Studio) -> None:
    async with studio.hub() as hub, hub.client(BRONZE) as client:
        call = asyncio.create_task(do(client, "deed_once", wait_s=60))
        approval_id, _ = await pending(hub.runtime.stores.pool, "deed_once")
        await wait_until(lambda: hub.runtime.approvals.waiters.waiting(approval_id) == 1, "it waits")
        hub.front.begin_draining()
        await wait_until(call.done, "it does not wait on")
        assert error_of(await call)["approval"] == approval_id
    async with studio.runtime() as runtime:
        assert (await runtime.approvals.desk.get(approval_id)).standing == "pending"


@pytest.mark.parametrize("wished", [-1, 301, "60", True])
async def test_a_client_may_wait_from_0_to_300_seconds(studio: Studio, wished: object) -> None:
    async with studio.hub() as hub, hub.client(BRONZE) as client:
        result = await client.call_tool("deed_once", {"name": "lamp"}, meta={WAIT_META: wished})
        assert error_of(result)["code"] == "bad_input"
        assert await approvals_of(hub.runtime.stores.pool) == []


async def test_nobody_is_asked_for_a_resource(studio: Studio) -> None:
    async with studio.hub() as hub, hub.client("person:anna", "engineer") as client:
        await client.call_tool("deed_hear", {"name": "x"})
        with pytest.raises(Exception, match="approval_required: deed_note needs an approval"):
            await client.read_resource("deed://lamp")
        assert await approvals_of(hub.runtime.stores.pool) == []


async def test_a_requester_may_not_fill_the_inbox(studio: Studio) -> None:
    async with studio.hub(approvals_open_max=2) as hub, hub.client(BRONZE) as client, hub.client("service:x") as other:
        for note in ("a", "b"):
            assert error_of(await do(client, "deed_once", arguments={"note": note}))["code"] == "approval_pending"
        told = error_of(await do(client, "deed_once", arguments={"note": "c"}))
        assert (told["code"], told["limit"]) == ("rate_limited", 2)
        assert error_of(await do(client, "deed_once", arguments={"note": "a"}))["code"] == "approval_pending"
        assert error_of(await do(other, "deed_once"))["code"] == "denied"


class TestReason:
    """The agent's own words to whoever approves."""

    async def test_it_reaches_people_and_the_audit_and_is_no_part_of_the_call(self, studio: Studio) -> None:
        async with studio.hub() as hub, hub.client(BRONZE) as client:
            desk, pool = hub.runtime.approvals.desk, hub.runtime.stores.pool
            first = error_of(await do(client, "deed_once", arguments={"reason": "The lamp \u202eis out."}))["approval"]
            joined = error_of(await do(client, "deed_once", arguments={"reason": "In other words."}))["approval"]
            approval = await desk.get(first)
            assert joined == first
            assert approval.reason == "The lamp is out."
            assert "reason" not in approval.values()

            async def recorded() -> bool:
                bodies = await pool.fetch("SELECT content FROM audit_body")
                return any(b"The lamp is out." in bytes(row["content"]) for row in bodies)

            await wait_until(recorded, "the reason is on the audit")
            await say(desk, first)
            await settles(desk, first, "done")
            assert not (await do(client, "deed_once", arguments={"reason": "Third words."})).is_error

    @pytest.mark.parametrize("words", ["x" * 501, 5, ["a"]])
    async def test_what_is_too_long_or_no_text_is_refused(self, studio: Studio, words: object) -> None:
        async with studio.hub() as hub, hub.client(BRONZE) as client:
            assert error_of(await do(client, "deed_once", arguments={"reason": words}))["code"] == "bad_input"

    async def test_only_what_can_be_asked_for_takes_one_and_lists_it(self, studio: Studio) -> None:
        async with studio.hub() as hub, hub.client(BRONZE) as client:
            listed = {tool.name: tool.input_schema["properties"] for tool in (await client.list_tools()).tools}
            assert "reason" in listed["deed_once"]
            assert "reason" in listed["ingest_documents"]
            assert "reason" not in listed["deed_free"]
            refused = error_of(await client.call_tool("deed_free", {"name": "x", "reason": "why not"}))
            assert refused["code"] == "bad_input"


Said = Literal["accept", "decline", "cancel"]


class TestOwnFactor:
    """A person who works alone is shown the page, and says yes there with their own second factor."""

    @asynccontextmanager
    async def client(self, hub: Hub, answer: Any, action: Said = "accept") -> AsyncGenerator[tuple[Client, list[Any]]]:
        asked: list[Any] = []

        async def elicited(context: object, params: Any) -> types.ElicitResult:
            del context
            asked.append(params)
            await answer(hub, params.url.rpartition("/")[2])
            return types.ElicitResult(action=action)

        headers = {"authorization": f"Bearer {await hub.token('person:anna', 'engineer')}"}
        async with (
            httpx2.AsyncClient(headers=headers, timeout=60) as http,
            Client(streamable_http_client(hub.url, http_client=http), elicitation_callback=elicited) as client,
        ):
            yield client, asked

    @staticmethod
    async def confirm(hub: Hub, approval_id: str) -> None:
        desk = hub.runtime.approvals.desk
        digest = (await desk.get(approval_id)).digest
        voter = Voter(person="person:anna", via="mfa", factor="totp")
        await desk.vote(approval_id, digest=digest, voter=voter, verdict="approve")

    @staticmethod
    async def look_away(_hub: Hub, _approval_id: str) -> None:
        """The page is opened, or not, and nothing is said there."""

    async def test_the_client_opens_the_page_and_the_call_goes_on_after_the_yes(self, studio: Studio) -> None:
        async with studio.hub() as hub, self.client(hub, self.confirm) as (client, asked):
            result = await do(client, "deed_keep", wait_s=60)
        assert result.structured_content["did"] == "lamp"
        (params,) = asked
        assert params.message == "Keep lamp for good - confirm it with your passkey or code."
        assert params.url.startswith("http://localhost:")

    @pytest.mark.parametrize("action", ["accept", "decline", "cancel"])
    async def test_what_the_client_answers_is_no_yes(self, studio: Studio, action: Said) -> None:
        async with studio.hub() as hub, self.client(hub, self.look_away, action) as (client, asked):
            told = error_of(await do(client, "deed_once", wait_s=0.2))
        assert told["code"] == "approval_pending"
        assert len(asked) == 1
        assert studio.deeds.done == []

    async def test_a_tier_s_client_is_shown_no_page(self, studio: Studio) -> None:
        async with studio.hub() as hub:
            tokens = hub.runtime.tokens
            anna = await hub.runtime.identities.authenticate(await hub.token("person:anna", "engineer"))
            await hub.token(BRONZE)
            async with hub.client_with(await tokens.mint(anna, BRONZE, "cnv_of_the_tests", 600)) as client:
                assert error_of(await do(client, "deed_once", wait_s=0.2))["code"] == "approval_pending"
