"""Owns the one long-lived MCP client of the tiers: many identities over one connection, a token of its own for each call."""

from __future__ import annotations

import asyncio
import contextvars
import json
import re
from collections.abc import AsyncGenerator, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from typing import Any, cast

import httpx2
import orjson
from fastmcp.client import Client
from fastmcp.client.transports import StreamableHttpTransport
from fastmcp.client.transports.base import TransportOptions
from fastmcp.exceptions import McpError
from mcp_types import (
    CLIENT_CAPABILITIES_META_KEY,
    CLIENT_INFO_META_KEY,
    PROTOCOL_VERSION_META_KEY,
    TextContent,
)

from body_broker.background import end
from body_broker.calls import OUTSIDE_META, WAIT_META, Json
from body_broker.telemetry import get_logger
from tiers.hubtools import Connect, Post, Refused

log = get_logger(__name__)

URL = "http://localhost/mcp"
_REVISION = "2026-07-28"
_OK = 200
_MIRRORS = "x-mcp-header"
_PLAIN = re.compile(r"[A-Za-z0-9_.-]+")
_HEAD = (
    (b"host", b"localhost"),
    (b"accept", b"application/json"),
    (b"content-type", b"application/json"),
    (b"mcp-protocol-version", _REVISION.encode()),
    (b"mcp-method", b"tools/call"),
)
_META: Mapping[str, Json] = {
    WAIT_META: 0,
    PROTOCOL_VERSION_META_KEY: _REVISION,
    CLIENT_INFO_META_KEY: {"name": "body-broker tiers", "version": "1"},
    CLIENT_CAPABILITIES_META_KEY: {},
}


@dataclass(frozen=True, slots=True)
class Listed:
    """A tool as the hub shows it to one identity."""

    name: str
    description: str
    schema: Mapping[str, Json]
    read_only: bool
    repeatable: bool


@dataclass(frozen=True, slots=True)
class Said:
    """What the hub said to one call: text for a model, the same as data, whether it is an error, and whether text from outside is in it."""

    text: str
    structured: Mapping[str, Json]
    failed: bool
    outside: bool


@dataclass(slots=True)
class _Speaking:
    """Who speaks in this task, and the HTTP status that they got."""

    token: str
    status: int = _OK


_SPEAKING: contextvars.ContextVar[_Speaking] = contextvars.ContextVar("body_broker_speaking")


@contextmanager
def _speaking(token: str) -> Generator[_Speaking]:
    speaking = _Speaking(token)
    before = _SPEAKING.set(speaking)
    try:
        yield speaking
    finally:
        _SPEAKING.reset(before)


class _Identity(httpx2.Auth):
    """Puts the token of whoever speaks in this task on each request."""

    async def async_auth_flow(self, request: httpx2.Request) -> AsyncGenerator[httpx2.Request, httpx2.Response]:
        speaking = _SPEAKING.get()
        request.headers["authorization"] = f"Bearer {speaking.token}"
        response = yield request
        speaking.status = response.status_code


async def _as_it_is(_session: object, _name: str, _result: object) -> None:
    """The hub has checked its own results, and what one identity was listed says nothing of another's."""


class _Transport(StreamableHttpTransport):
    """Sessions that do not check results against the last listing, whosever it was."""

    _options = TransportOptions(
        session_class=type("Session", (TransportOptions.session_class,), {"validate_tool_result": _as_it_is})
    )

    def connect_session(
        self, *, transport_options: TransportOptions | None = None, **session_kwargs: Any
    ) -> Any:  # as fastmcp has it
        return super().connect_session(transport_options=transport_options or self._options, **session_kwargs)


class HubClient:
    """A client that connects when it is first needed, and again where its connection broke.

    Args:
        connect: Reaches the hub.
        post: Takes a message there. The library's own way costs five times what the hub does to a call, so a call that its
            session would add nothing to is written and read here, and sent as it would send it.
    """

    def __init__(self, connect: Connect, post: Post | None = None) -> None:
        self._connect, self._post = connect, post
        self._numbers = count(1)
        self._mirrored: frozenset[str] = frozenset()
        self._client: Client[Any] | None = None
        self._task: asyncio.Task[None] | None = None
        self._connecting = asyncio.Lock()

    async def tools(self, token: str) -> Sequence[Listed]:
        """What the hub shows whoever has this token.

        Raises:
            Refused: It shows nothing.
        """
        with _speaking(token) as speaking, _mapped(speaking):
            client = await self._connected()
            listed = await client.list_tools()
        self._mirrored |= {tool.name for tool in listed if _MIRRORS in str(tool.input_schema)}
        return [
            Listed(
                tool.name,
                tool.description or "",
                tool.input_schema,
                tool.annotations is not None and tool.annotations.read_only_hint is True,
                tool.annotations is not None and tool.annotations.idempotent_hint is True,
            )
            for tool in listed
        ]

    async def call(self, token: str, name: str, arguments: Mapping[str, Json]) -> Said:
        """What the hub says to one call. It does not wait for people: whom it asks is told at once.

        Raises:
            Refused: It was not answered.
        """
        if self._post is not None and name not in self._mirrored and _PLAIN.fullmatch(name):
            return await self._posted(self._post, token, name, arguments)
        with _speaking(token) as speaking, _mapped(speaking):
            client = await self._connected()
            result = await client.call_tool_mcp(name, dict(arguments), meta={WAIT_META: 0})
        text = "\n".join(
            block.text if isinstance(block, TextContent) else f"[{block.type}]" for block in result.content
        )
        outside = bool(result.meta and result.meta.get(OUTSIDE_META))
        return Said(text, result.structured_content or {}, bool(result.is_error), outside)

    async def _posted(self, post: Post, token: str, name: str, arguments: Mapping[str, Json]) -> Said:
        params = {"_meta": _META, "name": name, "arguments": arguments}
        call = {"jsonrpc": "2.0", "id": next(self._numbers), "method": "tools/call", "params": params}
        body = _written(call)
        mine = (b"mcp-name", name.encode()), (b"authorization", b"Bearer " + token.encode())
        try:
            status, answer = await post((*_HEAD, *mine, (b"content-length", b"%d" % len(body))), body)
            found: Any = orjson.loads(answer)
            if "result" in found:
                return _said(found["result"])
            data: Any = found["error"].get("data")
        except Refused:
            raise
        except Exception as error:
            log.warning("hub_answer_not_read", error=type(error).__name__)
            raise Refused(None) from error
        raise Refused(status, _code(data))

    async def _connected(self) -> Client[Any]:
        client = self._client
        if client is not None and client.is_connected() and self._task is not None and not self._task.done():
            return client
        async with self._connecting:
            client = self._client
            if client is None or self._task is None or self._task.done() or not client.is_connected():
                await self.close()
                client = self._client = Client(
                    _Transport(URL, auth=_Identity(), httpx_client_factory=self._connect), mode=_REVISION
                )
                ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
                # A task of its own, in a context of its own: it outlives the request that is first, and is not part of its trace.
                self._task = asyncio.create_task(_hold(client, ready), name="hub-client", context=contextvars.Context())
                await asyncio.shield(ready)
        return client

    async def close(self) -> None:
        """End the connection."""
        task, self._task = self._task, None
        if task is not None:
            await end(task)


async def _hold(client: Client[Any], ready: asyncio.Future[None]) -> None:
    """The client connected until cancelled."""
    try:
        async with client:
            if not ready.done():
                ready.set_result(None)
            await asyncio.get_running_loop().create_future()
    except Exception as error:  # noqa: BLE001 - whatever the library raises, the connection is gone
        log.warning("hub_client_lost", error=type(error).__name__)
        if not ready.done():
            ready.set_exception(Refused(None))


@contextmanager
def _mapped(speaking: _Speaking) -> Generator[None]:
    """The client library's exceptions as ours, without a word of theirs."""
    try:
        yield
    except Refused:
        raise
    except McpError as error:
        raise Refused(speaking.status, _code(error.error.data)) from error
    except Exception as error:
        raise Refused(None if speaking.status == _OK else speaking.status) from error


def _written(call: Mapping[str, Any]) -> bytes:
    try:
        return orjson.dumps(call, default=dict)
    except TypeError:  # a number that is too large for it, or half a character: the hub says what it thinks of them
        return json.dumps(call, default=dict).encode()


def _said(result: Mapping[str, Any]) -> Said:
    """What a result says.

    Raises:
        Refused: It asks for something instead, which nobody here can answer.
    """
    if result["resultType"] != "complete":
        raise Refused(None)
    text = "\n".join(block["text"] if block["type"] == "text" else f"[{block['type']}]" for block in result["content"])
    outside = bool(result.get("_meta", {}).get(OUTSIDE_META))
    return Said(text, result.get("structuredContent") or {}, bool(result.get("isError")), outside)


def _code(data: object) -> str | None:
    code = cast("dict[str, Any]", data).get("code") if isinstance(data, dict) else None
    return code if isinstance(code, str) else None
