"""How the front takes a body: whole before anything reads it, in however many pieces it comes, and the answer is none the worse for it."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

import httpx2
import pytest

from tests.mcp_servers.hub.conftest import Hub, OpenHub
from tests.mcp_servers.hub.test_gate import modern, request
from tests.waiting import wait_until

ACCEPTED = ("application/json", "application/json, text/event-stream")
CALL = json.dumps(request("tools/call", {"name": "fx_echo", "arguments": {"text": "é"}})).encode()
SAID = {"said": "é", "count": 1, "tainted": False}


@asynccontextmanager
async def half_sent(
    hub: Hub, headers: Mapping[str, str], body: bytes
) -> AsyncGenerator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A connection over which the first half of a request's body was sent, and taken there."""
    where = urlsplit(hub.url)
    lines = [f"POST /mcp HTTP/1.1\r\nhost: {where.netloc}\r\nconnection: close\r\ncontent-length: {len(body)}\r\n"]
    lines += [f"{name}: {value}\r\n" for name, value in headers.items()]
    reader, writer = await asyncio.open_connection(where.hostname, where.port)
    try:
        writer.write("".join(lines).encode() + b"\r\n" + body[: len(body) // 2])
        async with httpx2.AsyncClient(
            timeout=60
        ) as http:  # the hub is in this loop: once it has answered this it has read that
            for _ in range(3):
                assert (await http.get(f"{hub.base}/healthz")).status_code == 200
        yield reader, writer
    finally:
        writer.close()


@pytest.mark.parametrize("accepted", ACCEPTED)
@pytest.mark.parametrize("kind", ["application/json", "application/json; charset=utf-8"])
async def test_a_call_that_comes_in_two_segments_is_answered_as_one_that_comes_whole(
    hub: Hub, accepted: str, kind: str
) -> None:
    headers = modern(await hub.token("tier:silver"), "tools/call", "fx_echo")
    headers |= {"accept": accepted, "content-type": kind}
    async with half_sent(hub, headers, CALL) as (reader, writer):
        writer.write(CALL[len(CALL) // 2 :])
        async with asyncio.timeout(60):
            head, _, answer = (await reader.read()).partition(b"\r\n\r\n")

    assert head.startswith(b"HTTP/1.1 200 ")
    assert json.loads(answer)["result"]["structuredContent"] == SAID


async def test_a_hub_that_drains_before_a_body_is_there_does_not_run_the_call(hub: Hub) -> None:
    headers = modern(await hub.token("tier:silver"), "tools/call", "fx_echo")
    async with half_sent(hub, headers, CALL) as (reader, writer):
        hub.front.begin_draining()
        writer.write(CALL[len(CALL) // 2 :])
        async with asyncio.timeout(60):
            _, _, answer = (await reader.read()).partition(b"\r\n\r\n")

    assert json.loads(answer)["error"]["data"]["code"] == "draining"
    assert hub.seen.calls == []


@pytest.mark.parametrize("accepted", ACCEPTED)
@pytest.mark.parametrize("version", ["2026-07-28", "2025-11-25"])
async def test_a_large_call_is_answered_as_a_small_one(hub: Hub, accepted: str, version: str) -> None:
    headers = modern(await hub.token("tier:silver"), "tools/call", "fx_echo")
    headers |= {"accept": accepted, "mcp-protocol-version": version}
    body = json.dumps(request("tools/call", {"name": "fx_echo", "arguments": {"text": "x" * 200_000}})).encode()
    async with httpx2.AsyncClient(timeout=60) as http:
        answer = await http.post(hub.url, headers=headers, content=body)

    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"
    assert answer.json()["result"]["structuredContent"]["error"]["code"] == "bad_input"


async def test_a_large_call_that_reports_its_progress_is_streamed(hub: Hub) -> None:
    hub.seen.release.set()
    call = json.loads(json.dumps(request("tools/call", {"name": "fx_wait", "arguments": {}})))
    call["params"]["_meta"] |= {"progressToken": 1, "tests/more": "x" * 200_000}
    async with httpx2.AsyncClient(timeout=60) as http:
        headers = modern(await hub.token("tier:silver"), "tools/call", "fx_wait")
        answer = await http.post(hub.url, headers=headers, json=call)

    assert answer.headers["content-type"] == "text/event-stream"
    assert "notifications/progress" in answer.text


async def test_a_body_in_pieces_over_the_limit_is_told_so(open_hub: OpenHub, redis: object) -> None:
    _ = redis  # flushed before the test
    async with open_hub(request_bytes_max=2000) as hub, httpx2.AsyncClient(timeout=60) as http:
        headers = modern(await hub.token("tier:silver"), "tools/call", "fx_echo")
        answer = await http.post(hub.url, headers=headers, content=_pieces(CALL + b" " * 3000))

    assert answer.status_code == 413
    assert answer.json()["error"]["code"] == "too_large"
    assert answer.json()["error"]["limit"] == 2000


async def _pieces(body: bytes) -> AsyncGenerator[bytes]:
    for start in range(0, len(body), 500):
        yield body[start : start + 500]


async def test_a_client_that_leaves_in_the_middle_of_its_body_is_no_call_and_no_trouble(
    hub: Hub, caplog: pytest.LogCaptureFixture
) -> None:
    headers = modern(await hub.token("tier:silver"), "tools/call", "fx_echo")
    async with half_sent(hub, headers, CALL):
        others = asyncio.all_tasks()
    await wait_until(lambda: any(task.done() for task in others), "the request has ended")
    async with httpx2.AsyncClient(timeout=60) as http:
        answer = await http.post(hub.url, headers=headers, content=CALL)

    assert answer.json()["result"]["structuredContent"] == SAID
    assert hub.seen.calls == ["fx_echo"]
    assert [record.message for record in caplog.records if record.levelno >= logging.ERROR] == []
