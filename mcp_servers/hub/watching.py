"""Owns what is told of each MCP message, in OpenTelemetry's conventions for MCP: one span of a server, one duration. Never a word of it."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Collection, Generator, Mapping
from contextlib import AbstractContextManager, contextmanager
from types import TracebackType
from typing import Any, Literal, Self

from mcp.server.context import CallNext, HandlerResult, ServerRequestContext
from mcp.shared.exceptions import MCPError
from mcp_types import INTERNAL_ERROR, INVALID_PARAMS, PROTOCOL_VERSION_META_KEY
from mcp_types.methods import SPEC_CLIENT_METHODS, SPEC_CLIENT_NOTIFICATION_METHODS
from mcp_types.version import KNOWN_PROTOCOL_VERSIONS
from pydantic import ValidationError

from body_broker.calls import Room
from body_broker.tracing import Span, Value, on, span
from mcp_servers.hub.metrics import Metrics
from mcp_servers.hub.tracing import within

Transport = Literal["tcp", "pipe"]
"""`network.transport`: HTTP, or stdio."""
OTHER = "_OTHER"
TOOL_ERROR = "tool_error"
_CALL, _PROMPT, _FIRST = "tools/call", "prompts/get", "initialize"
_NAMED = {_CALL: "gen_ai.tool.name", _PROMPT: "gen_ai.prompt.name"}
_VERSIONS = frozenset(KNOWN_PROTOCOL_VERSIONS)
_ID = re.compile(r"[0-9A-Za-z_.-]{1,64}")
"""What looks like an id; whatever else a client calls its requests is words."""


class Watching:
    """Tells of the messages of one protocol.

    Args:
        metrics: Takes the durations.
        rooms: What is served now: only names of rows in it are told.
        methods: What is served beside the methods of MCP itself.
    """

    def __init__(self, metrics: Metrics, rooms: Callable[[], tuple[Room, ...]], methods: Collection[str] = ()) -> None:
        self._metrics, self._rooms = metrics, rooms
        self._methods = SPEC_CLIENT_METHODS | SPEC_CLIENT_NOTIFICATION_METHODS | frozenset(methods)
        self._of: tuple[Room, ...] | None = None
        self._names: Mapping[str, frozenset[str]] = {}

    async def __call__(self, ctx: ServerRequestContext[Any, Any], call_next: CallNext) -> HandlerResult:
        """Around every message that the SDK takes, as the outermost of its middleware."""
        transport: Transport = "pipe" if ctx.request is None else "tcp"
        with self.message(ctx.method, ctx.params, ctx.request_id, ctx.protocol_version, transport) as seen:
            try:
                return seen.result(await call_next(ctx))
            except MCPError as error:
                seen.refused(error.error.code)
                raise
            except ValidationError:  # the SDK answers it so
                seen.refused(INVALID_PARAMS)
                raise

    def usual(self, method: str, params: Mapping[str, Any], request_id: int | str) -> Message:
        """A message that comes round the SDK's server, for `with`."""
        return self.message(method, params, request_id, params["_meta"][PROTOCOL_VERSION_META_KEY], "tcp")

    def message(
        self,
        method: str,
        params: Mapping[str, Any] | None,
        request_id: int | str | None,
        version: str,
        transport: Transport,
    ) -> Message:
        """One message, for `with`.

        Args:
            method: As it came.
            params: As they came.
            request_id: Of the request; None for a notification.
            version: Of the protocol, as the client says.
            transport: How it came.
        """
        known = method if method in self._methods else OTHER
        name = params.get("name") if params is not None and method in _NAMED else None
        target = name if isinstance(name, str) and name in self._served(method) else ""
        if method == _FIRST and params is not None and isinstance(params.get("protocolVersion"), str):
            version = params["protocolVersion"]  # none was agreed upon yet
        version = version if version in _VERSIONS else OTHER
        return Message(self._metrics, known, target, version, transport, sent=(params, request_id) if on() else None)

    def _served(self, method: str) -> frozenset[str]:
        rooms = self._rooms()
        if rooms is not self._of:
            self._of = rooms
            self._names = {
                _CALL: frozenset(tool.name for room in rooms for tool in room.tools),
                _PROMPT: frozenset(prompt.name for room in rooms for prompt in room.prompts),
            }
        return self._names[method]

    @contextmanager
    def session(self) -> Generator[None]:
        """A session of MCP, which only stdio has: as long as its one client is there."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self._metrics.session.take(("pipe",), time.perf_counter() - began)


class Message:
    """One message; `Watching.message` has the arguments."""

    __slots__ = (
        "_began", "_code", "_fault", "_joined", "_method", "_metrics", "_sent", "_span", "_target", "_transport", "_version",
    )  # fmt: skip

    def __init__(
        self,
        metrics: Metrics,
        method: str,
        target: str,
        version: str,
        transport: Transport,
        *,
        sent: tuple[Mapping[str, Any] | None, int | str | None] | None,
    ) -> None:
        self._metrics, self._method, self._target = metrics, method, target
        self._version, self._transport, self._sent = version, transport, sent
        self._fault = self._code = ""
        self._began = 0.0
        self._joined: AbstractContextManager[object] | None = None
        self._span: Span | None = None

    def result(self, found: HandlerResult) -> Any:  # what it was given
        """What is answered; an error that a tool tells in its result is one."""
        if isinstance(found, Mapping) and found.get("isError") is True:
            self._fault = TOOL_ERROR
        return found

    def refused(self, code: int) -> None:
        """It is answered with an error of JSON-RPC."""
        self._fault = self._code = str(code)

    def __enter__(self) -> Self:
        self._began = time.perf_counter()
        if self._sent is not None:
            params, request_id = self._sent
            self._joined = within(params)
            self._joined.__enter__()
            self._span = span(f"{self._method} {self._target}".rstrip(), kind="server")
            self._span.__enter__()
            if self._span.records:
                self._span.note(self._about(request_id))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is not None and not self._fault:
            self._fault = str(INTERNAL_ERROR) if isinstance(error, Exception) else "cancelled"
        if self._span is not None and self._joined is not None:
            if self._fault and (error is None or isinstance(error, Exception)):
                self._span.fault(self._fault)
            if self._code:
                self._span.note({"rpc.response.status_code": self._code})
            self._span.__exit__(kind, error, traceback)
            self._joined.__exit__(kind, error, traceback)
        called = self._method == _CALL
        self._metrics.operation.take(
            (
                self._method,
                "execute_tool" if called else "",
                self._target if called else "",
                "" if called else self._target,
                self._fault,
                self._code,
                self._version,
                self._transport,
            ),
            time.perf_counter() - self._began,
        )

    def _about(self, request_id: int | str | None) -> dict[str, Value]:
        about: dict[str, Value] = {
            "mcp.method.name": self._method,
            "mcp.protocol.version": self._version,
            "network.transport": self._transport,
        }
        if self._transport == "tcp":
            about["network.protocol.name"] = "http"
        if self._target:
            about[_NAMED[self._method]] = self._target
        if self._method == _CALL:
            about["gen_ai.operation.name"] = "execute_tool"
        if request_id is not None and _ID.fullmatch(found := str(request_id)):
            about["jsonrpc.request.id"] = found
        return about
