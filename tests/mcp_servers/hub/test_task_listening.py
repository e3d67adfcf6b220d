"""Listening to tasks with the official SDK's client: what is agreed to, heard at once, coalesced, ended, and heard on the other hub too."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx2
import mcp_types as types
import pytest
from mcp import Client
from mcp.client.extension import ClientExtension, NotificationBinding
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.exceptions import MCPError
from pydantic import BaseModel, ConfigDict

from body_broker.calls import Caller
from body_broker.storage.redis import Redis
from body_broker.work.moves import Follower
from body_broker.work.parking import Park
from mcp_servers.hub.protocol import Protocol
from mcp_servers.hub.task_listening import IDS_MAX, METHOD
from mcp_servers.hub.tasks import EXTENSION
from tests.mcp_servers.hub.conftest import Hub, OpenHub
from tests.mcp_servers.hub.experts import experts, result
from tests.mcp_servers.hub.test_tasks import APPROVERS, WRITER, Speaker, decide, errands
from tests.waiting import wait_until

ANNA = ("person:anna", "designer")
SUBSCRIPTION = "io.modelcontextprotocol/subscriptionId"


class Frame(BaseModel):
    """A notification's parameters as they came."""

    model_config = ConfigDict(extra="allow")


class Follows(ClientExtension):
    """The tasks extension of a client that listens."""

    identifier = EXTENSION

    def __init__(self) -> None:
        self.told: list[dict[str, Any]] = []

    def notifications(self) -> list[NotificationBinding[Any]]:
        return [NotificationBinding(method=METHOD, params_type=Frame, handler=self._hear)]

    async def _hear(self, frame: Frame) -> None:
        self.told.append(frame.model_extra or {})


@dataclass
class Listener:
    """One open listening: what was agreed to, what was told, and the request itself, which ends when the listening does."""

    request: asyncio.Task[types.SubscriptionsListenResult]
    told: list[dict[str, Any]]
    agreed: list[types.SubscriptionFilter]

    async def heard(self, words: str) -> dict[str, Any]:
        """The first that says so, in its status or its message."""

        def find() -> dict[str, Any] | None:
            told = (each for each in self.told if words in f"{each['status']} {each['statusMessage']}")
            return next(told, None)

        found = await wait_until(find, f"a notification says: {words}")
        assert found is not None
        return found


@asynccontextmanager
async def listening(hub: Hub, token: str, task_ids: Any, *, declared: bool = True) -> AsyncGenerator[Listener]:
    """One over HTTP."""
    async with (
        httpx2.AsyncClient(headers={"authorization": f"Bearer {token}"}, timeout=240) as http,
        listening_through(streamable_http_client(hub.url, http_client=http), task_ids, declared=declared) as found,
    ):
        yield found


@asynccontextmanager
async def listening_through(there: Any, task_ids: Any, *, declared: bool = True) -> AsyncGenerator[Listener]:
    """The SDK's client, listening; its own `listen` has no word for an extension's keys, so the request is made here."""
    follows = Follows()
    agreed: list[types.SubscriptionFilter] = []

    async def handle(message: object) -> None:
        if isinstance(message, types.SubscriptionsAcknowledgedNotification):
            agreed.append(message.params.notifications)

    asked = types.SubscriptionsListenRequest(
        params=types.SubscriptionsListenRequestParams(
            notifications=types.SubscriptionFilter.model_validate({"taskIds": task_ids})
        )
    )
    async with Client(there, extensions=[follows] if declared else [], message_handler=handle) as client:
        request = asyncio.create_task(client.session.send_request(asked, types.SubscriptionsListenResult))
        try:
            await wait_until(lambda: agreed or request.done(), "the listening is agreed to or refused")
            yield Listener(request, follows.told, agreed)
        finally:
            request.cancel()
            await asyncio.wait({request})


@pytest.fixture
async def hub(open_hub: OpenHub, redis: Redis) -> AsyncIterator[Hub]:
    _ = redis  # flushed before the test
    async with open_hub(bronze_url="http://127.0.0.1:9") as found:
        yield found


@pytest.fixture
async def anna(hub: Hub) -> Speaker:
    return await Speaker.of(hub, *ANNA)


async def submitted(client: Speaker) -> str:
    task_id: str = (await client.call("submit_job", prompt="Write of the flood."))["taskId"]
    return task_id


def agreed_ids(listener: Listener) -> Any:
    (agreed,) = listener.agreed
    return (agreed.model_extra or {}).get("taskIds")


async def test_a_listener_hears_how_its_job_stands_and_its_end_as_tasks_get_says_it(hub: Hub, anna: Speaker) -> None:
    first, task_id = await submitted(anna), await submitted(anna)
    async with listening(hub, anna.token, [task_id]) as listener:
        assert agreed_ids(listener) == [task_id]
        now = await listener.heard("queued, 1 before it")
        assert now["taskId"] == task_id
        assert now["_meta"][SUBSCRIPTION] is not None
        assert "result" not in now
        async with experts(hub.runtime, result()):
            over = await listener.heard("completed")
        assert over["result"]["structuredContent"]["result"] == result()
        shown = await anna.get(task_id)
        assert over | {"_meta": None} == {k: v for k, v in shown.items() if k != "resultType"} | {"_meta": None}
        assert {each["taskId"] for each in listener.told} == {task_id}
    assert first != task_id


async def test_a_job_s_waiting_and_its_cancelling_are_told(hub: Hub, anna: Speaker) -> None:
    task_id = await submitted(anna)
    async with listening(hub, anna.token, [task_id]) as listener, experts(hub.runtime, "endpoint"):
        await listener.heard("waiting for the answer of sagemaker")
        await anna.task("cancel", task_id)
        over = await listener.heard("cancelled")
        assert over["statusMessage"].startswith("The job was cancelled. sagemaker had been asked.")


async def test_what_moved_and_stands_as_before_is_not_told_twice(hub: Hub, anna: Speaker) -> None:
    still, fence = await submitted(anna), await submitted(anna)
    async with listening(hub, anna.token, [still, fence]) as listener:
        await listener.heard("1 before it")
        await hub.runtime.stores.pool.execute("SELECT pg_notify('work_moved', $1)", still)
        await anna.task("cancel", fence)
        await listener.heard("cancelled")  # looked at after the other
        assert [each["taskId"] for each in listener.told].count(still) == 1


async def test_what_ended_before_it_was_listened_to_is_told_at_once(hub: Hub, anna: Speaker) -> None:
    task_id = await submitted(anna)
    async with experts(hub.runtime, result()):
        await anna.ended(task_id)
    async with listening(hub, anna.token, [task_id]) as listener:
        await listener.heard("completed")


async def test_what_is_not_the_caller_s_is_left_out_of_what_is_agreed_to(hub: Hub, anna: Speaker) -> None:
    mine, boris = await submitted(anna), await Speaker.of(hub, "person:boris", "designer")
    theirs = await submitted(boris)
    async with listening(hub, anna.token, [theirs, mine, "job_of_nobody", "apr_of_nobody", mine]) as listener:
        assert agreed_ids(listener) == [mine]
        async with experts(hub.runtime, result()):
            await boris.ended(theirs)
            await listener.heard("completed")
        assert {each["taskId"] for each in listener.told} == {mine}
    async with listening(hub, anna.token, [theirs]) as listener:
        assert agreed_ids(listener) is None
        assert not listener.request.done()


async def test_who_did_not_declare_the_extension_is_told_which_it_lacks(hub: Hub, anna: Speaker) -> None:
    async with listening(hub, anna.token, ["job_of_nobody"], declared=False) as listener:
        with pytest.raises(MCPError) as refused:
            await listener.request
    assert refused.value.error.code == -32021
    assert refused.value.error.data == {"requiredCapabilities": {"extensions": {EXTENSION: {}}}}
    async with listening(hub, anna.token, [], declared=False) as listener:
        assert agreed_ids(listener) is None


@pytest.mark.parametrize(
    "ids", ["job_1", [1], [""], ["j" * 81], {"job_1": True}, [f"job_{n}" for n in range(IDS_MAX + 1)]]
)
async def test_ids_that_are_none_are_refused(hub: Hub, anna: Speaker, ids: Any) -> None:
    async with listening(hub, anna.token, ids) as listener:
        with pytest.raises(MCPError, match="taskIds is a list of at most 50") as refused:
            await listener.request
    assert refused.value.error.code == -32602


async def test_text_from_outside_taints_who_hears_it_and_is_marked(hub: Hub, anna: Speaker) -> None:
    task_id = await submitted(anna)
    async with listening(hub, anna.token, [task_id]) as listener, experts(hub.runtime, result(outside=True)):
        over = await listener.heard("completed")
        assert over["result"]["_meta"] == {"body-broker/outside": True}
        assert (await anna.call("whoami"))["structuredContent"]["tainted"]


async def test_a_job_that_is_done_through_another_hub_is_heard_on_this_one(
    open_hub: OpenHub, hub: Hub, anna: Speaker
) -> None:
    task_id = await submitted(anna)
    async with (
        open_hub(bronze_url="http://127.0.0.1:9") as other,
        listening(hub, anna.token, [task_id]) as here,
        listening(other, anna.token, [task_id]) as there,
        experts(other.runtime, result()),
    ):
        assert (await here.heard("completed"))["result"] == (await there.heard("completed"))["result"]


async def test_what_moves_while_the_hub_s_connection_is_lost_is_heard_after_all(hub: Hub, anna: Speaker) -> None:
    task_id = await submitted(anna)
    lose = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE application_name = 'body-broker moves'"
    async with listening(hub, anna.token, [task_id]) as listener:
        assert await hub.runtime.stores.pool.fetchval(lose) == 1
        async with experts(hub.runtime, result()):
            await listener.heard("completed")


async def test_a_revoked_token_hears_nothing_more_and_is_told_why(hub: Hub) -> None:
    issued = await hub.runtime.tokens.issue(ANNA[0], roles=ANNA[1:], ttl_s=600)
    task_id = await submitted(Speaker(hub, issued.token))
    async with listening(hub, issued.token, [task_id]) as listener:
        await listener.heard("queued")
        await hub.runtime.tokens.revoke(jti=issued.jti)
        async with experts(hub.runtime, result()):
            with pytest.raises(MCPError, match="unauthenticated: The token was revoked"):
                await listener.request
        assert [each["status"] for each in listener.told] == ["working"]


async def test_a_storm_of_progress_is_not_told_step_by_step(
    hub: Hub, anna: Speaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mcp_servers.hub.task_listening._EVERY_S", 3600.0)  # no second look before the test is over
    task_id = await submitted(anna)
    async with listening(hub, anna.token, [task_id]) as storm:
        await storm.heard("queued")
        async with experts(hub.runtime, *[Park("results-store", wake_in_s=0.0)] * 5, result()):
            await anna.ended(task_id)
        async with listening(hub, anna.token, [task_id]) as late:
            await late.heard("completed")
        assert len(storm.told) == 1


async def test_however_often_something_moves_it_is_looked_at_once() -> None:
    follower = Follower()
    for _ in range(1000):
        follower.note("job_1")
    follower.note("job_2")
    assert await follower.moved() == ["job_1", "job_2"]
    again = asyncio.ensure_future(follower.moved())
    follower.note("job_2")
    assert await again == ["job_2"]


async def test_a_hub_that_stops_ends_the_listening_in_good_order(hub: Hub, anna: Speaker) -> None:
    task_id = await submitted(anna)
    async with listening(hub, anna.token, [task_id]) as listener:
        await listener.heard("queued")
        hub.front.begin_draining()
        assert (await listener.request).meta is not None


async def test_an_approval_is_heard_on_another_hub_until_its_call_is_done(
    open_hub: OpenHub, tmp_path: Path, redis: Redis
) -> None:
    _ = redis
    (tmp_path / "approvers.toml").write_text(APPROVERS)
    async with errands(open_hub) as one, errands(open_hub) as other:
        writer = await Speaker.of(one, *WRITER)
        task = await writer.call("er_do", what="sweep")
        async with listening(other, writer.token, [task["taskId"]]) as listener:
            assert "sre or admin: 0 of 1" in (await listener.heard("working"))["statusMessage"]
            await decide(one.runtime, task["taskId"])
            over = await listener.heard("completed")
        assert over["result"]["structuredContent"] == {"what": "sweep", "key": task["taskId"]}


async def test_over_a_stream_whose_identity_is_asked_for_each_time_listening_ends_with_it(
    hub: Hub, anna: Speaker
) -> None:
    task_id = await submitted(anna)
    runtime, caller = hub.runtime, await hub.runtime.identities.authenticate(anna.token)

    async def who() -> Caller:
        return caller

    protocol = Protocol(runtime.gate, runtime.listings, runtime.limits, runtime.bus, process_caller=who)
    async with listening_through(protocol.server, [task_id]) as listener:
        assert agreed_ids(listener) == [task_id]
        async with experts(runtime, "endpoint"):
            await listener.heard("waiting for the answer of sagemaker")
        caller = replace(caller, expires_at=1.0)
        await anna.task("cancel", task_id)
        with pytest.raises(MCPError, match="unauthenticated: The token has expired"):
            await listener.request
        assert {each["status"] for each in listener.told} == {"working"}
