"""Owns what one connection may cost: how large and slow a request's head may be, how long an answer may lie unread, how many there are."""

from __future__ import annotations

import resource
import sys
import time
from asyncio import BaseTransport, Transport
from typing import TYPE_CHECKING, Any, cast

from httptools import HttpParserCallbackError
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from body_broker.telemetry import get_logger

if TYPE_CHECKING:
    from uvicorn._types import ASGI3Application
    from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

log = get_logger(__name__)

HEAD_BYTES_MAX = 32 * 1024
"""What a request's line, headers and trailers may have together."""
HEADERS_MAX = 100
HEAD_S = 15.0
"""How long a request's head may take to arrive, and what is left of a body that was answered before it was there."""
UNREAD_S = 30.0
"""How long a client may take no byte of what waits for it."""
CONNECTIONS_MAX = 4_000
_FILES_KEPT = 128
"""Descriptors that stores and files need beside the connections."""
_BODIES = frozenset({b"content-length", b"transfer-encoding"})
_TOO_LARGE, _LATE, _FULL = (
    b"HTTP/1.1 %b\r\ncontent-type: text/plain; charset=utf-8\r\ncontent-length: 0\r\nconnection: close\r\n\r\n" % line
    for line in (b"431 Request Header Fields Too Large", b"408 Request Timeout", b"503 Service Unavailable")
)


class _HeadTooLarge(Exception):  # ends the parser's work on a connection
    """The head has more than it may."""


class _NoUpgrade(Exception):  # ends the parser's work on a connection
    """The client would rather speak another protocol, and httptools then skips the body, which nobody would miss."""


class Connection(HttpToolsProtocol):
    """uvicorn's HTTP connection, within limits.

    httptools bounds nothing, and uvicorn has a time for idle connections alone: what stands between a request's first byte and its
    last, and an answer that nobody takes, is bounded here. Nothing of it costs a request anything but a count: the times are looked
    at once a second for all connections (`look`).
    """

    transport: Transport

    def __init__(self, *args: Any, **kwargs: Any) -> None:  # as uvicorn makes it
        super().__init__(*args, **kwargs)
        self._in_head, self._head_bytes, self._trailers = True, 0, 0
        self._active: RequestResponseCycle | None = None
        self._seen: RequestResponseCycle | None = None
        self._head_since: float | None = None
        self._unread, self._unread_since = 0, 0.0

    def connection_made(self, transport: BaseTransport) -> None:
        """One more; where there are too many it is told so and closed."""
        super().connection_made(cast("Transport", transport))
        if len(self.connections) > connections_max():
            self.transport.write(_FULL)
            self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """Nobody is there any more: every request of it learns that, not only the last that came (uvicorn tells that one alone)."""
        for cycle in (self._active, *(cycle for cycle, _ in self.pipeline)):
            if cycle is not None and not cycle.response_complete:
                cycle.disconnected = True
                cycle.message_event.set()
        self.pipeline.clear()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Some bytes, whose head is counted until it is complete."""
        if self.transport.is_closing():
            return
        super().data_received(data)
        if self._in_head and not self.transport.is_closing():
            # What completes within one piece is counted where it does.
            self._head_bytes += len(data)
            if self._head_bytes > HEAD_BYTES_MAX:
                self._end(_TOO_LARGE)

    def on_message_begin(self) -> None:
        """A new request's head."""
        self._in_head, self._head_bytes, self._trailers = True, 0, 0
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header of the head; after it they are trailers, which must never pass for headers (RFC 9110 6.5.1)."""
        if self._in_head:
            super().on_header(name, value)
            return
        self._trailers += len(name) + len(value)
        if self._trailers > HEAD_BYTES_MAX:
            raise _HeadTooLarge

    def on_headers_complete(self) -> None:
        """The whole head is there."""
        size = len(self.url)
        for name, value in self.headers:
            size += len(name) + len(value)
        if size > HEAD_BYTES_MAX or len(self.headers) > HEADERS_MAX:
            raise _HeadTooLarge
        self._in_head = False
        assert self.parser is not None, "it is parsing"
        elsewhere = self.parser.should_upgrade()
        if elsewhere and any(name in _BODIES for name, _ in self.headers):
            raise _NoUpgrade
        super().on_headers_complete()
        if elsewhere:
            self.cycle.keep_alive = False  # the parser reads nothing after it

    def send_400_response(self, msg: str) -> None:
        """What cannot be parsed ends the connection. An answer that is being written must not have another put into it."""
        if isinstance(_cause(), _HeadTooLarge):
            self._end(_TOO_LARGE)
        elif self._answering():
            self.transport.abort()
        else:
            super().send_400_response(msg)

    def look(self, now: float) -> None:
        """End the connection if it has kept us waiting for too long; called about once a second."""
        size = self.transport.get_write_buffer_size()
        if not size or size != self._unread:
            self._unread, self._unread_since = size, now
        elif now - self._unread_since > UNREAD_S:
            log.info("connection_unread", bytes=size)
            self.transport.abort()
            return
        cycle = cast(
            "RequestResponseCycle | None", self.cycle
        )  # none before the first request, whatever uvicorn's hint says
        done = cycle is None or cycle.response_complete
        if not done or cycle is not self._seen or self._head_since is None:
            self._seen, self._head_since = cycle, now
        elif now - self._head_since > HEAD_S and not self.transport.is_closing():
            self._end(_LATE)

    def _unsupported_upgrade_warning(self) -> None:
        """Nothing: whoever offers another protocol is answered in this one."""

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        self._active = cycle
        super()._start_asgi_task(cycle, app)

    def _answering(self) -> bool:
        return self._active is not None and self._active.response_started and not self._active.response_complete

    def _end(self, answer: bytes) -> None:
        if self._answering():
            self.transport.abort()
            return
        if self._active is None or self._active.response_complete:
            self.transport.write(answer)
        self.transport.close()


def _cause() -> BaseException | None:
    """What our callback raised inside of the parser that is being reported now."""
    error = sys.exc_info()[1]
    return error.__context__ or error.__cause__ if isinstance(error, HttpParserCallbackError) else None


def connections_max() -> int:
    """How many connections there may be: fewer where the process may open few files."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return CONNECTIONS_MAX if soft < 0 else max(16, min(CONNECTIONS_MAX, soft - _FILES_KEPT))


def look_at(connections: object) -> None:
    """Look at every connection of a server."""
    now = time.monotonic()
    for connection in list(cast("set[object]", connections)):
        if isinstance(connection, Connection):
            connection.look(now)
