"""The front: Host, Origin and token on every route, bad requests, sizes, probes; nothing leaked, the hub up afterwards."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator

import httpx2
import pytest

from mcp_servers.hub.front import Hosts
from tests.mcp_servers.hub.conftest import Hub, OpenHub
from tests.mcp_servers.hub.test_gate import modern, request

ROUTES = ("/mcp", "/healthz", "/readyz", "/metrics", "/", "/nowhere")


async def test_an_evil_host_is_refused_on_every_route_and_the_setting_is_named(hub: Hub) -> None:
    token = await hub.token("person:anna", "sre")
    async with httpx2.AsyncClient(timeout=60) as http:
        for path in ROUTES:
            for host in (
                "evil.example.com",
                "127.0.0.1.evil.example.com",
                "localhost@evil.example.com",
                "localhost:8x",
            ):
                headers = {"host": host, "authorization": f"Bearer {token}"}
                answer = await http.get(hub.base + path, headers=headers)
                assert answer.status_code == 421, (path, host)
                assert "BODY_BROKER_ALLOWED_HOSTS" in answer.json()["error"]["next_step"]


async def test_an_evil_origin_is_refused_on_every_route(hub: Hub) -> None:
    token = await hub.token("person:anna", "sre")
    async with httpx2.AsyncClient(timeout=60) as http:
        for path in ROUTES:
            for origin in ("https://evil.example.com", "null", "http://127.0.0.1.evil.example.com", "file://localhost"):
                headers = {"origin": origin, "authorization": f"Bearer {token}"}
                answer = await http.get(hub.base + path, headers=headers)
                assert answer.status_code == 403, (path, origin)


@pytest.mark.parametrize(
    ("host", "allowed"),
    [
        ("127.0.0.1:8080", True),
        ("localhost", True),
        ("[::1]:8080", True),
        ("hub.example.com", True),
        ("HUB.example.com:443", True),
        ("listed.example", True),
        ("portly.example:9000", True),
        ("portly.example:9001", False),
        ("portly.example", False),
        ("evil.example", False),
        ("localhost.evil.example", False),
        ("127.0.0.1:80:80", False),
        ("localhost:8x", False),
    ],
)
def test_hosts_are_loopback_the_public_url_and_the_listed(host: str, *, allowed: bool) -> None:
    hosts = Hosts.of(
        bind_host="0.0.0.0",  # noqa: S104 - a wildcard is never a name
        public_url="https://hub.example.com",
        allowed_hosts=("listed.example", "portly.example:9000"),
    )
    assert hosts.allows(host) is allowed


async def test_no_identity_no_answer(hub: Hub) -> None:
    async with httpx2.AsyncClient(timeout=60) as http:
        for path in ("/mcp", "/metrics", "/", "/nowhere"):
            for header in (None, "Bearer", "Bearer nonsense", "Basic dXNlcjpwYXNz", "Bearer " + "x" * 10_000):
                headers = {"authorization": header} if header else {}
                answer = await http.post(hub.base + path, headers=headers, json={})
                assert answer.status_code == 401, (path, header)
                assert answer.headers["www-authenticate"].startswith("Bearer")
                assert answer.json()["error"]["code"] == "unauthenticated"


async def test_probes_need_no_token_and_tell_only_up_or_down(hub: Hub) -> None:
    async with httpx2.AsyncClient(timeout=60) as http:
        alive, ready = await http.get(f"{hub.base}/healthz"), await http.get(f"{hub.base}/readyz")
    assert (alive.status_code, alive.json()) == (200, {"status": "alive"})
    assert (ready.status_code, ready.json()) == (200, {"ready": True, "down": []})


async def test_metrics_are_decided_by_policy(hub: Hub) -> None:
    async with httpx2.AsyncClient(timeout=60) as http:
        seen: dict[str, httpx2.Response] = {}
        for principal, roles in (("tier:silver", ()), ("person:anna", ("sre",))):
            headers = {"authorization": f"Bearer {await hub.token(principal, *roles)}"}
            seen[principal] = await http.get(f"{hub.base}/metrics", headers=headers)
    assert seen["tier:silver"].status_code == 403
    assert seen["tier:silver"].json()["error"]["rules"] == ["default-deny:admin_read"]
    assert seen["person:anna"].status_code == 200
    assert "body_broker_calls_total" in seen["person:anna"].text


BODIES: list[tuple[str, bytes]] = [
    ("empty", b""),
    ("not JSON", b"{"),
    ("binary", b"\xff\xfe\x00\x01" * 50),
    ("a batch", b"[]"),
    ("a number", b"7"),
    ("no method", b'{"jsonrpc":"2.0","id":1}'),
    ("wrong version", b'{"jsonrpc":"1.0","id":1,"method":"tools/list"}'),
    ("id is an object", b'{"jsonrpc":"2.0","id":{},"method":"tools/list"}'),
    ("nested deep", b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":' + b"[" * 5000 + b"]" * 5000 + b"}"),
    ("huge number", b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"n":' + b"9" * 5000 + b"}}"),
    ("params is a list", b'{"jsonrpc":"2.0","id":1,"method":"tools/list","params":[]}'),
    ("lone surrogate", b'{"jsonrpc":"2.0","id":1,"method":"tools/\\ud800"}'),
]


@pytest.mark.parametrize("version", ["2026-07-28", "2025-11-25"])
async def test_malformed_messages_get_a_clear_error_and_the_hub_stays_up(hub: Hub, version: str) -> None:
    token = await hub.token("tier:silver")
    headers = modern(token, "tools/list") | {"mcp-protocol-version": version}
    async with httpx2.AsyncClient(timeout=60) as http:
        for what, body in BODIES:
            answer = await http.post(hub.url, headers=headers, content=body)
            clear = 400 <= answer.status_code < 500 or (answer.status_code == 202 and not answer.content)
            assert clear or "error" in answer.json(), (what, answer.status_code, answer.text)
            assert "Traceback" not in answer.text
        fine = await http.post(hub.url, headers=modern(token, "tools/list"), json=request("tools/list", {}))
    assert fine.status_code == 200


async def test_a_body_over_the_limit_is_refused_whether_it_says_its_length_or_not(open_hub: OpenHub) -> None:
    async with open_hub(request_bytes_max=2000) as hub, httpx2.AsyncClient(timeout=60) as http:
        headers = modern(await hub.token("tier:silver"), "tools/call", "fx_echo")
        body = json.dumps(request("tools/call", {"name": "fx_echo", "arguments": {"text": "x" * 3000}})).encode()
        told = await http.post(hub.url, headers=headers, content=body)
        chunked = await http.post(hub.url, headers=headers, content=in_parts(body))
    assert (told.status_code, chunked.status_code) == (413, 413)


async def in_parts(body: bytes) -> AsyncGenerator[bytes]:
    for start in range(0, len(body), 500):
        yield body[start : start + 500]


async def test_the_ready_bytes_of_tools_list_equal_what_the_sdk_answers(hub: Hub) -> None:
    token = await hub.token("person:anna", "engineer")
    async with httpx2.AsyncClient(timeout=60) as http:
        fast = await http.post(hub.url, headers=modern(token, "tools/list"), json=request("tools/list", {}))
        slow = await http.post(
            hub.url, headers=modern(token, "tools/list"), json=request("tools/list", {"cursor": None})
        )
    assert fast.json() == slow.json()


async def test_mismatched_routing_headers_are_refused_for_the_fast_list_too(hub: Hub) -> None:
    token = await hub.token("tier:silver")
    async with httpx2.AsyncClient(timeout=60) as http:
        lied = await http.post(hub.url, headers=modern(token, "tools/list"), json=request("prompts/list", {}))
        versions = await http.post(
            hub.url,
            headers=modern(token, "tools/list") | {"mcp-protocol-version": "2026-07-29"},
            json=request("tools/list", {}),
        )
    assert lied.status_code == 400
    assert versions.status_code == 400


async def test_a_draining_hub_takes_no_new_call_and_ends_listening_streams(hub: Hub) -> None:
    async with hub.client("tier:silver") as client, client.listen(tools_list_changed=True) as events:
        hub.front.begin_draining()
        async with asyncio.timeout(60):
            assert [event async for event in events] == []
    async with httpx2.AsyncClient(timeout=60) as http:
        token = await hub.token("tier:silver")
        answer = await http.post(hub.url, headers=modern(token, "tools/list"), json=request("tools/list", {}))
        ready = await http.get(f"{hub.base}/readyz")
    assert answer.status_code == 503
    assert answer.json()["error"]["code"] == "draining"
    assert ready.json()["down"] == ["draining"]
