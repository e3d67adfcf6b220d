"""Owns telemetry at the hub's edges: the traces that clients bring along, and where this process's spans and metrics go, if anywhere."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterable, Mapping
from contextlib import AbstractContextManager, asynccontextmanager, nullcontext, suppress
from importlib import metadata
from typing import TYPE_CHECKING, Any, cast

from body_broker.background import running
from body_broker.errors import StartError
from body_broker.storage.postgres import Pool
from body_broker.tracing import TRACEPARENT, TRACESTATE, installed, joined, on
from mcp_servers.hub.metrics import Metrics

if TYPE_CHECKING:
    from mcp_servers.hub.exporting import Exporter, MetricsExporter


METRICS_EVERY_S = 60.0
"""As OpenTelemetry's own readers send."""
_LAST_READ_S = 0.5
_NAMES = {TRACEPARENT.encode(): TRACEPARENT, TRACESTATE.encode(): TRACESTATE}


def arriving(headers: Iterable[tuple[bytes, bytes]]) -> AbstractContextManager[object]:
    """Spans inside belong to the trace that an HTTP request says it is in."""
    if not on():
        return nullcontext()
    told = {_NAMES[name]: value.decode("latin-1") for name, value in headers if name in _NAMES}
    return joined(told.get(TRACEPARENT), told.get(TRACESTATE))


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
    exporter = await asyncio.to_thread(_spans_to, url)
    try:
        with installed(exporter.tracer, rate=exporter.rate):
            yield
    finally:
        await asyncio.to_thread(exporter.close)


@asynccontextmanager
async def sending(url: str | None, metrics: Metrics, pool: Pool) -> AsyncGenerator[None]:
    """What is on /metrics is sent to the collector too, every minute and once more on the way out; nobody waits for it.

    Args:
        url: The collector's base URL; None sends nothing.
        metrics: Of this process.
        pool: Where they read what the database knows.
    """
    if url is None:
        yield
        return
    exporter = await asyncio.to_thread(_metrics_to, url, metrics)

    async def send_on() -> None:
        while True:
            await asyncio.sleep(METRICS_EVERY_S)
            await metrics.read(pool)
            await asyncio.to_thread(exporter.send)

    async with running(send_on(), name="metrics-sending"):
        try:
            yield
        finally:
            with suppress(TimeoutError):
                async with asyncio.timeout(_LAST_READ_S):
                    await metrics.read(pool)
            await asyncio.to_thread(exporter.close)


def _spans_to(url: str) -> Exporter:
    return _senders()[0](url, metadata.version("body-broker"))


def _metrics_to(url: str, metrics: Metrics) -> MetricsExporter:
    return _senders()[1](url, metadata.version("body-broker"), metrics.registry)


def _senders() -> tuple[type[Exporter], type[MetricsExporter]]:
    try:
        from mcp_servers.hub.exporting import Exporter, MetricsExporter  # noqa: PLC0415  # 0.3 s, where there is a collector
    except ImportError as error:
        raise StartError(
            "BODY_BROKER_OTLP_URL is set, and what sends traces and metrics is not installed.",
            next_step="Install body-broker[traces], or leave BODY_BROKER_OTLP_URL unset.",
            details={"setting": "BODY_BROKER_OTLP_URL"},
        ) from error
    return Exporter, MetricsExporter
