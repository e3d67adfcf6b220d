"""What a connection may cost: heads too large or too slow, bodies that never come, answers that nobody reads, floods of connections."""

from __future__ import annotations

import asyncio
import json
import socket
from contextlib import AsyncExitStack
from urllib.parse import urlsplit

import pytest

from mcp_servers.hub import connections, exchange
from tests.fuzz.conftest import Served
from tests.fuzz.sockets import connected, head_of, whole
from tests.mcp_servers.hub.test_gate import modern, request
from tests.waiting import wait_until

LIST = json.dumps(request("tools/list", {})).encode()
LISTEN = json.dumps(request("subscriptions/listen", {"notifications": {"toolsListChanged": True}})).encode()
PLAIN = {"accept": "application/json"}


async def fine(hub: Served) -> bool:
    """Whether a normal client is answered, on a connection of its own."""
    headers = modern(await hub.token("tier:silver"), "tools/list") | PLAIN
    async with connected(hub.url) as wire:
        await wire.say(whole(hub.url, headers, LIST))
        answer = await wire.answer()
    return answer is not None and answer.status == 200 and b'"tools"' in answer.body


@pytest.mark.parametrize("what", ["one header", "many headers", "a long line", "a head without an end", "trailers"])
async def test_what_is_larger_than_a_head_may_be_is_431_and_the_end(served: Served, what: str) -> None:
    large = "x" * (connections.HEAD_BYTES_MAX + 1)
    headers = modern(await served.token("tier:silver"), "tools/list")
    async with connected(served.url) as wire:
        match what:
            case "one header":
                await wire.say(head_of(served.url, {"x-large": large}))
            case "many headers":
                await wire.say(head_of(served.url, [(f"x-{n}", "1") for n in range(connections.HEADERS_MAX + 1)]))
            case "a long line":
                await wire.say(head_of(served.url, {}, f"GET /{large} HTTP/1.1"))
            case "trailers":
                chunked = head_of(served.url, {**headers, "transfer-encoding": "chunked"})
                trailers = "".join(f"x-{n}: {'y' * 1000}\r\n" for n in range(60))
                await wire.say(chunked + b"1\r\n{\r\n0\r\n" + trailers.encode())
            case _:
                await wire.say(head_of(served.url, {})[:-2])
                for _ in range(40):
                    await wire.say(b"x-more: " + b"y" * 1000 + b"\r\n")
        answer = await wire.answer()
        # A request whose head was there has begun: what is wrong with its trailers can only end it.
        assert answer is None or answer.status == 431
        assert (answer is None) == (what == "trailers")
        assert await wire.ended()
    assert await fine(served)


async def test_a_trailer_never_passes_for_a_header(served: Served) -> None:
    headers = modern(await served.token("tier:silver"), "tools/list") | PLAIN
    token = headers.pop("authorization")
    body = b"%x\r\n%b\r\n0\r\nauthorization: %b\r\n\r\n" % (len(LIST), LIST, token.encode())
    async with connected(served.url) as wire:
        await wire.say(head_of(served.url, {**headers, "transfer-encoding": "chunked"}) + body)
        answer = await wire.answer()
    assert answer is not None
    assert answer.status == 401


@pytest.mark.parametrize("sent", [b"", b"POST /mcp HTTP/1.1\r\nhost: loc", b"\r\n"])
async def test_a_head_that_does_not_come_is_408_and_the_end(
    served: Served, sent: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "HEAD_S", 0.1)
    async with connected(served.url) as wire:
        await wire.say(sent)
        answer = await wire.answer()
        assert answer is not None
        assert answer.status == 408
        assert await wire.ended()
    await wait_until(lambda: not served.connections, "nothing is left of it")


async def test_what_comes_after_an_answered_request_has_its_time_too(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """uvicorn's own time for idle connections ends with the first byte of another request."""
    monkeypatch.setattr(connections, "HEAD_S", 0.1)
    headers = modern(await served.token("tier:silver"), "tools/list") | PLAIN
    async with connected(served.url) as wire:
        await wire.say(whole(served.url, headers, LIST) + b"PO")
        answer = await wire.answer()
        assert answer is not None
        assert answer.status == 200
        assert await wire.ended()


@pytest.mark.parametrize("sent", [0, 10])
async def test_a_body_that_does_not_come_is_408(served: Served, sent: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchange, "_BODY_S", 0.1)
    headers = modern(await served.token("tier:silver"), "tools/list") | {"content-length": str(len(LIST))}
    async with connected(served.url) as wire:
        await wire.say(head_of(served.url, headers) + LIST[:sent])
        answer = await wire.answer()
    assert answer is not None
    assert (answer.status, json.loads(answer.body)["error"]["retryable"]) == (408, True)
    assert json.loads(answer.body)["error"]["next_step"]


async def unread(hub: Served, *requests: bytes) -> socket.socket:
    """A connection that sent these and never reads."""
    where = urlsplit(hub.url)
    found = socket.socket()
    found.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    found.setblocking(False)  # noqa: FBT003 - the socket's own
    loop = asyncio.get_running_loop()
    await loop.sock_connect(found, (where.hostname, where.port))
    for data in requests:
        await loop.sock_sendall(found, data)
    return found


async def test_answers_that_nobody_reads_end_the_connection(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "UNREAD_S", 0.5)
    headers = modern(await served.token("person:ada", "admin"), "tools/list") | PLAIN
    with await unread(served, *[whole(served.url, headers, LIST)] * 200):
        await wait_until(lambda: served.connections, "it has come")
        await wait_until(lambda: not served.connections, "it is ended")
    assert await fine(served)


async def test_a_stream_that_nobody_reads_is_ended_and_nothing_of_it_is_left(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "UNREAD_S", 0.5)
    assert await fine(served)
    before = len(asyncio.all_tasks())
    headers = modern(await served.token("tier:silver"), "subscriptions/listen")
    uris = [f"game://npc/{'x' * 100}{n}" for n in range(10)]
    listen = request("subscriptions/listen", {"notifications": {"resourceSubscriptions": uris}})
    with await unread(served, whole(served.url, headers, json.dumps(listen).encode())):
        await wait_until(lambda: len(asyncio.all_tasks()) > before, "it listens")

        async def ended() -> bool:
            for uri in uris * 10:
                await served.runtime.bus.heard_here(uri)
            return not served.connections

        await wait_until(ended, "it is ended")
        await wait_until(lambda: len(asyncio.all_tasks()) <= before, "nothing of it is left")


async def test_a_stream_whose_client_sent_more_before_it_left_is_ended_too(served: Served) -> None:
    """uvicorn tells only the last request of a connection that its client has left."""
    assert await fine(served)
    await wait_until(lambda: not served.connections, "that client has left")
    before = len(asyncio.all_tasks())
    token = await served.token("tier:silver")
    async with connected(served.url) as wire:
        listen = whole(served.url, modern(token, "subscriptions/listen"), LISTEN)
        await wire.say(listen + whole(served.url, modern(token, "tools/list") | PLAIN, LIST))
        await wire.reader.readuntil(b"acknowledged")
    await wait_until(lambda: len(asyncio.all_tasks()) <= before, "nothing of it is left")


async def test_a_thousand_idle_connections_stop_nobody(served: Served) -> None:
    async with AsyncExitStack() as stack:
        for _ in range(1000):
            await stack.enter_async_context(connected(served.url))
        await wait_until(lambda: len(served.connections) >= 1000, "they are there")
        assert await fine(served)
    await wait_until(lambda: not served.connections, "they have gone")


async def test_more_connections_than_there_may_be_are_told_so_until_others_go(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "CONNECTIONS_MAX", 20)
    async with AsyncExitStack() as stack:
        for _ in range(20):
            await stack.enter_async_context(connected(served.url))
        await wait_until(lambda: len(served.connections) == 20, "they are there")
        async with connected(served.url) as wire:
            answer = await wire.answer()
            assert answer is not None
            assert answer.status == 503
            assert await wire.ended()
    await wait_until(lambda: not served.connections, "they have gone")
    assert await fine(served)


@pytest.mark.parametrize("protocol", ["websocket", "h2c", "anything"])
async def test_who_would_rather_speak_another_protocol_is_answered_in_this_one(served: Served, protocol: str) -> None:
    headers = modern(await served.token("tier:silver"), "tools/list") | PLAIN
    headers |= {"connection": "Upgrade, HTTP2-Settings", "upgrade": protocol, "sec-websocket-version": "13"}
    headers |= {"sec-websocket-key": "dGhlIHNhbXBsZSBub25jZQ=="}
    for asked, status in (
        (head_of(served.url, headers, "GET /healthz HTTP/1.1"), 200),
        (
            whole(served.url, headers, LIST),
            400,
        ),  # its parser skips the body: better refused than taken for an empty one
    ):
        async with connected(served.url) as wire:
            await wire.say(asked)
            answer = await wire.answer()
            assert answer is not None
            assert (answer.status, answer.head["connection"]) == (status, "close")
            assert await wire.ended()
