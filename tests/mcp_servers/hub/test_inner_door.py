from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

import orjson
import pytest

from body_broker.settings import Settings
from mcp_servers.hub.inner_door import ANSWER_BYTES_MAX, InnerDoor
from mcp_servers.hub.protocol import Protocol
from mcp_servers.hub.runtime import Runtime, open_runtime
from tests.mcp_servers.hub.conftest import settings_for
from tests.mcp_servers.hub.conversing import TALKS, Plan, asker_of, inner_tools
from tests.mcp_servers.hub.fixture_room import ROOM, Seen
from tests.waiting import wait_until
from tiers.deadline import Deadline
from tiers.hubclient import URL
from tiers.hubtools import HubTools
from tiers.model import Tier

__all__ = ["settings_for"]


@dataclass
class House:
    """A hub that listens nowhere."""

    runtime: Runtime
    seen: Seen
    tools: HubTools

    def door(self) -> InnerDoor:
        runtime = self.runtime
        protocol = Protocol(runtime.gate, runtime.listings, runtime.limits, runtime.bus)
        return InnerDoor(protocol, runtime.identities, runtime.settings)


@pytest.fixture
async def house(settings_for: Callable[..., Settings], redis: object) -> AsyncIterator[House]:
    _ = redis  # flushed before the test
    seen = Seen()
    rooms, extra = (ROOM, TALKS), dict[str, object](fixture=seen, talks=Plan())
    async with open_runtime(settings_for(), rooms, extra_services=extra) as runtime, inner_tools(runtime) as tools:
        yield House(runtime, seen, tools)


def asked(name: str) -> dict[str, Any]:
    """A call as a client of 2026-07-28 sends it."""
    meta = {
        "io.modelcontextprotocol/protocolVersion": "2026-07-28",
        "io.modelcontextprotocol/clientInfo": {"name": "tests", "version": "1"},
        "io.modelcontextprotocol/clientCapabilities": {},
    }
    return {
        "method": "POST",
        "url": URL,
        "json": {
            "jsonrpc": "2.0",
            "id": 1,
            "method": "tools/call",
            "params": {"name": name, "arguments": {}, "_meta": meta},
        },
        "headers": {
            "accept": "application/json, text/event-stream",
            "mcp-protocol-version": "2026-07-28",
            "mcp-method": "tools/call",
            "mcp-name": name,
        },
    }


async def token_for(house: House) -> str:
    asker = await asker_of(house.runtime, "person:anna", "engineer")
    return await house.runtime.tokens.mint(asker.caller, "tier:silver", asker.conversation, 60)


@pytest.mark.parametrize(
    "headers",
    [{}, {"authorization": "Bearer nonsense"}, {"authorization": "Basic YTpi"}],
)
async def test_it_lets_nobody_in_without_a_token(house: House, headers: dict[str, str]) -> None:
    door = house.door()
    async with door.serving(), door.client(headers=headers) as client:
        answer = await client.request(**asked("fx_echo"))

    assert answer.status_code == 401
    assert answer.json()["error"]["code"] == "unauthenticated"
    assert house.seen.calls == []


async def test_it_serves_mcp_and_nothing_else(house: House) -> None:
    door = house.door()
    async with door.serving(), door.client(headers={"authorization": f"Bearer {await token_for(house)}"}) as client:
        found = [
            (await client.get(f"http://localhost{path}")).status_code for path in ("/metrics", "/approvals", "/v1")
        ]
        foreign = await client.get("http://evil.example/mcp")

    assert found == [404, 404, 404]
    assert foreign.status_code == 421


async def test_a_call_is_answered_in_one_piece_even_where_a_client_would_take_a_stream(house: House) -> None:
    house.seen.release.set()
    door = house.door()
    async with door.serving(), door.client(headers={"authorization": f"Bearer {await token_for(house)}"}) as client:
        answer = await client.request(**asked("fx_wait"))  # it reports progress: everybody else gets a stream

    assert answer.headers["content-type"] == "application/json"
    assert answer.json()["result"]["structuredContent"]["said"] == ""


async def test_an_answer_that_is_too_large_is_refused_in_a_few_words(house: House) -> None:
    door = house.door()
    async with door.serving(), door.client(headers={"authorization": f"Bearer {await token_for(house)}"}) as client:
        answer = await client.request(**asked("tx_huge"))

    assert answer.status_code == 413
    assert orjson.loads(answer.content)["error"]["code"] == "too_large"
    assert len(answer.content) < 1_000 < ANSWER_BYTES_MAX


async def test_a_request_that_is_too_large_is_refused_as_at_every_door(house: House) -> None:
    door = house.door()
    size = house.runtime.settings.request_bytes_max + 1
    async with door.serving(), door.client(headers={"authorization": f"Bearer {await token_for(house)}"}) as client:
        answer = await client.post(URL, content=b"x" * size)

    assert answer.status_code == 413


async def test_whoever_opens_it_need_not_be_who_closes_it(house: House) -> None:
    door = house.door()
    serving = door.serving()
    await asyncio.create_task(serving.__aenter__())
    async with door.client(headers={"authorization": f"Bearer {await token_for(house)}"}) as client:
        assert (await client.request(**asked("fx_echo"))).status_code == 200
    await asyncio.create_task(serving.__aexit__(None, None, None))


async def test_a_door_that_cannot_open_says_so_and_keeps_nobody_waiting(house: House) -> None:
    door = house.door()
    async with door.serving():
        pass
    with pytest.raises(RuntimeError):  # what it serves with runs once
        async with asyncio.timeout(30), door.serving():
            pass


async def test_it_goes_through_no_proxy_that_the_environment_names(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    door = house.door()
    async with door.serving(), door.client(headers={"authorization": f"Bearer {await token_for(house)}"}) as client:
        assert (await client.request(**asked("fx_echo"))).status_code == 200


async def test_whoever_leaves_cancels_a_read(house: House) -> None:
    asker = await asker_of(house.runtime, "person:anna", "engineer")
    calling = asyncio.create_task(
        house.tools.call(asker, Tier.SILVER, "fx_wait_plain", {}, deadline=Deadline.after(60))
    )
    await wait_until(house.seen.started.is_set, "it has begun")

    calling.cancel()
    await asyncio.wait({calling})

    await wait_until(house.seen.cancelled.is_set, "the read was cancelled")


async def test_whoever_leaves_cancels_no_effect_that_has_begun(house: House) -> None:
    asker = await asker_of(house.runtime, "person:anna", "engineer")
    calling = asyncio.create_task(
        house.tools.call(asker, Tier.BRONZE, "fx_wait_effect", {}, deadline=Deadline.after(60))
    )
    await wait_until(house.seen.started.is_set, "it has begun")

    calling.cancel()
    await asyncio.wait({calling})
    house.seen.release.set()

    await wait_until(house.seen.finished.is_set, "the effect was finished")
    assert not house.seen.cancelled.is_set()
