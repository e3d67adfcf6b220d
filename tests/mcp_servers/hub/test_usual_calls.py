"""Usual calls are answered without the SDK's work: to the last field as the SDK answers them, over the network and for tiers."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

import orjson
import pytest

from body_broker.settings import Settings
from mcp_servers.hub.inner_door import URL, InnerDoor
from mcp_servers.hub.protocol import Protocol
from mcp_servers.hub.runtime import Runtime, open_runtime
from tests.mcp_servers.hub.conftest import settings_for
from tests.mcp_servers.hub.conversing import TALKS, Plan, asker_of, signed_in
from tests.mcp_servers.hub.fixture_room import ROOM, Seen
from tests.mcp_servers.hub.test_gate import modern, request
from tests.waiting import wait_until
from tiers.counts import NoCounts
from tiers.deadline import Deadline
from tiers.hubtools import Called, HubTools
from tiers.model import Asker, Tier

__all__ = ["settings_for"]

# What is each record's own.
OWN = frozenset({"call", "session", "seq", "at", "time", "mac", "previous", "refers_to", "body"})
# The SDK reads it as it reads "application/json"; it is not usual.
SLOWLY = "application/json; charset=utf-8"

HALF = {"text": "\ud800"}
CALLS: list[tuple[str, object]] = [
    ("fx_echo", {"text": "a ferry, an é and a 𝄞"}),
    ("fx_echo", {}),
    ("fx_echo", None),
    ("fx_echo", {"count": 11}),
    ("fx_echo", {"count": 2**70}),
    ("fx_echo", {"weight": float("nan")}),
    ("fx_echo", HALF),
    ("fx_echo", {"unknown": 1}),
    ("fx_echo", [1]),
    ("fx_outside", {"text": "of the docks"}),
    ("fx_external", {"text": "of a vendor"}),
    ("fx_draft", {"text": "a lamp"}),
    ("fx_write", {"text": "a lamp"}),
    ("fx_admin_read", {}),
    ("fx_unclassified", {}),
    ("fx_needs", {}),
    ("fx_fail", {}),
    ("no_such_tool", {}),
    ("", {}),
    ("whoami", {}),
    ("tx_long", {"about": "x"}),
    ("tx_deep", {}),
]

# What a tier has no way to say, or the library none.
NO_TIERS: list[tuple[str, object]] = [("", {}), ("fx_echo", None), ("fx_echo", [1]), ("fx_echo", HALF)]

BODIES: dict[str, bytes | dict[str, Any]] = {
    "an id that is text": request("tools/call", {"name": "fx_echo", "arguments": {}}) | {"id": "a"},
    "an id that is no number": request("tools/call", {"name": "fx_echo", "arguments": {}}) | {"id": True},
    "an id that is null": request("tools/call", {"name": "fx_echo", "arguments": {}}) | {"id": None},
    "a very large id": request("tools/call", {"name": "fx_echo", "arguments": {}}) | {"id": 2**80},
    "another version of JSON-RPC": request("tools/call", {"name": "fx_echo"}) | {"jsonrpc": "1.0"},
    "one field more": request("tools/call", {"name": "fx_echo"}) | {"more": 1},
    "another method": request("tools/list", {"name": "fx_echo"}),
    "another name": request("tools/call", {"name": "fx_outside", "arguments": {}}),
    "no name": request("tools/call", {"arguments": {}}),
    "a name that is a number": request("tools/call", {"name": 5}),
    "answers": request("tools/call", {"name": "fx_echo", "arguments": {}, "inputResponses": {}, "requestState": "x"}),
    "no envelope": {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "fx_echo"}},
    "no parameters": {"jsonrpc": "2.0", "id": 1, "method": "tools/call"},
    "no JSON": b'{"jsonrpc"',
    "nested deep": b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":' + b"[" * 5000 + b"]" * 5000 + b"}",
}


HEADERS = [
    ("mcp-name", "fx_outside"),
    ("mcp-name", "=?base64?ZnhfZWNobw==?="),
    ("mcp-method", "tools/list"),
    ("mcp-protocol-version", "2025-11-25"),
    ("mcp-protocol-version", "1999-01-01"),
    ("accept", "text/plain"),
    ("accept", "application/*"),
    ("accept", "*/*"),
    ("mcp-param-text", "x"),
    ("origin", "https://evil.example.com"),
    ("host", "evil.example.com"),
    ("content-length", "99999999999"),
]


@dataclass(frozen=True)
class Heard:
    """What came of one request: the answer, what stands on the audit, and whether the session is tainted now."""

    status: int
    body: object
    audit: list[dict[str, object]]
    tainted: object


@dataclass
class House:
    runtime: Runtime
    door: InnerDoor
    seen: Seen
    people: int = 0

    async def heard(self, body: bytes, headers: dict[str, str], content_type: str, *, silver: bool = True) -> Heard:
        """What comes of a message of somebody who was never here before."""
        self.people += 1
        token = await self.token_of(f"person:p{self.people}", silver=silver)
        who = {"authorization": f"Bearer {token}"}
        before = len(await self.audit())
        async with self.door.client(headers=who) as client:
            answer = await client.post(URL, headers=headers | {"content-type": content_type}, content=body)
            rows = (await self.audit())[before:]
            echo = await client.post(
                URL, headers=usual("fx_echo") | {"content-type": SLOWLY}, content=written("fx_echo")
            )
        tainted = echo.json()["result"]["structuredContent"]["tainted"]
        return Heard(answer.status_code, _unnamed(answer.content), rows, tainted)

    async def token_of(self, who: str, *, silver: bool) -> str:
        caller = await signed_in(self.runtime, who, "engineer")
        if silver:
            return await self.runtime.tokens.mint(caller, "tier:silver", f"cnv_of_{who[7:]}", 60)
        return (await self.runtime.tokens.issue(who, roles=["engineer"], ttl_s=600)).token

    async def audit(self) -> list[dict[str, object]]:
        await wait_until(lambda: self.runtime.auditor.backlog == 0, "every record is committed")
        rows = await self.runtime.stores.pool.fetch("SELECT body FROM audit_record ORDER BY writer, seq")
        found: list[dict[str, object]] = [json.loads(_masked(row["body"])) for row in rows]
        return [{name: each for name, each in row.items() if name not in OWN} for row in found]


@pytest.fixture
async def house(settings_for: Callable[..., Settings], redis: object) -> AsyncIterator[House]:
    _ = redis  # flushed before the test
    async with open_house(settings_for()) as found:
        yield found


@asynccontextmanager
async def open_house(settings: Settings) -> AsyncGenerator[House]:
    seen = Seen()
    extra: dict[str, object] = {"fixture": seen, "talks": Plan()}
    async with open_runtime(settings, (ROOM, TALKS), extra_services=extra) as runtime:
        door = InnerDoor(
            Protocol(runtime.gate, runtime.listings, runtime.limits, runtime.bus), runtime.identities, settings
        )
        async with door.serving():
            yield House(runtime, door, seen)


def usual(name: str) -> dict[str, str]:
    """The headers of a usual call, without a token."""
    return {key: value for key, value in modern("", "tools/call", name).items() if key != "authorization"}


def written(name: object, arguments: object = None, **more: object) -> bytes:
    """A usual call's body."""
    return json.dumps(request("tools/call", {"name": name, "arguments": arguments} | more)).encode()


def _unnamed(content: bytes) -> object:
    """The answer without what is random in it."""
    text = _masked(content.decode())
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def _masked(text: str) -> str:
    named = re.sub(r"(call|apr|tok|ses|cnv)_[\w-]+|(person):[a-z0-9]+", r"\1\2", text)
    return re.sub(r"\d{4}-\d\d-\d\dT[\d:.+Z]+|(fingerprint\W+)\w+", r"\1", named)


@pytest.mark.parametrize("silver", [False, True], ids=["a person", "a tier"])
@pytest.mark.parametrize(("name", "arguments"), CALLS, ids=[f"{n} {name}" for n, (name, _) in enumerate(CALLS)])
async def test_every_call_comes_to_the_same_whichever_way_it_is_read(
    house: House, name: str, arguments: object, *, silver: bool
) -> None:
    quick, slow = [
        await house.heard(written(name, arguments), usual(name), kind, silver=silver)
        for kind in ("application/json", SLOWLY)
    ]

    assert quick == slow
    assert quick.audit or quick.status != 200


async def test_what_is_wrong_with_a_message_is_told_alike(house: House) -> None:
    for what, given in BODIES.items():
        body = given if isinstance(given, bytes) else json.dumps(given).encode()
        quick, slow = [await house.heard(body, usual("fx_echo"), kind) for kind in ("application/json", SLOWLY)]

        assert quick == slow, what


async def test_headers_that_do_not_agree_with_a_message_are_refused_alike(house: House) -> None:
    for name, value in HEADERS:
        headers = usual("fx_echo") | {name: value}
        quick, slow = [await house.heard(written("fx_echo"), headers, kind) for kind in ("application/json", SLOWLY)]

        assert quick == slow, (name, value)


async def test_a_usual_call_is_answered_without_the_sdk(house: House) -> None:
    token = await house.token_of("person:anna", silver=True)
    found: list[bytes] = []
    for kind in ("application/json", SLOWLY):
        headers = usual("fx_echo") | {"content-type": kind, "authorization": f"Bearer {token}"}
        async with house.door.client() as client:
            found.append((await client.post(URL, headers=headers, content=written("fx_echo", {"text": "é"}))).content)

    # The SDK escapes what is no ASCII.
    assert ["é".encode() in each for each in found] == [True, False]


@pytest.mark.parametrize(("name", "arguments"), [call for call in CALLS if call not in NO_TIERS], ids=str)
async def test_a_tier_s_call_comes_to_the_same_by_the_library_and_by_hand(
    house: House, name: str, arguments: Any
) -> None:
    found: list[tuple[Called, list[dict[str, object]]]] = []
    for who, post in (("person:anna", None), ("person:tom", house.door.post)):
        asker, before = await asker_of(house.runtime, who, "engineer"), len(await house.audit())
        asker = Asker(caller=asker.caller, conversation=f"cnv_of_{who[7:]}")
        async with HubTools.opened(house.door.client, house.runtime.tokens.mint, NoCounts(), post) as tools:
            called = await tools.call(asker, Tier.SILVER, name, arguments, deadline=Deadline.after(30))
        said: Any = _unnamed(orjson.dumps([called.text, called.structured]))
        called = replace(called, seconds=0.0, text=said[0], structured=said[1])
        found.append((called, (await house.audit())[before:]))

    assert found[0] == found[1]


async def test_a_client_that_leaves_a_usual_call_ends_a_read(house: House) -> None:
    tools = HubTools.opened(house.door.client, house.runtime.tokens.mint, NoCounts(), house.door.post)
    async with tools as opened:
        asker = await asker_of(house.runtime, "person:anna", "engineer")
        calling = asyncio.create_task(opened.call(asker, Tier.SILVER, "fx_wait_plain", {}, deadline=Deadline.after(30)))
        await house.seen.started.wait()
        calling.cancel()
        await asyncio.wait({calling})

    assert house.seen.cancelled.is_set()
    assert not house.seen.finished.is_set()
