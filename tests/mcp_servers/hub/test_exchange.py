"""One request to the API over ASGI: bodies are bounded, a client that leaves ends the work, a slow reader holds up nobody."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from starlette.types import Message

from body_broker.errors import BadInput, TooLarge, on_the_wire
from mcp_servers.hub.exchange import SEND_S, ClientLeft, Events, read_json, unless_left
from tests.tiers.clock import Clock, clock, settle

__all__ = ["clock"]  # the fixture that this file borrows
Receive = Callable[[], Awaitable[Message]]


def body(*parts: bytes, left: bool = False) -> Receive:
    """A client that sends these parts, then waits, or leaves."""
    messages: list[Message] = [
        {"type": "http.request", "body": part, "more_body": left or place < len(parts) - 1}
        for place, part in enumerate(parts)
    ]
    if left:
        messages.append({"type": "http.disconnect"})

    async def receive() -> Message:
        if messages:
            return messages.pop(0)
        await asyncio.Event().wait()
        raise AssertionError("nothing more comes")

    return receive


async def test_a_body_in_parts_is_one_object() -> None:
    assert await read_json(body(b'{"a"', b": ", b"1}"), bytes_max=100) == {"a": 1}


@pytest.mark.parametrize("sent", [b"", b"{", b"[1]", b'"text"', b"null", b"\xff\xfe", b"{} {}", b'{"a": NaN}'])
async def test_what_is_no_json_object_is_refused(sent: bytes) -> None:
    with pytest.raises(BadInput):
        await read_json(body(sent), bytes_max=100)


async def test_a_body_past_its_size_is_refused_before_it_is_all_there() -> None:
    with pytest.raises(TooLarge) as refused:
        await read_json(body(b'{"a": "', b"x" * 100, left=True), bytes_max=50)
    assert on_the_wire(refused.value).http_status == 413


async def test_a_body_that_breaks_off_is_nobody_s_word() -> None:
    with pytest.raises(ClientLeft):
        await read_json(body(b'{"a": 1}', left=True), bytes_max=100)


async def test_a_body_that_does_not_come_is_waited_for_so_long(clock: Clock) -> None:
    reading = asyncio.create_task(read_json(body(), bytes_max=100))
    await settle()
    clock.move(16)
    with pytest.raises(BadInput) as late:
        await reading
    told = on_the_wire(late.value)
    assert (told.http_status, told.retryable) == (408, True)


async def test_a_client_that_leaves_ends_the_work_before_anything_else_happens() -> None:
    ended = asyncio.Event()
    leaves = asyncio.Event()

    async def receive() -> Message:
        await leaves.wait()
        return {"type": "http.disconnect"}

    async def work() -> None:
        try:
            leaves.set()
            await asyncio.Event().wait()
        finally:
            ended.set()

    with pytest.raises(ClientLeft):
        await unless_left(receive, work())
    assert ended.is_set()


async def test_what_the_work_raises_is_told_as_it_is() -> None:
    async def work() -> None:
        raise BadInput("No.")

    with pytest.raises(BadInput):
        await unless_left(body(), work())


async def test_whoever_ends_the_waiting_ends_the_work() -> None:
    begun, ended = asyncio.Event(), asyncio.Event()

    async def work() -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    waiting = asyncio.create_task(unless_left(body(), work()))
    await begun.wait()
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert ended.is_set()


class Reader:
    """A client that takes one message at a time, when it is told to."""

    def __init__(self) -> None:
        self.took: list[Message] = []
        self.may = asyncio.Semaphore(0)

    async def send(self, message: Message) -> None:
        await self.may.acquire()
        self.took.append(message)

    @property
    def said(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.took)


async def test_events_wait_for_a_slow_reader_and_whoever_puts_them_does_not() -> None:
    reader = Reader()
    events = Events(reader.send)

    async def write() -> None:
        async with events.writing():
            for number in range(1_000):
                events.put(b"%d" % number)
                await asyncio.sleep(0)
            put.set()

    put = asyncio.Event()
    writing = asyncio.create_task(write())
    await put.wait()
    assert reader.took == []
    for _ in range(3):  # its head, everything that waits, its end
        reader.may.release()
    await writing
    assert reader.said == b"".join(b"data: %d\n\n" % number for number in range(1_000))
    assert reader.took[0]["status"] == 200
    assert reader.took[-1] == {"type": "http.response.body", "body": b"", "more_body": False}


async def test_an_error_before_the_first_event_leaves_the_answer_unbegun() -> None:
    reader = Reader()
    events = Events(reader.send)
    with pytest.raises(BadInput):
        async with events.writing():
            raise BadInput("No.")
    assert not events.begun
    assert reader.took == []


async def test_a_stream_without_events_sends_nothing() -> None:
    reader = Reader()
    async with Events(reader.send).writing():
        pass
    assert reader.took == []


async def test_a_client_that_takes_nothing_any_more_is_given_up(clock: Clock) -> None:
    reader = Reader()
    reader.may.release()  # it takes the head, and no more
    events = Events(reader.send)

    async def write() -> None:
        async with events.writing():
            events.put(b"1")

    writing: asyncio.Task[Any] = asyncio.create_task(write())
    await settle()
    clock.move(SEND_S + 1)
    with pytest.raises(ClientLeft):
        await writing


async def test_a_client_that_takes_nothing_any_more_ends_the_work_that_goes_on_for_it(clock: Clock) -> None:
    reader = Reader()
    reader.may.release()
    events, ended = Events(reader.send), asyncio.Event()

    async def work() -> None:
        async with events.writing():
            events.put(b"1")
            try:
                await asyncio.Event().wait()  # an engine that has not said everything
            finally:
                ended.set()

    working: asyncio.Task[Any] = asyncio.create_task(work())
    await settle()
    clock.move(SEND_S + 1)
    with pytest.raises(ClientLeft):
        await working
    assert ended.is_set()
    assert working.cancelling() == 0


async def test_whoever_ends_a_stream_from_without_ends_it() -> None:
    events = Events(Reader().send)

    async def work() -> None:
        async with events.writing():
            events.put(b"1")
            await asyncio.Event().wait()

    working: asyncio.Task[Any] = asyncio.create_task(work())
    await settle()
    working.cancel()
    with pytest.raises(asyncio.CancelledError):
        await working


async def test_a_named_event_has_its_name() -> None:
    reader = Reader()
    for _ in range(3):
        reader.may.release()
    events = Events(reader.send)
    async with events.writing():
        events.put(b"{}", b"done")
    assert reader.said == b"event: done\ndata: {}\n\n"
