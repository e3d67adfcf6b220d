"""Owns sending spans to a collector, from a thread of its own; imported only where one is configured: it costs 0.3 s."""

from __future__ import annotations

import logging
import threading
import time

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Tracer

from body_broker.telemetry import get_logger

log = get_logger(__name__)

_PATH = "/v1/traces"
_TIMEOUT_S = 3.0
"""How long one batch may take."""
LAST_S = 0.5
"""How long a process that ends still tries to send its last spans: no command waits longer for a collector that is down."""
_SAID_EVERY_S = 300.0
_LOUD = ("opentelemetry.exporter.otlp.proto.http.trace_exporter", "opentelemetry.sdk._shared_internal")
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
    """

    def __init__(self, url: str, version: str) -> None:
        self._line = _quieten()
        base = url.rstrip("/")
        self._sender = OTLPSpanExporter(endpoint=base if base.endswith(_PATH) else base + _PATH, timeout=_TIMEOUT_S)
        # Not Resource.create: it adds the command line, which may hold what nobody else should read.
        about = Resource({"service.name": "body-broker", "service.version": version})
        self._provider = TracerProvider(resource=about, shutdown_on_exit=False)
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


def _quieten() -> _OneLine:
    line = _OneLine()
    for name in _LOUD:
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [line], False
    return line
