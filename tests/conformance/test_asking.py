"""Asking a client in the middle of a call: with clients nobody here wrote, over two hubs, and with states that do not hold."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import httpx2
import mcp_types as types
import orjson
import pytest
from mcp import Client, MCPError
from mcp.client import ClientRequestContext
from mcp.client.streamable_http import streamable_http_client

from body_broker.audit.trail import tail
from body_broker.calls import Caller
from mcp_servers.hub.protocol import Protocol
from tests.conformance.conftest import IDENTITY, Pair
from tests.mcp_servers.hub.test_gate import modern
from tests.waiting import wait_until

STATEFUL = "test_input_required_result_request_state"
ELICITATION: dict[str, Any] = {"elicitation": {}}


async def fill_in(context: ClientRequestContext, params: types.ElicitRequestParams) -> types.ElicitResult:
    _ = context
    assert isinstance(params, types.ElicitRequestFormParams)
    values: dict[str, Any] = {"name": "Osric", "color": "blue", "context": "the ferry"}
    return types.ElicitResult(action="accept", content={k: values[k] for k in params.requested_schema["properties"]})


@asynccontextmanager
async def official_client(pair: Pair, mode: str = "auto") -> AsyncGenerator[Client]:
    async with (
        httpx2.AsyncClient(timeout=60) as http,
        Client(
            streamable_http_client(pair.balancer.url, http_client=http), elicitation_callback=fill_in, mode=mode
        ) as client,
    ):
        yield client


async def raw_call(pair: Pair, params: dict[str, Any], token: str | None = None, **capabilities: Any) -> dict[str, Any]:
    """The answer to one bare tools/call: through the balancer under its identity, or to one hub with a token of one's own."""
    meta = {
        "io.modelcontextprotocol/protocolVersion": "2026-07-28",
        "io.modelcontextprotocol/clientCapabilities": capabilities,
    }
    whole: dict[str, Any] = {"name": STATEFUL, "arguments": {}, "_meta": meta} | params
    body = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": whole}
    headers = modern(token or "", "tools/call", whole["name"])
    if token is None:
        del headers["authorization"]
    async with httpx2.AsyncClient(timeout=60) as http:
        answer = await http.post(pair.balancer.url if token is None else pair.hub_url, headers=headers, json=body)
    found: dict[str, Any] = answer.json()
    return found


def answered(asked: dict[str, Any]) -> dict[str, Any]:
    """The parameters of the next round."""
    return {
        "requestState": asked["result"]["requestState"],
        "inputResponses": {"confirm": {"action": "accept", "content": {"ok": True}}},
    }


async def test_the_official_client_answers_over_several_rounds_that_go_to_different_hubs(pair: Pair) -> None:
    async with official_client(pair) as client:
        result = await client.call_tool("test_input_required_result_multi_round", {})
        prompt = await client.get_prompt("test_input_required_result_prompt")
    assert result.content == [types.TextContent(text="Osric likes blue.")]
    assert prompt.messages[0].content == types.TextContent(text="Use this context: the ferry")
    assert min(pair.balancer.served.values()) >= 2


async def test_the_official_client_answers_over_a_stream(pair: Pair) -> None:
    runtime = pair.runtime

    async def who() -> Caller:
        return Caller(chain=(IDENTITY,), roles={}, session="stream")

    protocol = Protocol(runtime.gate, runtime.listings, runtime.limits, runtime.bus, process_caller=who)
    async with Client(protocol.server, mode="2026-07-28", elicitation_callback=fill_in) as client:
        result = await client.call_tool("test_input_required_result_multi_round", {})
    assert result.content == [types.TextContent(text="Osric likes blue.")]


async def test_a_client_of_the_older_revision_is_told_what_it_would_need(pair: Pair) -> None:
    async with official_client(pair, mode="legacy") as client:
        result = await client.call_tool(STATEFUL, {})
        with pytest.raises(MCPError, match="input_required"):
            await client.get_prompt("test_input_required_result_prompt")
    assert result.is_error
    assert result.structured_content is not None
    assert result.structured_content["error"]["code"] == "input_required"
    assert result.structured_content["error"]["needs"] == ["form"]


@pytest.mark.parametrize(
    "capabilities", [{}, {"sampling": {}}, {"elicitation": {"url": {}}}], ids=["none", "another", "links alone"]
)
async def test_a_client_that_did_not_declare_it_is_not_asked(pair: Pair, capabilities: dict[str, Any]) -> None:
    refused = await raw_call(pair, {}, **capabilities)
    assert refused["error"]["code"] == -32021
    assert refused["error"]["data"] == {"requiredCapabilities": {"elicitation": {"form": {}}}}


async def test_what_a_client_answers_is_recorded_beside_the_arguments(pair: Pair) -> None:
    pool = pair.runtime.stores.pool
    asked = await raw_call(pair, {}, **ELICITATION)
    complete = await raw_call(pair, answered(asked), **ELICITATION)
    assert complete["result"]["structuredContent"] == {"said": "state-ok"}

    async def kept() -> bool:
        found = [(e.record.kind, e.record.verdict) for e in await tail(pool, action=STATEFUL)]
        return sorted(found) == [("decision", "allow"), ("decision", "allow"), ("outcome", "input_required")]

    await wait_until(kept, "the records of both rounds")
    bodies = [orjson.loads(r["content"]) for r in await pool.fetch("SELECT content FROM audit_body")]
    assert {"prompt": "", "message": "", "@answers": {"confirm": {"ok": True}}} in bodies


async def test_a_state_serves_nobody_else(pair: Pair) -> None:
    asked = await raw_call(pair, {}, **ELICITATION)
    tokens = pair.runtime.tokens
    stranger = (await tokens.issue("person:sre", roles=("sre",), ttl_s=600)).token
    refused = await raw_call(pair, answered(asked), stranger, **ELICITATION)
    again = await raw_call(pair, answered(asked), (await tokens.issue(IDENTITY, ttl_s=600)).token, **ELICITATION)
    assert "too old" in refused["error"]["message"]
    assert again["result"]["structuredContent"] == {"said": "state-ok"}


@pytest.mark.parametrize(
    "changed",
    [
        {"name": "test_input_required_result_tampered_state"},
        {"arguments": {"message": "something else"}},
        {"requestState": "x"},
        {"requestState": 7},
        {"inputResponses": None},
        {"inputResponses": {"confirm": {"action": "perhaps"}}},
    ],
    ids=["another tool", "other arguments", "no state", "no text", "no answers", "no form of the protocol"],
)
async def test_a_round_that_does_not_hold_is_refused_and_recorded(pair: Pair, changed: dict[str, Any]) -> None:
    asked = await raw_call(pair, {}, **ELICITATION)
    refused = await raw_call(pair, answered(asked) | changed, **ELICITATION)
    assert refused["error"]["code"] == types.INVALID_PARAMS
    assert refused["error"]["data"]["code"] == "bad_input"

    async def recorded() -> bool:
        return any(e.record.verdict == "bad_input" for e in await tail(pair.runtime.stores.pool, kind="refusal"))

    await wait_until(recorded, "the refusal is on the audit")


async def test_rows_that_never_ask_do_not_read_what_comes_along(pair: Pair) -> None:
    done = await raw_call(pair, {"name": "test_simple_text", "requestState": "x", "inputResponses": None})
    assert done["result"]["resultType"] == "complete"
