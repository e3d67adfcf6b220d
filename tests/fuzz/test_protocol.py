"""Mutated JSON-RPC and HTTP over raw sockets: every request that can be delimited is answered, nothing leaks, the hub stays up."""

from __future__ import annotations

import asyncio
import json
import logging

import pytest

from tests.fuzz.conftest import Served
from tests.fuzz.sockets import connected, head_of, whole
from tests.fuzz.test_calls_by_schema import seed_here
from tests.fuzz.test_connection_limits import fine
from tests.fuzz.wire_fuzz import WireFuzz
from tests.mcp_servers.hub.test_gate import modern
from tests.waiting import wait_until

REQUESTS = 3_000


async def test_mutated_requests_are_answered_by_the_specifications(
    served: Served, caplog: pytest.LogCaptureFixture
) -> None:
    heard = await WireFuzz(served.url, await served.token("person:ada", "admin")).run(REQUESTS, seed=seed_here())
    assert not heard.faults, "\n".join(sorted({fault[:1500] for fault in heard.faults}, key=len)[:10])
    assert heard.requests >= REQUESTS
    assert {200, 202, 400, 401, 403, 404, 405} <= set(heard.statuses), heard.statuses
    assert {-32700, -32600, -32601, -32602} <= set(heard.codes), heard.codes
    assert [record.message for record in caplog.records if record.levelno >= logging.ERROR] == []
    await wait_until(lambda: not served.connections, "nothing is left of it")
    assert await fine(served)


async def test_an_origin_that_is_no_address_is_refused(served: Served) -> None:
    async with connected(served.url) as wire:
        await wire.say(head_of(served.url, {"origin": "http://["}, "GET /readyz HTTP/1.1"))
        answer = await wire.answer()
    assert answer is not None
    assert answer.status == 403


async def test_who_would_resume_a_stream_gets_a_new_one(served: Served) -> None:
    headers = modern(await served.token("tier:silver"), "x") | {"mcp-protocol-version": "2025-11-25"}
    headers |= {"accept": "text/event-stream", "last-event-id": "0"}
    async with connected(served.url) as wire:
        await wire.say(head_of(served.url, headers, "GET /mcp HTTP/1.1"))
        async with asyncio.timeout(60):
            assert (await wire.reader.readline()).startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize("accept", ["application/json", "application/json, text/event-stream"])
async def test_what_the_sdk_could_not_read_is_not_told_in_its_words(served: Served, accept: str) -> None:
    headers = modern(await served.token("tier:silver"), "tools/call")
    headers |= {"mcp-protocol-version": "2025-11-25", "accept": accept}
    async with connected(served.url) as wire:
        await wire.say(
            whole(served.url, headers, b'{"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": "a secret"}')
        )
        answer = await wire.answer()
    assert answer is not None
    assert (answer.status, json.loads(answer.body)["error"]["code"]) == (400, -32600)
    assert not any(word in answer.body for word in (b"a secret", b"pydantic", b"input_value"))
