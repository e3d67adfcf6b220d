"""Owns sending spans and metrics to a collector, in threads; imported only where one is configured: it costs 0.3 s."""

from __future__ import annotations

import logging
import re
import secrets
import threading
import time

from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.metrics.export import MetricExportResult, MetricsData, ResourceMetrics, ScopeMetrics
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ALWAYS_ON, ParentBased, Sampler
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Tracer
from prometheus_client import CollectorRegistry

from body_broker.telemetry import get_logger
from mcp_servers.hub.otlp_metrics import metrics_of

log = get_logger(__name__)

_PATH, _METRICS_PATH = "/v1/traces", "/v1/metrics"
_TIMEOUT_S = 3.0
"""How long one batch may take."""
LAST_S = 0.5
"""How long a process that ends still tries to send its last spans: no command waits longer for a collector that is down."""
_SAID_EVERY_S = 300.0
_LOUD = ("opentelemetry.exporter.otlp.proto.http.trace_exporter", "opentelemetry.sdk._shared_internal")
_LOUD_METRICS = "opentelemetry.exporter.otlp.proto.http.metric_exporter"
_RATIO = re.compile(r"ParentBased\{root:TraceIdRatioBased\{([0-9.e-]+)\},")
"""What a sampler says of itself."""
_INSTANCE = secrets.token_hex(8)
"""Tells this process from the others, whose figures are their own."""
"""What logs each failure, with the exception's own text: one line of ours stands for all of them."""


class _OneLine(logging.Handler):
    """Says once in a while that spans are lost, in place of what the library logs of each batch.

    Attributes:
        failed: Set by the first failure.
    """

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.failed = threading.Event()
        self._said_at: float | None = None

    def emit(self, record: logging.LogRecord) -> None:
        """Hear of one failure."""
        del record
        self.say()

    def say(self) -> None:
        """Say it, where it was not said lately."""
        self.failed.set()
        now = time.monotonic()
        if self._said_at is None or now - self._said_at >= _SAID_EVERY_S:
            self._said_at = now
            log.warning("traces_not_sent", setting="BODY_BROKER_OTLP_URL")


class Exporter:
    """Makes spans and sends them; what cannot be sent is dropped, and that is logged in one line every five minutes.

    Args:
        url: The collector's base URL.
        version: This program's.

    Attributes:
        tracer: Records.
        rate: As `body_broker.tracing.installed` has it.
    """

    def __init__(self, url: str, version: str) -> None:
        self._line = _quieten()
        base = url.rstrip("/")
        self._sender = OTLPSpanExporter(endpoint=base if base.endswith(_PATH) else base + _PATH, timeout=_TIMEOUT_S)
        self._provider = TracerProvider(resource=_about(version), shutdown_on_exit=False)
        self.rate = _rate_of(self._provider.sampler)
        if self.rate is not None:
            self._provider = TracerProvider(
                resource=_about(version), sampler=ParentBased(ALWAYS_ON), shutdown_on_exit=False
            )
        self._provider.add_span_processor(BatchSpanProcessor(self._sender))
        self.tracer: Tracer = self._provider.get_tracer("body-broker", version)

    def close(self) -> None:
        """Send what is left, within half a second, and not at all where the last batch is failing; blocking."""
        ended, is_sent = self._line.failed, threading.Event()
        ended.clear()  # what failed long ago may be up again

        def send() -> None:
            self._provider.shutdown()
            is_sent.set()
            ended.set()

        # In a thread that nobody waits for at the end: a batch that is being sent has its own few seconds, and so has the one behind it.
        threading.Thread(target=send, name="last-spans", daemon=True).start()
        ended.wait(LAST_S)
        if not is_sent.is_set():
            self._line.say()
            self._sender.shutdown()


class MetricsExporter:
    """Sends what a registry holds, as /metrics tells it, under the names of OpenTelemetry's conventions where these have one.

    A collector that is away is told in one line, and once more when it has been there in between.

    Args:
        url: The collector's base URL.
        version: This program's.
        registry: The hub's own.
    """

    def __init__(self, url: str, version: str, registry: CollectorRegistry) -> None:
        logger = logging.getLogger(_LOUD_METRICS)
        logger.handlers, logger.propagate = [logging.NullHandler()], False  # it logs exceptions' own text
        base = url.rstrip("/").removesuffix(_PATH)
        self._sender = OTLPMetricExporter(endpoint=base + _METRICS_PATH, timeout=_TIMEOUT_S)
        self._registry, self._about = registry, _about(version)
        self._scope = InstrumentationScope("body-broker", version)
        self._began_ns = time.time_ns()
        self._said = False

    def send(self) -> bool:
        """Whether they were taken; blocking, and at most a few seconds."""
        found = metrics_of(self._registry.collect(), self._began_ns, time.time_ns())
        scope = ScopeMetrics(self._scope, found, "")
        data = MetricsData([ResourceMetrics(self._about, [scope], "")])
        taken = self._sender.export(data) is MetricExportResult.SUCCESS  # pyright: ignore[reportUnknownMemberType]  # the SDK's hints
        if not taken and not self._said:
            log.warning("metrics_not_sent", setting="BODY_BROKER_OTLP_URL")
        self._said = not taken
        return taken

    def close(self) -> None:
        """Send them once more, within half a second, and not at all where the last were not taken; blocking."""
        if not self._said:
            last = threading.Thread(target=self.send, name="last-metrics", daemon=True)
            last.start()
            last.join(LAST_S)
        self._sender.shutdown()  # pyright: ignore[reportUnknownMemberType]  # the SDK's hints


def _rate_of(sampler: Sampler) -> float | None:
    """The share of traces that OTEL_TRACES_SAMPLER=parentbased_traceidratio asks for; None leaves other samplers to decide themselves."""
    found = _RATIO.match(sampler.get_description())
    return float(found[1]) if found else None


def _about(version: str) -> Resource:
    # Not Resource.create: it adds the command line, which may hold what nobody else should read.
    return Resource({"service.name": "body-broker", "service.version": version, "service.instance.id": _INSTANCE})


def _quieten() -> _OneLine:
    line = _OneLine()
    for name in _LOUD:
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [line], False
    return line
