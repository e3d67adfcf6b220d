"""Requests that other servers fell to: made to a hub over HTTP, with ids, fields and protocols that are somebody else's."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx2
from mcp import MCPError

from tests.mcp_servers.hub.conftest import Hub, error_of, hub, open_hub, patient_engines, patient_models, settings_for
from tests.mcp_servers.hub.test_gate import modern, request

__all__ = ["hub", "open_hub", "patient_engines", "patient_models", "settings_for"]  # fixtures

_FIELDS = (
    "..",
    "../operations",
    "%2e%2e%2foperations",
    "a%2f..%2f..%2foperations",
    "a?x=1",
    "a#b",
    "a%00",
    "/etc/passwd",
    "..%5c..",
)


async def _said(http: httpx2.AsyncClient, url: str, headers: dict[str, str], tool: str, **arguments: object) -> Any:
    body = request("tools/call", {"name": tool, "arguments": arguments})
    return await http.post(url, json=body, headers=headers | {"mcp-method": "tools/call", "mcp-name": tool})


async def test_a_session_s_id_is_never_given_and_makes_nobody_somebody_else(hub: Hub) -> None:
    anna, bruno = await hub.token("person:anna", "engineer"), await hub.token("person:bruno")
    async with httpx2.AsyncClient(timeout=60) as http:
        hers = await _said(http, hub.url, modern(anna, "tools/call", "whoami"), "whoami")
        assert "mcp-session-id" not in hers.headers
        session = hers.json()["result"]["structuredContent"].get("session", "person:anna")
        for stolen in (str(session), "person:anna", "x"):
            headers = modern(bruno, "tools/call", "whoami") | {"mcp-session-id": stolen}
            his = await _said(http, hub.url, headers, "whoami")
            assert "mcp-session-id" not in his.headers
            assert "person:anna" not in his.text
            assert "person:bruno" in his.text


async def test_no_field_of_a_resource_s_uri_leads_to_another_resource(hub: Hub) -> None:
    async with hub.client("person:anna", "engineer", "designer") as client:
        operations = (await client.read_resource("game://operations")).contents
        templates = [each.uri_template for each in (await client.list_resource_templates()).resource_templates]
        assert "game://npc/{id}" in templates
        for template in templates:
            for field in _FIELDS:
                try:
                    answer = await client.read_resource(template.split("{")[0] + field)
                except MCPError:
                    continue
                else:  # what is of that name and template: of events there may be none
                    assert str(answer.contents) != str(operations), (
                        template,
                        field,
                    )
                    assert '"operations"' not in str(answer.contents), (template, field)


async def test_calls_of_two_principals_at_once_are_answered_each_to_its_own(hub: Hub) -> None:
    tokens = {name: await hub.token(f"person:{name}", "engineer") for name in ("anna", "bruno")}
    async with httpx2.AsyncClient(timeout=120) as http:

        async def one(name: str, number: int) -> tuple[str, str, str]:
            headers = modern(tokens[name], "tools/call")
            said = await _said(http, hub.url, headers, "fx_echo", text=f"{name} {number}")
            who = await _said(http, hub.url, headers, "whoami")
            return name, said.text, who.text

        answers = await asyncio.gather(*(one(name, number) for number in range(40) for name in tokens))

    assert len(answers) == 80
    for place, (name, said, who) in enumerate(answers):
        assert f'{name} {place // 2}"' in said.replace("\\", "")
        assert f"person:{name}" in who
        other = "bruno" if name == "anna" else "anna"
        assert other not in said + who


async def test_nobody_gets_a_websocket(hub: Hub) -> None:
    headers = modern(await hub.token("person:anna"), "tools/list") | {
        "connection": "Upgrade", "upgrade": "websocket", "sec-websocket-version": "13", "sec-websocket-key": "dGhlIHNhbXBsZSBub25jZQ==",
    }  # fmt: skip
    async with httpx2.AsyncClient(timeout=60) as http:
        for path in ("/mcp", "/", "/healthz", "/ws"):
            answer = await http.get(hub.base + path, headers=headers | {"origin": "https://evil.example.com"})
            assert answer.status_code == 403, path
            answer = await http.get(hub.base + path, headers=headers)
            assert answer.status_code != 101, path
    async with hub.client("person:anna") as client:
        assert not (await client.call_tool("whoami", {})).is_error


async def test_a_tool_s_name_that_is_nobodys_is_refused_though_it_looks_like_one_of_ours(hub: Hub) -> None:
    async with hub.client("person:anna", "engineer") as client:
        for name in ("", "who\u0430mi", "WHOAMI", "whoami ", "../whoami", "whoami\u200b"):
            try:
                answer = await client.call_tool(name, {})
            except MCPError:  # a protocol error is a refusal too
                continue
            else:
                assert error_of(answer)["code"] == "unknown_tool"


async def test_an_argument_that_is_huge_or_deep_is_refused(hub: Hub) -> None:
    deep: Any = "x"
    for _ in range(100):
        deep = {"a": deep}
    async with hub.client("person:anna", "engineer") as client:
        for value in ("A" * 1_048_576, deep):
            assert error_of(await client.call_tool("search_lore", {"query": value}))["code"] in {
                "bad_input",
                "too_large",
            }
            assert error_of(await client.call_tool("whoami", {"x": value}))["code"] in {"bad_input", "too_large"}
