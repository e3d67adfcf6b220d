"""Which requests are usual, read off headers and body alone; whose clients send such; and that answers are written as the SDK writes them."""

from __future__ import annotations

import json
from typing import Any

import httpx2
import pytest
from fastmcp.client import Client as FastMcpClient
from fastmcp.client.transports import StreamableHttpTransport
from mcp import Client
from mcp.client.streamable_http import streamable_http_client
from mcp_types import CLIENT_CAPABILITIES_META_KEY, LOG_LEVEL_META_KEY, JSONRPCResponse

from mcp_servers.hub.requests import WAIT_META
from mcp_servers.hub.usual import UsualCall, UsualList, told, usual
from tests.mcp_servers.hub.conftest import Hub
from tests.mcp_servers.hub.test_gate import modern, request

CALL = request("tools/call", {"name": "fx_echo", "arguments": {"text": "x"}})
LIST = request("tools/list", {})
MIRRORED = {"fx_headed"}


def head_of(method: str, name: str | None = None, **more: str | None) -> dict[bytes, bytes]:
    """Usual headers, with others in place of some; None leaves one out."""
    found = modern("token", method, name) | {key.replace("_", "-"): value for key, value in more.items()}
    return {key.encode(): value.encode("latin-1") for key, value in found.items() if value is not None}


def read(found: object, head: dict[bytes, bytes] | None = None) -> UsualCall | UsualList | None:
    """What is usual of a message, by default with a call's headers."""
    body = found if isinstance(found, bytes) else json.dumps(found).encode()
    return usual(head_of("tools/call", "fx_echo") if head is None else head, body, MIRRORED)


def call(params: dict[str, Any] | None = None, meta: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    """A usual call with more, or other, in the message, its parameters and its `_meta`."""
    found = json.loads(json.dumps(CALL))
    found["params"] |= params or {}
    found["params"]["_meta"] |= meta or {}
    return found | more


ODD: list[Any] = [
    b"",
    b"{",
    b"\xff\xfe",
    b"[]",
    b"7",
    b"null",
    b"NaN",
    b'"tools/call"',
    [CALL],
    {},
    call(id=None),
    call(id=True),
    call(id=1.0),
    call(id=float("nan")),
    call(id=[]),
    call(id=2**53),
    call(id=-(2**60)),
    call(id="\ud800"),
    call(id="a\x00b"),
    call(jsonrpc="1.0"),
    call(jsonrpc=2.0),
    call(more=1),
    call(method="tools/list"),
    call(method=None),
    CALL | {"params": None},
    CALL | {"params": []},
    {key: value for key, value in CALL.items() if key != "id"},
    {key: value for key, value in CALL.items() if key != "params"},
    CALL | {"params": {"name": "fx_echo"}},
    CALL | {"params": {"name": "fx_echo", "_meta": []}},
    CALL | {"params": {"name": "fx_echo", "_meta": {}}},
    call({"name": None}),
    call({"name": 5}),
    call({"name": "fx_outside"}),
    call({"arguments": []}),
    call({"arguments": "{}"}),
    call({"inputResponses": {}}),
    call({"requestState": "x"}),
    call(meta={CLIENT_CAPABILITIES_META_KEY: None}),
    call(meta={CLIENT_CAPABILITIES_META_KEY: []}),
    call(meta={CLIENT_CAPABILITIES_META_KEY: {"extensions": {}}}),
    call(meta={LOG_LEVEL_META_KEY: "debug"}),
    call(meta={"progressToken": 1}),
    call(meta={"of/another": 1}),
    b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    b'{"jsonrpc":"2.0","id":' + b"9" * 5000 + b',"method":"tools/call","params":{}}',
]


@pytest.mark.parametrize("id_", [1, 0, -7, 2**53 - 1, "", "a", "é 𝄞"])
def test_a_usual_call_is_read_with_all_that_the_gate_needs(id_: int | str) -> None:
    found = read(call(id=id_))

    assert found == UsualCall(id_, "fx_echo", {"text": "x"}, call()["params"])


@pytest.mark.parametrize(
    "found",
    [
        call({"arguments": None}),
        call({"arguments": {}}),
        call(meta={WAIT_META: "what is no number is the gate's to refuse"}),
        call(meta={"traceparent": 5, "tracestate": "x"}),
        call(meta={CLIENT_CAPABILITIES_META_KEY: {"elicitation": {"form": {}}, "roots": 5}}),
        call({"arguments": {"weight": float("nan")}}),
    ],
    ids=lambda found: json.dumps(found["params"])[:60],
)
def test_a_call_is_usual_whatever_only_the_gate_reads(found: dict[str, Any]) -> None:
    assert isinstance(read(found), UsualCall)


@pytest.mark.parametrize(
    "found", ODD, ids=lambda found: (found.decode("latin-1") if isinstance(found, bytes) else json.dumps(found))[:90]
)
def test_a_message_of_any_other_form_is_the_sdk_s(found: object) -> None:
    assert read(found) is None


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("accept", None),
        ("accept", "text/event-stream"),
        ("accept", "application/jsonl"),
        ("accept", "application/json;q=0.5"),
        ("content_type", None),
        ("content_type", "application/json; charset=utf-8"),
        ("content_type", "text/plain"),
        ("mcp_method", None),
        ("mcp_method", "tools/list"),
        ("mcp_method", "tools/\xe9"),
        ("mcp_name", None),
        ("mcp_name", "fx_outside"),
        ("mcp_protocol_version", None),
        ("mcp_protocol_version", "2025-11-25"),
    ],
)
def test_a_message_with_any_other_header_is_the_sdk_s(name: str, value: str | None) -> None:
    assert read(CALL, head_of("tools/call", "fx_echo")) is not None
    assert read(CALL, head_of("tools/call", "fx_echo", **{name: value})) is None


def test_a_call_of_a_tool_whose_arguments_stand_in_headers_is_the_sdk_s() -> None:
    assert read(call({"name": "fx_headed"}), head_of("tools/call", "fx_headed")) is None


def test_a_list_is_usual_where_it_asks_for_nothing_but_the_tools() -> None:
    head = head_of("tools/list")

    params: Any = LIST["params"]
    assert read(LIST | {"id": "a"}, head) == UsualList("a", params)
    assert read(request("tools/list", {"cursor": None}), head) is None
    assert read(LIST | {"method": "prompts/list"}, head_of("prompts/list")) is None
    assert read(LIST, head | {b"accept": b"application/jsonl"}) is None


@pytest.mark.parametrize(
    "result",
    [
        {"content": [{"type": "text", "text": "é"}], "structuredContent": {"none": None}},
        {"weight": float("nan"), "more": [float("inf"), float("-inf")]},
        {"count": 2**70, "weight": float("nan")},
        {"text": "\ud800", "weight": float("inf")},
        {"\udc00": 1},
    ],
    ids=ascii,
)
def test_an_answer_is_what_the_sdk_would_write_and_always_json(result: dict[str, Any]) -> None:
    sdks = JSONRPCResponse(jsonrpc="2.0", id=1, result=result).model_dump(mode="json", by_alias=True, exclude_none=True)

    assert json.loads(told(1, result), parse_constant=pytest.fail) == json.loads(json.dumps(sdks))


async def test_the_official_client_s_calls_are_usual_and_a_stock_fastmcp_client_s_are_not(hub: Hub) -> None:
    sent: list[tuple[str, object]] = []

    async def hear(asked: httpx2.Request) -> None:
        head = {name.lower(): value for name, value in asked.headers.raw}
        meta = json.loads(asked.content)["params"]["_meta"]
        what = usual(head, asked.content, ())
        extra = [key for key in (LOG_LEVEL_META_KEY, "progressToken") if key in meta]
        if (method := head[b"mcp-method"].decode()) != "server/discover":
            sent.append((method, (type(what).__name__, extra)))

    def connect(
        headers: dict[str, str] | None = None,
        timeout: httpx2.Timeout | None = None,
        auth: httpx2.Auth | None = None,
        **more: Any,
    ) -> httpx2.AsyncClient:
        return httpx2.AsyncClient(headers=headers, timeout=timeout, auth=auth, **more, event_hooks={"request": [hear]})

    headers = {"authorization": f"Bearer {await hub.token('tier:silver')}"}
    async with (
        connect(headers=headers, timeout=httpx2.Timeout(60)) as http,
        Client(streamable_http_client(hub.url, http_client=http)) as official,
    ):
        await official.list_tools()
        await official.call_tool("fx_echo", {})
        await official.call_tool("fx_echo", {}, progress_callback=_unheard)
    transport = StreamableHttpTransport(hub.url, headers=headers, httpx_client_factory=connect)
    async with FastMcpClient(transport) as stock:
        await stock.list_tools()
        await stock.call_tool("fx_echo", {})

    assert sent == [
        ("tools/list", ("UsualList", [])),
        ("tools/call", ("UsualCall", [])),
        ("tools/call", ("NoneType", ["progressToken"])),
        ("tools/list", ("UsualList", [LOG_LEVEL_META_KEY])),
        ("tools/call", ("NoneType", [LOG_LEVEL_META_KEY, "progressToken"])),
    ]


async def _unheard(progress: float, total: float | None, message: str | None) -> None:
    _ = progress, total, message
