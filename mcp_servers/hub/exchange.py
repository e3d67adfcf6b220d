"""Owns one request to the hub's API and its answer over ASGI: a bounded body, a client that leaves, events for a slow reader."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Coroutine, Mapping
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import orjson
from starlette.types import Receive, Send

from body_broker.errors import BadInput, TooLarge

_WATCH_AFTER_S = 0.25
_BODY_S = 15.0
"""How long a body may take to arrive."""
SEND_S = 30.0
"""How long a client may take no byte of what waits for it."""
_T = TypeVar("_T")


class ClientLeft(Exception):  # what happened, and nobody is there to be told
    """The client closed its connection before it had its answer."""


class _Late(BadInput):
    """The rest of the request did not come."""

    retryable = True
    http_status = 408
    advice = "Send the request again."


async def read_json(receive: Receive, *, bytes_max: int) -> dict[str, Any]:
    """The body as a JSON object.

    Raises:
        TooLarge: It is.
        BadInput: It is no JSON object, or did not come in time.
        ClientLeft: It broke off.
    """
    body = await read_body(receive, bytes_max=bytes_max)
    try:
        found: object = orjson.loads(body)
    except orjson.JSONDecodeError:
        raise BadInput("The body is not JSON.", next_step="Send a JSON object, as UTF-8.") from None
    if not isinstance(found, dict):
        raise BadInput("The body is not a JSON object.")
    return found  # pyright: ignore[reportUnknownVariableType]  # any JSON object, checked where it is read


async def read_body(receive: Receive, *, bytes_max: int) -> bytes:
    """The whole body.

    Raises:
        TooLarge: It is.
        BadInput: It did not come in time.
        ClientLeft: It broke off.
    """
    try:
        async with asyncio.timeout(_BODY_S):
            return await _read(receive, bytes_max)
    except TimeoutError:
        raise _Late("The rest of the request did not come in time.") from None


async def _read(receive: Receive, bytes_max: int) -> bytes:
    found = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientLeft
        found += message.get("body", b"")
        if len(found) > bytes_max:
            raise TooLarge(f"The request is larger than {bytes_max} bytes.", details={"limit": bytes_max})
        if not message.get("more_body"):
            return bytes(found)


async def unless_left(receive: Receive, work: Coroutine[Any, Any, _T]) -> _T:
    """What the work returns; a client that leaves cancels it at once. Its request was read before.

    Raises:
        ClientLeft: It left; the work has ended.
    """
    working = asyncio.create_task(work)
    watching = asyncio.create_task(_gone(receive))
    try:
        await asyncio.wait((working, watching), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientLeft
        return working.result()
    finally:
        working.cancel()
        watching.cancel()
        await asyncio.gather(working, watching, return_exceptions=True)


async def cancelled_if_left(receive: Receive, answering: Coroutine[Any, Any, None]) -> None:
    """JSON mode does not notice a client that left: calls that last get a watcher that cancels them."""
    task, loop = asyncio.current_task(), asyncio.get_running_loop()
    assert task is not None
    watcher: asyncio.Task[None] | None = None
    left = False

    async def watch() -> None:
        nonlocal left
        while (await receive())["type"] != "http.disconnect":
            pass
        left = True
        task.cancel()

    def start_watching() -> None:
        nonlocal watcher
        watcher = loop.create_task(watch())

    later = loop.call_later(_WATCH_AFTER_S, start_watching)
    try:
        await answering
    except asyncio.CancelledError:
        if not left:
            raise
        task.uncancel()
    finally:
        later.cancel()
        if watcher is not None:
            watcher.cancel()


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class Events:
    """Server-sent events to one client, begun with the first.

    What the client has not taken waits here, bounded by what one answer may have: an engine never waits for a slow reader.

    Attributes:
        begun: Whether anything was put; from then on an error can only be an event.
    """

    def __init__(self, send: Send) -> None:
        self._send, self._waiting, self._more = send, bytearray(), asyncio.Event()
        self.begun = self._over = False

    def put(self, data: bytes, name: bytes = b"") -> None:
        """Send one event, soon."""
        self.begun = True
        self._waiting += b"event: %b\ndata: %b\n\n" % (name, data) if name else b"data: %b\n\n" % data
        self._more.set()

    @asynccontextmanager
    async def writing(self) -> AsyncGenerator[None]:
        """Events go out until the way out, which waits for the last; where none was put nothing is sent.

        Raises:
            ClientLeft: It took nothing for `SEND_S`; whatever was going on inside is cancelled at once.
        """
        writing, work = asyncio.create_task(self._write()), asyncio.current_task()
        assert work is not None

        def ended(_writing: asyncio.Task[None]) -> None:
            if not self._over:
                work.cancel()

        writing.add_done_callback(ended)
        try:
            yield
            self._over = True
            self._more.set()
            await writing
        except asyncio.CancelledError:
            if self._over or not writing.done() or work.uncancel() > 0:
                raise
            raise ClientLeft from writing.exception()
        finally:
            self._over = True
            writing.cancel()
            await asyncio.gather(writing, return_exceptions=True)

    async def _write(self) -> None:
        await self._more.wait()
        if not self.begun:
            return
        headers = [
            (b"content-type", b"text/event-stream; charset=utf-8"),
            (b"cache-control", b"no-store"),
            (b"x-accel-buffering", b"no"),
        ]
        await self._send({"type": "http.response.start", "status": 200, "headers": headers})
        while self._waiting or not self._over:
            await self._more.wait()
            self._more.clear()
            data, self._waiting = bytes(self._waiting), bytearray()
            await self._part(data, more=True)
        await self._part(b"", more=False)

    async def _part(self, data: bytes, *, more: bool) -> None:
        try:
            async with asyncio.timeout(SEND_S):
                await self._send({"type": "http.response.body", "body": data, "more_body": more})
        except TimeoutError:
            raise ClientLeft from None


async def answer_json(
    send: Send, body: Mapping[str, Any], *, status: int = 200, headers: Mapping[str, str] | None = None
) -> None:
    """Send a JSON answer whole."""
    data = orjson.dumps(body)
    more = [(name.encode(), value.encode()) for name, value in (headers or {}).items()]
    start = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(data)), *more]
    await send({"type": "http.response.start", "status": status, "headers": start})
    await send({"type": "http.response.body", "body": data})
