"""How many streams one asker may hold: the next is refused in plain words, others are not, and a place comes back with whoever leaves."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager

import pytest
from mcp import MCPError

from body_broker.calls import Caller
from body_broker.errors import Unavailable
from mcp_servers.hub import held
from mcp_servers.hub.held import STREAMS_MAX
from tests.fuzz.conftest import Served
from tests.fuzz.sockets import Wire, connected, head_of, whole
from tests.fuzz.test_connection_limits import LISTEN, fine
from tests.mcp_servers.hub.test_gate import modern
from tests.waiting import wait_until


@asynccontextmanager
async def listening(hub: Served, token: str) -> AsyncGenerator[Wire]:
    """A stream that was acknowledged."""
    async with connected(hub.url) as wire:
        await wire.say(whole(hub.url, modern(token, "subscriptions/listen"), LISTEN))
        await wire.reader.readuntil(b"acknowledged")
        yield wire


async def refused(hub: Served, token: str) -> str | None:
    """The code with which one more stream is refused to the official client; None where it is not."""
    async with hub.client_with(token) as client:
        try:
            async with client.listen(tools_list_changed=True):
                return None
        except MCPError as error:
            told = error.error.data
    assert told["limit"] == STREAMS_MAX, told
    assert told["retryable"], told
    assert "End one" in told["next_step"], told
    return told["code"]


async def test_one_asker_cannot_take_the_streams_of_all(served: Served) -> None:
    ada, bo = await served.token("person:ada", "engineer"), await served.token("person:bo")
    other = await served.token("person:ada")
    async with AsyncExitStack() as stack:
        wires = [await stack.enter_async_context(listening(served, ada)) for _ in range(STREAMS_MAX)]
        assert await refused(served, ada) == "too_busy"
        assert await refused(served, other) == "too_busy"  # a second token is the same asker
        assert await refused(served, bo) is None
        assert await fine(served)

        wires[0].writer.transport.abort()  # it goes without a word
        await wait_until(lambda: _streams(served) < STREAMS_MAX, "its place has come back")
        assert await refused(served, ada) is None
    await wait_until(lambda: not _streams(served), "all have")
    assert await refused(served, ada) is None


async def test_the_stream_of_older_revisions_has_one_of_these_places(served: Served) -> None:
    ada = await served.token("person:ada")
    headers = modern(ada, "x") | {"mcp-protocol-version": "2025-11-25", "accept": "text/event-stream"}
    async with AsyncExitStack() as stack:
        for number in range(STREAMS_MAX + 1):
            wire = await stack.enter_async_context(connected(served.url))
            await wire.say(head_of(served.url, headers, "GET /mcp HTTP/1.1"))
            if number < STREAMS_MAX:
                assert (await wire.reader.readline()).startswith(b"HTTP/1.1 200 "), number
            else:
                answer = await wire.answer()
                assert answer is not None
                assert (answer.status, json.loads(answer.body)["error"]["code"]) == (429, "too_busy")
        assert await refused(served, ada) == "too_busy"
    await wait_until(lambda: not _streams(served), "all have gone")
    assert await refused(served, ada) is None


async def test_a_stream_that_the_hub_ends_gives_its_place_back(served: Served) -> None:
    async with listening(served, await served.token("person:ada")) as wire:
        assert _streams(served) == 1
        served.front.protocol.listening.close()
        await wire.reader.readuntil(b"0\r\n\r\n")
        assert not _streams(served)


def _streams(hub: Served) -> int:
    return hub.front.protocol.held.count


def test_a_hub_has_places_for_so_many_in_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(held, "STREAMS_IN_ALL_MAX", 3)
    places = held.Held()
    with places.one(_caller("a")), places.one(_caller("b")), places.one(_caller("b")):
        with pytest.raises(Unavailable) as full, places.one(_caller("c")):
            pass
        assert full.value.retry_after_s
    with places.one(_caller("c")):
        assert places.count == 1


def _caller(name: str) -> Caller:
    return Caller.of_sessions((f"person:{name}",), {}, (f"session-{name}",))
