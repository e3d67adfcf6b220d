"""Calls that wait for people: what they keep from others, what they are told, and that a revoked token gets nothing done."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from approvals.model import Approval
from approvals.store import SERVICE
from body_broker.settings import Settings
from mcp_servers.hub import asking
from mcp_servers.hub.endings import ended
from tests.mcp_servers.hub.conftest import Hub, error_of
from tests.mcp_servers.hub.deeds import APPROVERS, Deeds, Studio, do, laboring, pending, say, settles
from tests.waiting import wait_until

BRONZE = "tier:bronze"


@pytest.fixture
def studio(settings_for: Callable[..., Settings], tmp_path: Path, redis: object) -> Studio:
    _ = redis  # flushed before the test
    approvers = tmp_path / "approvers.toml"
    approvers.write_text(APPROVERS, encoding="utf-8")
    return Studio(settings_for, approvers, Deeds())


async def test_what_another_call_asks_and_collects_while_one_is_foreseen_is_opened_anew_as_foreseen(
    studio: Studio,
) -> None:
    async with studio.hub() as hub, hub.client(BRONZE) as client:
        desk, first = hub.runtime.approvals.desk, list[str]()

        async def collected_first() -> None:
            studio.deeds.meanwhile = None
            first.append(error_of(await do(client, "deed_keep"))["approval"])
            await say(desk, first[0])
            await settles(desk, first[0], "done")
            await desk.take(first[0])  # its result was told: nothing is left to join

        studio.deeds.meanwhile = collected_first
        second = await desk.get(error_of(await do(client, "deed_keep"))["approval"])
    assert second.id != first[0]
    assert second.earlier == first[0]
    assert (second.headline, second.basis) == ("Keep lamp for good", "1")
    assert second.preview


async def test_what_another_call_asks_while_one_is_foreseen_is_joined(studio: Studio) -> None:
    async with studio.hub(works=False) as hub, hub.client(BRONZE) as client:
        other = list[str]()

        async def asked_first() -> None:
            studio.deeds.meanwhile = None
            other.append(error_of(await do(client, "deed_keep"))["approval"])

        studio.deeds.meanwhile = asked_first
        assert error_of(await do(client, "deed_keep"))["approval"] == other[0]


async def test_a_call_that_joins_is_not_foreseen_again(studio: Studio) -> None:
    async with studio.hub(works=False) as hub, hub.client(BRONZE) as client:
        first, second = [error_of(await do(client, "deed_keep"))["approval"] for _ in range(2)]
    assert (first, studio.deeds.foreseen) == (second, 1)


async def issued_to_anna(hub: Hub) -> tuple[str, str]:
    """A token of anna's, and its id."""
    issued = await hub.runtime.tokens.issue("person:anna", roles=("sre",), ttl_s=600)
    return issued.token, issued.jti


async def test_what_a_token_asked_for_that_was_revoked_since_is_not_done(studio: Studio) -> None:
    async with studio.hub(works=False) as hub:
        desk = hub.runtime.approvals.desk
        token, jti = await issued_to_anna(hub)
        async with hub.client_with(token) as client:
            approval_id = error_of(await do(client, "deed_once"))["approval"]
        await hub.runtime.tokens.revoke(jti=jti)
        await say(desk, approval_id)
        async with laboring(hub.runtime):
            found = await settles(desk, approval_id, "failed")
    assert (found.error["code"], studio.deeds.done) == ("unauthenticated", [])


async def test_a_call_whose_token_was_revoked_while_it_waited_is_told_nothing(studio: Studio) -> None:
    async with studio.hub(works=False) as hub:
        runtime = hub.runtime
        token, jti = await issued_to_anna(hub)
        async with hub.client_with(token) as client:
            call = asyncio.create_task(do(client, "deed_once", wait_s=60))
            approval_id, _ = await pending(runtime.stores.pool, "deed_once")
            await wait_until(runtime.approvals.waiters.waiting, "it waits")
            await say(runtime.approvals.desk, approval_id)
            await runtime.tokens.revoke(jti=jti)
            async with laboring(runtime):
                told = error_of(await call)
        assert told["code"] == "unauthenticated"
        assert (await runtime.approvals.desk.get(approval_id)).delivered_at is None


async def test_calls_that_wait_keep_none_of_their_askers_other_calls_out(studio: Studio) -> None:
    async with studio.hub(works=False, concurrency_max=4) as hub, hub.client(BRONZE) as client:
        waiters = hub.runtime.approvals.waiters
        calls: list[asyncio.Task[Any]] = []
        for number in range(1, 7):  # one after the other: four slots are all that may be held at once
            calls.append(asyncio.create_task(do(client, "deed_once", wait_s=280)))
            await wait_until(lambda wanted=number: waiters.waiting() == wanted, f"{number} wait")
        approval_id, _ = await pending(hub.runtime.stores.pool, "deed_once")
        assert not (await client.call_tool("whoami", {})).is_error
        assert not (await client.call_tool("cancel_approval", {"id": approval_id})).is_error
        for told in await asyncio.gather(*calls):
            assert error_of(told)["code"] == "approval_cancelled"
        for _ in range(8):  # each slot was given back once
            assert not (await client.call_tool("whoami", {})).is_error


async def test_beyond_so_many_of_one_asker_nobody_waits(studio: Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking, "WAITING_MAX", 2)
    async with studio.hub(works=False) as hub, hub.client(BRONZE) as client:
        calls = [asyncio.create_task(do(client, "deed_once", wait_s=280)) for _ in range(2)]
        await wait_until(lambda: hub.runtime.approvals.waiters.waiting() == 2, "two wait")
        assert error_of(await do(client, "deed_once", wait_s=60))["code"] == "approval_pending"
        for call in calls:
            call.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await call


async def opened(hub: Hub) -> Approval:
    async with hub.client(BRONZE) as client:
        return await hub.runtime.approvals.desk.get(error_of(await do(client, "deed_once"))["approval"])


async def test_how_it_ended_is_told_by_what_people_made_of_it(studio: Studio) -> None:
    async with studio.hub(works=False) as hub:
        desk = hub.runtime.approvals.desk
        approval = await opened(hub)
        yes = (await say(desk, approval.id)).votes
    expired = replace(approval, standing="expired", state="expired", decided_by=SERVICE)
    assert "nobody answered" in ended(expired).message
    assert "did not get every yes" in ended(replace(expired, votes=yes)).message
    late = replace(expired, state="approved", decided_by="person:otto", votes=yes)
    assert "was approved, but nothing ran it in time" in ended(late).message
    void = ended(
        replace(approval, standing="cancelled", state="cancelled", decided_by=SERVICE, why="The rule is gone.")
    )
    assert void.message == "The request for deed_once was ended before people decided: The rule is gone."
    assert void.next_step.startswith("Make the call again")
    back = ended(replace(approval, standing="cancelled", state="approved", decided_by="person:otto"))
    assert back.message == "The request for deed_once was taken back."


async def test_what_a_person_found_done_is_told_as_done_without_a_result(studio: Studio) -> None:
    async with studio.hub() as hub, hub.client(BRONZE) as client:
        desk = hub.runtime.approvals.desk
        approval_id = error_of(await do(client, "deed_break"))["approval"]
        await say(desk, approval_id)
        await settles(desk, approval_id, "unknown")
        await desk.settle(approval_id, by="person:otto", verdict="succeeded", note="It is there.")
        shown = await client.call_tool("list_my_approvals", {})
        told = error_of(await do(client, "deed_break"))
    assert "carried out, as person:otto found." in shown.structured_content["items"][0]["said"]
    assert told["message"].startswith("deed_break was approved and done, as person:otto found, but no result")
    assert told["next_step"].startswith("Do not repeat it")


async def test_nobody_is_asked_while_it_is_not_known_what_the_session_has_read(studio: Studio) -> None:
    """Asked as if it had read something, the same call a moment later would be another one, and be asked for and done twice."""
    async with studio.hub() as hub, hub.client(BRONZE) as client:
        pool = hub.runtime.stores.pool
        await pool.execute("ALTER TABLE session_witness RENAME TO away")
        try:
            refused = error_of(await do(client, "deed_once"))
        finally:
            await pool.execute("ALTER TABLE away RENAME TO session_witness")
        assert (refused["code"], refused["retryable"]) == ("unavailable", True)
        assert await pool.fetchval("SELECT count(*) FROM approval") == 0

        assert error_of(await do(client, "deed_once"))["code"] == "approval_pending"
        assert await pool.fetchval("SELECT array_agg(tainted) FROM approval") == [False]
