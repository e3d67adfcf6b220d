"""Owns HTTP to an upstream: one origin, what is shown there, bounded answers, and failures that end one request and not its neighbours."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import httpx2

from body_broker.errors import BodyBrokerError

if TYPE_CHECKING:
    from mcp_servers.upstreams.auth import Shown

ANSWER_BYTES_MAX = 4 * 1024 * 1024
_BODY_BYTES_MAX = 256 * 1024
_EVENTS = "text/event-stream"
_PATIENCE = httpx2.Timeout(10.0, read=300.0)  # a stream may say nothing for long; each request has its own bound
_AWAY, _UNAUTHORIZED = 503, 401
_NEVER_SENT = (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout, httpx2.UnsupportedProtocol)

# The libraries log what they cannot read, with the text of it; what matters of it is logged by us.
for _name in ("client", "mcp.client", "fastmcp", "httpx2", "httpcore2"):
    logging.getLogger(_name).setLevel(logging.CRITICAL)


@dataclass(slots=True)
class Asked:
    """What became of one request on the wire: the protocol's library tells little of it.

    Attributes:
        status: Of the last answer; None where none came, or nothing went over HTTP.
        unsent: Whether it certainly did not reach the upstream.
        error: Why it was not sent, in words of ours.
    """

    status: int | None = None
    unsent: bool = False
    error: BodyBrokerError | None = None


ASKED: ContextVar[Asked] = ContextVar("body_broker_upstream_asked")
"""Of whom the requests of this task are; the library sends them in contexts copied from it."""


class Wire(httpx2.AsyncBaseTransport):
    """Sends requests to one origin.

    It raises nothing: an exception would end the connection with everybody's requests; a failure is an answer with a status.

    Args:
        url: The upstream's.
        shown: What is shown there; None is nothing.
        inner: Really sends.
    """

    def __init__(self, url: str, shown: Shown | None, inner: httpx2.AsyncBaseTransport) -> None:
        self._origin, self._shown, self._inner = _origin(httpx2.URL(url)), shown, inner

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """The answer, or one that stands for what went wrong."""
        asked = ASKED.get(None) or Asked()
        asked.status, asked.unsent = None, False
        if _origin(request.url) != self._origin:  # nobody sends one; a token would be on it
            asked.unsent = True
            return httpx2.Response(_AWAY)
        try:
            token = await self._shown.token() if self._shown is not None else None
            response = await self._sent(request, token, asked)
            if response.status_code == _UNAUTHORIZED and self._shown is not None and token is not None:
                await response.aclose()
                response = await self._sent(request, await self._shown.another(token), asked)
        except BodyBrokerError as error:
            asked.error = error
            return httpx2.Response(_UNAUTHORIZED)
        asked.status = response.status_code
        return response

    async def aclose(self) -> None:
        """Close what really sends."""
        await self._inner.aclose()

    async def _sent(self, request: httpx2.Request, token: str | None, asked: Asked) -> httpx2.Response:
        if token is not None:
            request.headers["authorization"] = f"Bearer {token}"
        request.headers["accept-encoding"] = "identity"  # what unfolds to gigabytes is not taken
        try:
            response = await self._inner.handle_async_request(request)
        except _NEVER_SENT:
            asked.unsent = True
            return httpx2.Response(_AWAY)
        except httpx2.TransportError:
            return httpx2.Response(_AWAY)
        if response.headers.get("content-encoding", "identity") != "identity":
            await response.aclose()
            return httpx2.Response(_AWAY)
        events = response.headers.get("content-type", "").lower().startswith(_EVENTS)
        assert isinstance(response.stream, httpx2.AsyncByteStream)
        response.stream = _Bounded(response.stream, None if events else ANSWER_BYTES_MAX)
        return response


class _Bounded(httpx2.AsyncByteStream):
    """A body up to a bound; None where each event of it has one."""

    def __init__(self, inner: httpx2.AsyncByteStream, most: int | None) -> None:
        self._inner, self._most = inner, most

    async def __aiter__(self) -> AsyncIterator[bytes]:
        size = 0
        try:
            async for chunk in self._inner:
                size += len(chunk)
                if self._most is not None and size > self._most:
                    raise httpx2.StreamError("an answer that is larger than is taken")
                yield chunk
        except httpx2.TransportError as error:  # which the library lets through to where it ends the connection
            raise httpx2.StreamError("the connection was lost") from error

    async def aclose(self) -> None:
        with suppress(httpx2.TransportError):
            await self._inner.aclose()


async def wired_client(url: str, shown: Shown | None, *, connections: int) -> httpx2.AsyncClient:
    """A client for one upstream: it follows nothing, and has nothing of this machine's environment.

    Args:
        url: The upstream's.
        shown: What is shown there.
        connections: How many it opens.
    """
    inner = await _transport(url, connections)
    return httpx2.AsyncClient(transport=Wire(url, shown, inner), timeout=_PATIENCE, trust_env=False)


async def bare_client(url: str) -> httpx2.AsyncClient:
    """A client for a few requests to where this URL is: it follows nothing, and shows nothing by itself."""
    return httpx2.AsyncClient(
        transport=await _transport(url, 4),
        timeout=httpx2.Timeout(10.0),
        trust_env=False,
        headers={"accept-encoding": "identity"},
    )


async def careful_client(url: str) -> httpx2.AsyncClient:
    """A client for logging in to the upstream of this URL, wherever it sends us to: over TLS, or on this machine where it is here itself."""
    inner = await _transport("https:", 8)
    return httpx2.AsyncClient(transport=_Careful(url, inner), timeout=httpx2.Timeout(30.0), trust_env=False)


class _Careful(httpx2.AsyncBaseTransport):
    def __init__(self, url: str, inner: httpx2.AsyncBaseTransport) -> None:
        self._here, self._inner = is_here(url), inner

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        if not (is_here(str(request.url)) if self._here else request.url.scheme == "https"):
            raise httpx2.UnsupportedProtocol("not over TLS", request=request)
        request.headers["accept-encoding"] = "identity"
        response = await self._inner.handle_async_request(request)
        assert isinstance(response.stream, httpx2.AsyncByteStream)
        response.stream = _Bounded(response.stream, _BODY_BYTES_MAX)
        return response

    async def aclose(self) -> None:
        await self._inner.aclose()


def is_here(url: str) -> bool:
    """Whether a URL is of this very machine."""
    return urlsplit(url).hostname in {"localhost", "127.0.0.1", "::1"}


async def bounded_body(response: httpx2.Response) -> bytes:
    """The body of a short answer.

    Raises:
        ValueError: It is not short.
    """
    found = b""
    async for chunk in response.aiter_raw():
        found += chunk
        if len(found) > _BODY_BYTES_MAX:
            raise ValueError("an answer that is larger than is taken")
    return found


async def _transport(url: str, connections: int) -> httpx2.AsyncHTTPTransport:
    limits = httpx2.Limits(max_connections=connections, max_keepalive_connections=connections)

    def made() -> httpx2.AsyncHTTPTransport:
        return httpx2.AsyncHTTPTransport(verify=urlsplit(url).scheme == "https", limits=limits)

    return await asyncio.to_thread(made)  # certificates are read from files


def _origin(url: httpx2.URL) -> tuple[str, str, int | None]:
    return url.scheme, url.host, url.port
