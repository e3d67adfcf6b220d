"""Usual calls are answered without the SDK's work: to the last field as the SDK answers them, over the network and for tiers."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Annotated, Any

import orjson
import pytest
from mcp_types import (
    CLIENT_CAPABILITIES_META_KEY,
    CLIENT_INFO_META_KEY,
    LOG_LEVEL_META_KEY,
    PROTOCOL_VERSION_META_KEY,
)
from pydantic import Field

from body_broker.calls import Arguments, Call
from body_broker.settings import Settings
from mcp_servers.hub.inner_door import InnerDoor
from mcp_servers.hub.protocol import Protocol
from mcp_servers.hub.requests import WAIT_META
from mcp_servers.hub.runtime import Runtime, open_runtime
from tests.mcp_servers.hub.conftest import settings_for
from tests.mcp_servers.hub.conversing import TALKS, Plan, asker_of, signed_in
from tests.mcp_servers.hub.fixture_room import ROOM, Echo, Seen, row
from tests.mcp_servers.hub.test_gate import modern, request
from tests.mcp_servers.hub.test_traces import CLIENTS, TRACE, Traced, traced
from tests.waiting import wait_until
from tiers.counts import Counts
from tiers.deadline import Deadline
from tiers.hubtools import Called, HubTools
from tiers.model import Asker, Tier

__all__ = ["settings_for", "traced"]

# What is each record's own.
OWN = frozenset({"call", "session", "seq", "at", "time", "mac", "previous", "refers_to", "body"})
JSON = "application/json"
# The SDK reads it as it reads the other; it is not usual.
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


def about_call(meta: dict[str, object]) -> dict[str, Any]:
    """A call whose `_meta` has more, or other."""
    call: Any = request("tools/call", {"name": "fx_echo", "arguments": {}})
    call["params"]["_meta"] |= meta
    return call


def written_with(arguments: bytes) -> bytes:
    """A call with arguments as they are written, which may be no JSON."""
    return written("fx_echo", "here").replace(b'"here"', arguments)


def written(name: object, arguments: object = None, **more: object) -> bytes:
    """A usual call's body."""
    return json.dumps(request("tools/call", {"name": name, "arguments": arguments} | more)).encode()


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
    # The parser of both takes what JSON does not know; neither writes it.
    "an id that is NaN": request("tools/call", {"name": "fx_echo"}) | {"id": float("nan")},
    "an infinite id": request("tools/call", {"name": "fx_echo"}) | {"id": float("-inf")},
    "NaN among the arguments": request("tools/call", {"name": "fx_echo", "arguments": {"count": float("nan")}}),
    "infinity in a number too many": request("tools/call", {"name": "fx_echo", "arguments": {"more": float("inf")}}),
    "a number that is infinite once it is read": written_with(b'{"weight":1e999}'),
    "NaN seconds to wait": about_call({WAIT_META: float("nan")}),
    "infinite seconds to wait": about_call({WAIT_META: float("inf")}),
    "a number with more digits than are read": written_with(b'{"count":' + b"9" * 5000 + b"}"),
    "capabilities that are a list": about_call({CLIENT_CAPABILITIES_META_KEY: []}),
    "capabilities of another form": about_call({CLIENT_CAPABILITIES_META_KEY: {"roots": 5}}),
    "a client without a name": about_call({CLIENT_INFO_META_KEY: {}}),
    "a log level": about_call({LOG_LEVEL_META_KEY: "debug"}),
    "no log level": about_call({LOG_LEVEL_META_KEY: "loud"}),
    "a token for progress": about_call({"progressToken": 1}),
}

# With what else a list of tools may come, and the status it gets.
LISTS: list[tuple[dict[str, object], dict[str, object], int]] = [
    ({}, {}, 200),
    ({"id": "\ud800"}, {}, 200),
    ({"id": ""}, {}, 200),
    ({"id": 2**80}, {}, 200),
    ({"id": float("nan")}, {}, 400),
    ({"id": None}, {}, 400),
    ({"more": 1}, {}, 200),
    ({"method": "prompts/list"}, {}, 400),
    ({}, {"more": float("nan")}, 200),
    ({}, {"traceparent": 5}, 200),
    ({}, {PROTOCOL_VERSION_META_KEY: "1999-01-01"}, 400),
    ({}, {CLIENT_CAPABILITIES_META_KEY: {"elicitation": {}, "roots": {"listChanged": True}}}, 200),
    ({}, {CLIENT_CAPABILITIES_META_KEY: []}, 400),
    ({}, {CLIENT_CAPABILITIES_META_KEY: None}, 400),
    ({}, {CLIENT_CAPABILITIES_META_KEY: {"roots": 5}}, 400),
    ({}, {CLIENT_CAPABILITIES_META_KEY: {"extensions": []}}, 400),
    ({}, {CLIENT_INFO_META_KEY: {"name": "x", "version": "1"}}, 200),
    ({}, {CLIENT_INFO_META_KEY: {"name": "x"}}, 400),
    ({}, {CLIENT_INFO_META_KEY: "x"}, 400),
    ({}, {LOG_LEVEL_META_KEY: "debug"}, 200),
    ({}, {LOG_LEVEL_META_KEY: "loud"}, 400),
    ({}, {LOG_LEVEL_META_KEY: 5}, 400),
    ({}, {"progressToken": "x"}, 200),
    ({}, {"progressToken": {}}, 400),
]

# A header instead of the usual one, the status that it gets, and whether the SDK's way of this era answers.
HEADERS = [
    ("mcp-name", "fx_outside", 400, True),
    ("mcp-name", "=?base64?ZnhfZWNobw==?=", 200, False),
    ("mcp-name", "=?base64?ZnhfZWNobw=?=", 400, True),
    ("mcp-method", "tools/list", 400, True),
    ("mcp-protocol-version", "2025-11-25", 200, None),
    ("mcp-protocol-version", "1999-01-01", 400, True),
    ("accept", "application/json", 200, False),
    ("accept", "application/json,text/event-stream", 200, False),
    ("accept", "*/*", 200, False),
    ("accept", "application/*", 200, True),
    ("accept", "text/event-stream", 406, True),
    ("accept", "text/plain", 406, True),
    ("accept", "application/jsonl", 406, True),
    ("accept", "", 406, True),
    ("content-type", "application/json; charset=utf-8", 200, True),
    ("content-type", "text/plain", 400, True),
    ("content-type", "", 400, True),
    ("mcp-param-text", "x", 200, False),
    ("origin", "https://evil.example.com", 403, None),
    ("host", "evil.example.com", 421, None),
    ("content-length", "99999999999", 413, None),
]

# A header with what comes first and what comes second of it, and the status.
TWICE = [
    ("accept", JSON, JSON, 200),
    ("accept", JSON, "text/plain", 200),
    ("accept", "text/plain", JSON, 406),
    ("mcp-method", "tools/call", "tools/call", 400),
    ("mcp-method", "tools/list", "tools/call", 400),
    ("mcp-method", "tools/call", "tools/list", 400),
    ("mcp-name", "fx_echo", "fx_echo", 400),
    ("mcp-name", "fx_outside", "fx_echo", 400),
    ("mcp-protocol-version", "2026-07-28", "2026-07-28", 400),
    ("content-type", JSON, JSON, 200),
    ("content-type", JSON, "text/plain", 200),
    ("content-type", "text/plain", JSON, 400),
    ("authorization", "Bearer {token}", "Bearer {token}", 401),
    ("authorization", "Bearer nobody", "Bearer {token}", 401),
    ("host", "localhost", "localhost", 421),
]

# The headers of the mirrored tool's arguments, and the status.
MIRRORED: list[tuple[list[tuple[str, str]], int]] = [
    ([("mcp-param-region", "docks"), ("mcp-param-quarter", "north")], 200),
    ([("mcp-param-region", "=?base64?ZG9ja3M=?="), ("mcp-param-quarter", "north")], 200),
    ([("mcp-param-region", "market"), ("mcp-param-quarter", "north")], 400),
    ([("mcp-param-region", "docks"), ("mcp-param-quarter", "south")], 400),
    ([("mcp-param-region", "docks")], 400),
    ([], 400),
    ([("mcp-param-region", "docks"), ("mcp-param-region", "docks"), ("mcp-param-quarter", "north")], 400),
]


class Headed(Arguments):
    region: Annotated[str, Field(json_schema_extra={"x-mcp-header": "Region"})]
    quarter: Annotated[str | None, Field(json_schema_extra={"x-mcp-header": "Quarter"})] = None


async def headed(arguments: Headed, call: Call, _seen: Seen) -> Echo:
    return Echo(said=f"{arguments.region} {arguments.quarter}", count=0, tainted=call.tainted)


WITH_MIRRORED = replace(ROOM, tools=(*ROOM.tools, row("fx_headed", headed, "retrieval")))


@dataclass(frozen=True)
class Heard:
    """What came of one request: the answer, what stands on the audit, and whether the session is tainted now."""

    status: int
    body: object
    audit: list[dict[str, object]]
    tainted: object
    escaped: bool = field(compare=False)
    """Whether what is no ASCII is escaped, as the SDK does it and the quick way does not."""


@dataclass
class House:
    runtime: Runtime
    door: InnerDoor
    seen: Seen
    people: int = 0

    async def heard(self, headers: Sequence[tuple[str, str]], body: bytes, *, silver: bool = True) -> Heard:
        """What comes of a message, sent as it is, of somebody who was never here before; {token} stands for theirs."""
        self.people += 1
        token = await self.token_of(f"person:p{self.people}", silver=silver)
        before = len(await self.audit())
        status, content = await self.door.post(_raw(headers, token), body)
        rows = (await self.audit())[before:]
        _, echo = await self.door.post(_raw(usual("fx_echo"), token), written("fx_echo"))
        tainted = json.loads(echo)["result"]["structuredContent"]["tainted"]
        return Heard(status, _unnamed(content), rows, tainted, escaped=rb"\u00e9" in content)

    async def both(
        self, headers: Sequence[tuple[str, str]], body: bytes, *, silver: bool = True
    ) -> tuple[Heard, Heard]:
        """What comes of a message, and of the same with a content type that the SDK alone reads."""
        assert ("content-type", JSON) in headers
        slowly = [(name, SLOWLY if name == "content-type" else value) for name, value in headers]
        return await self.heard(headers, body, silver=silver), await self.heard(slowly, body, silver=silver)

    async def both_bodies(
        self, headers: Sequence[tuple[str, str]], name: str, arguments: object
    ) -> tuple[Heard, Heard]:
        """What comes of a call, and of the same with one word more in its `_meta`, which leaves it to the SDK."""
        body = written(name, arguments)
        more = body.replace(b'"_meta": {', b'"_meta": {"tests/more": 1, ')
        assert more != body
        return await self.heard(headers, body), await self.heard(headers, more)

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
    async with open_runtime(settings, (WITH_MIRRORED, TALKS), extra_services=extra) as runtime:
        door = InnerDoor(
            Protocol(runtime.gate, runtime.listings, runtime.limits, runtime.bus), runtime.identities, settings
        )
        async with door.serving():
            yield House(runtime, door, seen)


def usual(name: str) -> list[tuple[str, str]]:
    """The headers of a usual call."""
    return [("host", "localhost"), *modern("{token}", "tools/call", name).items()]


def listing() -> list[tuple[str, str]]:
    """The headers of a usual list of tools."""
    return [("host", "localhost"), *modern("{token}", "tools/list").items()]


def instead(name: str, *values: str) -> list[tuple[str, str]]:
    """The headers of a usual call with others of one name."""
    return [(key, value) for key, value in usual("fx_echo") if key != name] + [(name, value) for value in values]


def _raw(headers: Sequence[tuple[str, str]], token: str) -> list[tuple[bytes, bytes]]:
    return [(name.encode(), value.replace("{token}", token).encode("latin-1")) for name, value in headers]


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
    quick, slow = await house.both(usual(name), written(name, arguments), silver=silver)

    assert quick == slow
    assert quick.audit or quick.status != 200


async def test_what_is_wrong_with_a_message_is_told_alike(house: House) -> None:
    for what, given in BODIES.items():
        body = given if isinstance(given, bytes) else json.dumps(given).encode()
        quick, slow = await house.both(usual("fx_echo"), body)

        assert quick == slow, what


async def test_a_list_of_tools_is_answered_or_refused_alike(house: House) -> None:
    for more, meta, status in LISTS:
        asked: Any = request("tools/list", {}) | more
        asked["params"]["_meta"] |= meta
        quick, slow = await house.both(listing(), json.dumps(asked).encode())

        assert quick == slow, (more, meta)
        assert quick.status == status, (more, meta)


async def test_headers_that_are_not_the_usual_ones_come_to_the_same(house: House) -> None:
    for name, value, status, by_sdk in HEADERS:
        quick, slow = await house.both_bodies(instead(name, value), "fx_echo", {"text": "é"})

        assert quick == slow, (name, value)
        assert quick.status == status, (name, value)
        if status == 200 and by_sdk is not None:
            assert (quick.escaped, slow.escaped) == (by_sdk, True), (name, value)


async def test_a_header_that_comes_twice_is_read_as_the_sdk_reads_it(house: House) -> None:
    for name, first, second, status in TWICE:
        quick, slow = await house.both_bodies(instead(name, first, second), "fx_echo", {"text": "é"})

        assert quick == slow, (name, first, second)
        assert quick.status == status, (name, first, second)


async def test_arguments_that_stand_in_headers_too_are_compared_whichever_way_a_call_is_read(house: House) -> None:
    for headers, status in MIRRORED:
        sent = [*usual("fx_headed"), *headers]
        quick, slow = await house.both_bodies(sent, "fx_headed", {"region": "docks", "quarter": "north"})

        assert quick == slow, headers
        assert quick.status == status, headers


async def test_usual_messages_are_answered_without_the_sdk(house: House) -> None:
    called = await house.both(usual("fx_echo"), written("fx_echo", {"text": "é"}))
    listed = await house.both(listing(), json.dumps(request("tools/list", {}) | {"id": "é"}).encode())

    assert [each.escaped for each in (*called, *listed)] == [False, True, False, True]


async def test_a_list_over_the_rate_is_refused_alike(settings_for: Callable[..., Settings], redis: object) -> None:
    _ = redis  # flushed before the test
    body = json.dumps(request("tools/list", {})).encode()
    async with open_house(settings_for(rate_per_s=1)) as house:
        found: list[tuple[int, object]] = []
        for who, kind in (("person:anna", JSON), ("person:tom", SLOWLY)):
            headers = [*(pair for pair in listing() if pair[0] != "content-type"), ("content-type", kind)]
            sent = _raw(headers, await house.token_of(who, silver=False))
            answers = [await house.door.post(sent, body) for _ in range(20)]
            refused = [(status, json.loads(answer)) for status, answer in answers if b'"error"' in answer]
            status, told = refused[0]
            assert told["error"]["data"].pop("retry_after_s") > 0
            found.append((status, told))

    assert found[0] == found[1]
    assert found[0][0] == 200


@pytest.mark.parametrize("kind", [JSON, SLOWLY])
async def test_a_call_is_part_of_the_trace_that_its_meta_names(house: House, traced: Traced, kind: str) -> None:
    place = {"traceparent": f"00-{TRACE:032x}-{CLIENTS:016x}-01", "tracestate": "vendor=1"}
    elsewhere = ("traceparent", f"00-{1:032x}-{1:016x}-01")

    heard = await house.heard([*instead("content-type", kind), elsewhere], json.dumps(about_call(dict(place))).encode())

    assert heard.status == 200
    span = next(each for each in traced.get_finished_spans() if each.kind.name == "SERVER")
    assert (span.context and span.context.trace_id, span.parent and span.parent.span_id) == (TRACE, CLIENTS)
    assert span.context
    assert span.context.trace_state.to_header() == "vendor=1"


@pytest.mark.parametrize(("name", "arguments"), [call for call in CALLS if call not in NO_TIERS], ids=str)
async def test_a_tier_s_call_comes_to_the_same_by_the_library_and_by_hand(
    house: House, name: str, arguments: Any
) -> None:
    found: list[tuple[Called, list[dict[str, object]]]] = []
    for who, post in (("person:anna", None), ("person:tom", house.door.post)):
        asker, before = await asker_of(house.runtime, who, "engineer"), len(await house.audit())
        asker = Asker(caller=asker.caller, conversation=f"cnv_of_{who[7:]}")
        async with HubTools.opened(house.door.client, house.runtime.tokens.mint, Counts(), post) as tools:
            called = await tools.call(asker, Tier.SILVER, name, arguments, deadline=Deadline.after(30))
        said: Any = _unnamed(orjson.dumps([called.text, called.structured]))
        called = replace(called, seconds=0.0, text=said[0], structured=said[1])
        found.append((called, (await house.audit())[before:]))

    assert found[0] == found[1]


async def test_a_client_that_leaves_a_usual_call_ends_a_read(house: House) -> None:
    tools = HubTools.opened(house.door.client, house.runtime.tokens.mint, Counts(), house.door.post)
    async with tools as opened:
        asker = await asker_of(house.runtime, "person:anna", "engineer")
        calling = asyncio.create_task(opened.call(asker, Tier.SILVER, "fx_wait_plain", {}, deadline=Deadline.after(30)))
        await house.seen.started.wait()
        calling.cancel()
        await asyncio.wait({calling})

    assert house.seen.cancelled.is_set()
    assert not house.seen.finished.is_set()
