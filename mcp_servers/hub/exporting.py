"""Owns sending spans to a collector, from a thread of its own; imported only where one is configured: it costs 0.3 s."""

from __future__ import annotations

import threading

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Tracer

_PATH = "/v1/traces"
_TIMEOUT_S = 3.0
"""How long one batch may take, and how long a process that ends still tries to send its last spans."""


class Exporter:
    """Makes spans and sends them; what cannot be sent is dropped and logged.

    Args:
        url: The collector's base URL.
        version: This program's.
    """

    def __init__(self, url: str, version: str) -> None:
        base = url.rstrip("/")
        self._sender = OTLPSpanExporter(endpoint=base if base.endswith(_PATH) else base + _PATH, timeout=_TIMEOUT_S)
        # Not Resource.create: it adds the command line, which may hold what nobody else should read.
        about = Resource({"service.name": "body-broker", "service.version": version})
        self._provider = TracerProvider(resource=about, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(self._sender))
        self.tracer: Tracer = self._provider.get_tracer("body-broker", version)

    def close(self) -> None:
        """Send what is left, within a few seconds; blocking."""
        # In a thread that nobody waits for at the end: a batch that is being sent has its own few seconds, and so has the one behind it.
        sending = threading.Thread(target=self._provider.shutdown, name="last-spans", daemon=True)
        sending.start()
        sending.join(_TIMEOUT_S)
        if sending.is_alive():
            self._sender.shutdown()
