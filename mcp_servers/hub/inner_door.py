"""Owns how tiers of this process reach it as MCP clients: the same front as everybody's, without a socket between."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from types import MappingProxyType
from typing import Any

import httpx2
import orjson
from starlette.types import Message

from body_broker.background import running
from body_broker.errors import InternalError, TooLarge, on_the_wire
from body_broker.settings import Settings
from body_broker.telemetry import get_logger
from mcp_servers.hub.front import Front, Hosts
from mcp_servers.hub.identity import Identities
from mcp_servers.hub.protocol import Protocol

log = get_logger(__name__)

_PATH, _RAW_PATH = "/mcp", b"/mcp"
_SCOPE: Mapping[str, Any] = MappingProxyType(
    {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "scheme": "http",
        "query_string": b"",
        "server": ("localhost", None),
        "client": None,
        "root_path": "",
    }
)

ANSWER_BYTES_MAX = 2 * 1024 * 1024
"""The most that one answer may have: a model reads a few kilobytes of it, and reading it here holds up everybody."""


class InnerDoor:
    """A front of its own over the process's gate: identity, limits, policy and audit are those of every call."""

    def __init__(self, protocol: Protocol, identities: Identities, settings: Settings) -> None:
        self._front = Front(
            protocol,
            identities,
            Hosts.of(bind_host="localhost", public_url=None, allowed_hosts=()),
            {},
            request_bytes_max=settings.request_bytes_max,
            approval_wait_s=settings.approval_wait_s,
        )

    @asynccontextmanager
    async def serving(self) -> AsyncGenerator[None]:
        """The front answers until the way out.

        It is opened and closed in a task of its own: whoever asks first is not who closes.
        """
        started: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        async def serve() -> None:
            async with self._front.answering():
                started.set_result(None)
                await asyncio.get_running_loop().create_future()

        async with running(serve(), name="inner-door") as task:
            await asyncio.wait({started, task}, return_when=asyncio.FIRST_COMPLETED)
            if not started.done():
                await task  # which says why
            yield

    def client(self, **given: Any) -> httpx2.AsyncClient:
        """An HTTP client whose requests go straight to the front; the arguments are those of httpx2.AsyncClient."""
        return httpx2.AsyncClient(**given, transport=_Straight(self._front), trust_env=False)

    async def post(self, headers: Sequence[tuple[bytes, bytes]], body: bytes) -> tuple[int, bytes]:
        """The status and the body of what the front answers to one message, in the task that asks.

        Args:
            headers: All of them, with names in lower case.
            body: The message.
        """
        exchange = _Exchange(body)
        await exchange.with_front(self._front, {"method": "POST", "path": _PATH, "raw_path": _RAW_PATH}, headers)
        return exchange.status, b"".join(exchange.body)


class _Straight(httpx2.AsyncBaseTransport):
    """Hands requests to the front in the task that makes them, so that whoever leaves cancels them."""

    def __init__(self, front: Front) -> None:
        self._front = front

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        exchange = _Exchange(await request.aread())
        # Without event-stream among what is accepted every answer is one piece of JSON: nobody here listens for more.
        headers = [
            (name.lower(), b"application/json" if name.lower() == b"accept" else value)
            for name, value in request.headers.raw
        ]
        where = {
            "method": request.method,
            "path": request.url.path,
            "raw_path": request.url.raw_path,
            "query_string": request.url.query,
        }
        await exchange.with_front(self._front, where, headers)
        return httpx2.Response(exchange.status, headers=exchange.headers, content=b"".join(exchange.body))


class _Exchange:
    """One request and its answer, as ASGI has them."""

    def __init__(self, body: bytes) -> None:
        self._asked: bytes | None = body
        self.status, self.size = 500, 0
        self.headers: list[tuple[bytes, bytes]] = []
        self.body: list[bytes] = []

    async def with_front(self, front: Front, where: Mapping[str, Any], headers: Sequence[tuple[bytes, bytes]]) -> None:
        """Have it answered, in whatever way."""
        try:
            await front({**_SCOPE, **where, "headers": headers}, self.receive, self.send)
        except Exception:
            log.exception("inner_door_failed")
            self._refuse(InternalError("The hub failed while answering."))
        else:
            if self.size > ANSWER_BYTES_MAX:
                self._refuse(TooLarge(f"The answer is larger than {ANSWER_BYTES_MAX} bytes."))

    def _refuse(self, error: InternalError | TooLarge) -> None:
        told = on_the_wire(error)
        self.status, self.headers = told.http_status, [(b"content-type", b"application/json")]
        self.body = [orjson.dumps({"error": told.body()})]

    async def receive(self) -> Message:
        if self._asked is None:
            await asyncio.get_running_loop().create_future()  # who leaves cancels; there is no other way to leave
        body, self._asked = self._asked, None
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status, self.headers = message["status"], list(message.get("headers", ()))
            return
        piece: bytes = message.get("body", b"")
        self.size += len(piece)
        if self.size <= ANSWER_BYTES_MAX:
            self.body.append(piece)
