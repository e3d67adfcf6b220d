"""Owns one session with an upstream: its answers exactly as they came, nothing offered to it, nothing of its words in our logs."""

from __future__ import annotations

import math
from typing import Any, TypeVar, cast

import mcp_types as t
from fastmcp.client.transports.base import TransportOptions
from mcp import ClientSession
from mcp.shared.dispatcher import ProgressFnT
from mcp.shared.inbound import find_invalid_x_mcp_header
from mcp.shared.message import ClientMessageMetadata
from mcp_types.version import MODERN_PROTOCOL_VERSIONS
from pydantic import BaseModel, TypeAdapter

from body_broker.calls import Json

_T = TypeVar("_T", bound=BaseModel)
_RAW: TypeAdapter[dict[str, Any]] = TypeAdapter(dict[str, Any])


_DEPTH_MAX = 64
_LEAST, _MOST = -(2**63), 2**64 - 1
"""The whole numbers that JSON is written with here."""


class UnsoundError(ValueError):
    """An answer holds what our own JSON cannot: no number, one too long, or levels without end."""


class Session(ClientSession):
    """A session that keeps answers as they came."""

    _raw: dict[str, Any] | None = None

    async def raw(
        self, request: t.ClientRequest, *, timeout_s: float | None = None, progress: ProgressFnT | None = None
    ) -> dict[str, Json]:
        """What is answered to a request, as it came; it has the form that the protocol asks for.

        Raises:
            Exception: The library's.
        """
        found = await super().send_request(
            request, cast("Any", _RAW), request_read_timeout_seconds=timeout_s, progress_callback=progress
        )
        raw = cast("dict[str, Json]", found)
        require_sound(raw)
        return raw

    async def raw_tools(self, cursor: str | None) -> dict[str, Json]:
        """A page of its tools, as they came; calls mirror in headers what these ask for. One at a time."""
        await self.list_tools(params=t.PaginatedRequestParams(cursor=cursor))
        raw = cast("dict[str, Json]", self._raw)  # nothing else was awaited since it came
        if self.protocol_version not in MODERN_PROTOCOL_VERSIONS:
            return raw
        rows = cast("list[dict[str, Json]]", raw["tools"])
        return raw | {"tools": [row for row in rows if find_invalid_x_mcp_header(row["inputSchema"]) is None]}

    async def send_request(
        self,
        request: t.ClientRequest | t.Request[Any, Any],
        result_type: type[_T] | TypeAdapter[_T],
        request_read_timeout_seconds: float | None = None,
        metadata: ClientMessageMetadata | None = None,
        progress_callback: ProgressFnT | None = None,
    ) -> _T:
        """As the library has it; what came stays."""
        found = await super().send_request(
            request, cast("Any", _RAW), request_read_timeout_seconds, metadata, progress_callback
        )
        raw = cast("dict[str, Any]", found)
        require_sound(raw)
        self._raw = raw
        if isinstance(result_type, TypeAdapter):
            return result_type.validate_python(raw, by_name=False)
        return result_type.model_validate(raw, by_name=False)

    async def validate_tool_result(self, name: str, result: t.CallToolResult) -> None:
        """Nothing: what it is to fit is what people accepted, not what was listed last."""


OPTIONS = TransportOptions(session_class=Session)


def bare(session_kwargs: dict[str, Any]) -> dict[str, Any]:
    """What a session is begun with, without all that would let an upstream ask us for anything or tell us what nobody reads."""
    unwanted = {
        "log_level",
        "logging_callback",
        "extensions",
        "result_claims",
        "notification_bindings",
        "sampling_callback",
        "sampling_capabilities",
        "elicitation_callback",
        "list_roots_callback",
    }
    return {key: value for key, value in session_kwargs.items() if key not in unwanted}


def require_sound(value: Json) -> None:
    """Return where all of it can be written as JSON of ours.

    Raises:
        UnsoundError: A number is none (canonical JSON would make the same of it as of null) or too long, or it is too deep.
    """
    rest: list[tuple[Json, int]] = [(value, 0)]
    while rest:
        each, depth = rest.pop()
        if depth > _DEPTH_MAX:
            raise UnsoundError
        if isinstance(each, dict):
            rest.extend((inner, depth + 1) for inner in cast("dict[str, Json]", each).values())
        elif isinstance(each, list):
            rest.extend((inner, depth + 1) for inner in cast("list[Json]", each))
        elif (isinstance(each, float) and not math.isfinite(each)) or (
            isinstance(each, int) and not _LEAST <= each <= _MOST
        ):
            raise UnsoundError
