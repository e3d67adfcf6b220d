"""Owns traces at the hub's edges: those that clients bring along, and where this process's spans go, if anywhere."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterable, Mapping
from contextlib import AbstractContextManager, asynccontextmanager, nullcontext
from importlib import metadata
from typing import TYPE_CHECKING, Any, cast

from mcp.server.context import CallNext, HandlerResult, ServerRequestContext

from body_broker.errors import StartError
from body_broker.tracing import TRACEPARENT, TRACESTATE, installed, joined, on

if TYPE_CHECKING:
    from mcp_servers.hub.exporting import Exporter


_NAMES = {TRACEPARENT.encode(): TRACEPARENT, TRACESTATE.encode(): TRACESTATE}


def arriving(headers: Iterable[tuple[bytes, bytes]]) -> AbstractContextManager[object]:
    """Spans inside belong to the trace that an HTTP request says it is in."""
    if not on():
        return nullcontext()
    told = {_NAMES[name]: value.decode("latin-1") for name, value in headers if name in _NAMES}
    return joined(told.get(TRACEPARENT), told.get(TRACESTATE))


async def traced(ctx: ServerRequestContext[Any, Any], call_next: CallNext) -> HandlerResult:
    """Around every MCP message: spans belong to the trace that its `_meta` names, else to that of the request it came in."""
    with within(ctx.params):
        return await call_next(ctx)


def within(params: Mapping[str, Any] | None) -> AbstractContextManager[object]:
    """Spans inside belong to the trace that the `_meta` of a message names."""
    meta = params.get("_meta") if on() and params else None
    if not isinstance(meta, Mapping):
        return nullcontext()
    told = cast("Mapping[str, object]", meta)
    return joined(told.get(TRACEPARENT), told.get(TRACESTATE))


@asynccontextmanager
async def open_tracing(url: str | None) -> AsyncGenerator[None]:
    """Spans of this process are sent until the way out.

    OpenTelemetry's own variables (OTEL_TRACES_SAMPLER, OTEL_EXPORTER_OTLP_HEADERS, ...) hold as well.

    Args:
        url: The collector's base URL; None sends nothing.

    Raises:
        StartError: The packages that send are not installed.
    """
    if url is None:
        yield
        return
    exporter = await asyncio.to_thread(_made, url)
    try:
        with installed(exporter.tracer):
            yield
    finally:
        await asyncio.to_thread(exporter.close)


def _made(url: str) -> Exporter:
    try:
        from mcp_servers.hub.exporting import Exporter  # noqa: PLC0415  # 0.3 s, where there is a collector
    except ImportError as error:
        raise StartError(
            "BODY_BROKER_OTLP_URL is set, and what sends traces is not installed.",
            next_step="Install body-broker[traces], or leave BODY_BROKER_OTLP_URL unset.",
            details={"setting": "BODY_BROKER_OTLP_URL"},
        ) from error
    return Exporter(url, metadata.version("body-broker"))
