"""What an operation says on its way, as lines of its client's log. What 2025-11-25 wants of logs, tests/conformance shows."""

from __future__ import annotations

import httpx2
import mcp_types as types
import pytest
from mcp import Client
from mcp.client.streamable_http import streamable_http_client
from mcp_types import LoggingLevel

from tests.mcp_servers.hub.conftest import Hub
from tests.mcp_servers.hub.test_gate import modern, request


@pytest.mark.parametrize(
    ("level", "lines"), [("debug", ["begun"]), ("info", ["begun"]), ("warning", list[str]()), (None, list[str]())]
)
async def test_a_client_hears_the_lines_it_asked_for(hub: Hub, level: LoggingLevel | None, lines: list[str]) -> None:
    heard: list[str] = []

    async def listen(params: types.LoggingMessageNotificationParams) -> None:
        heard.append(params.data)

    hub.seen.release.set()
    headers = {"authorization": f"Bearer {await hub.token('tier:silver')}"}
    async with (
        httpx2.AsyncClient(headers=headers, timeout=60) as http,
        Client(streamable_http_client(hub.url, http_client=http), logging_callback=listen, log_level=level) as client,
    ):
        assert not (await client.call_tool("fx_wait", {})).is_error
    assert heard == lines


@pytest.mark.parametrize("level", [["info"], {"a": 1}, 7, None])
async def test_a_level_of_no_known_form_is_no_level_and_fails_nothing(hub: Hub, level: object) -> None:
    hub.seen.release.set()
    body = request("tools/call", {"name": "fx_wait", "arguments": {}})
    params = body["params"]
    assert isinstance(params, dict)
    params["_meta"][types.LOG_LEVEL_META_KEY] = level
    async with httpx2.AsyncClient(timeout=60) as http:
        answer = await http.post(
            hub.url, headers=modern(await hub.token("tier:silver"), "tools/call", "fx_wait"), json=body
        )
    assert '"isError":true' not in answer.text.replace(" ", "")
    assert "structuredContent" in answer.text
