"""Owns one session with an upstream: its answers exactly as they came, nothing offered to it, nothing of its words in our logs."""

from __future__ import annotations

import math
from typing import Any, TypeVar, cast

import mcp_types as t
from fastmcp.client.transports.base import TransportOptions
from mcp import ClientSession
from mcp.shared.dispatcher import ProgressFnT
from mcp.shared.message import ClientMessageMetadata
from pydantic import BaseModel, TypeAdapter

from body_broker.calls import Json

_T = TypeVar("_T", bound=BaseModel)
_RAW: TypeAdapter[dict[str, Any]] = TypeAdapter(dict[str, Any])


class UnsoundError(ValueError):
    """An answer holds a number that is none."""


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
        page = await self.list_tools(params=t.PaginatedRequestParams(cursor=cursor))
        kept = {tool.name for tool in page.tools}  # without those that the revision says must be dropped
        raw = self._raw or {}
        tools = cast("list[dict[str, Json]]", raw["tools"])
        return raw | {"tools": [t.model_dump(by_alias=True, exclude_unset=True) for t in page.tools]}

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
    """Return where every number in it is one.

    Raises:
        UnsoundError: One is not: canonical JSON would make the same of it as of null.
    """
    rest: list[Json] = [value]
    while rest:
        each = rest.pop()
        if isinstance(each, dict):
            rest.extend(cast("dict[str, Json]", each).values())
        elif isinstance(each, list):
            rest.extend(cast("list[Json]", each))
        elif isinstance(each, float) and not math.isfinite(each):
            raise UnsoundError
