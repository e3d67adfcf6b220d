"""Owns the names of OpenTelemetry's conventions for MCP and GenAI: metrics with their attributes and bounds, for /metrics and for OTLP."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Histogram

# The conventions' own bounds begin at 10 ms; most of our answers are there before.
_MCP_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 120, 300)
_CHAT_S = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
_TOKENS = (1, 4, 16, 64, 256, 1024, 4096, 16384, 65536, 262144, 1048576, 4194304, 16777216, 67108864)


@dataclass(frozen=True, slots=True)
class Instrument:
    """A histogram of the conventions.

    Attributes:
        name: As OTLP has it; Prometheus has `_` for each point, and the unit at its end.
        unit: Of UCUM; one in braces is not said in Prometheus.
        about: What it is.
        attributes: In order; "" stands for one that does not apply, which OTLP leaves out.
        bounds: Of its buckets.
    """

    name: str
    unit: str
    about: str
    attributes: tuple[str, ...]
    bounds: tuple[float, ...]

    @property
    def prometheus(self) -> str:
        """Its name on /metrics."""
        return self.name.replace(".", "_") + ("_seconds" if self.unit == "s" else "")


OPERATION = Instrument(
    "mcp.server.operation.duration",
    "s",
    "MCP request or notification duration, from its arrival to its result.",
    (
        "mcp.method.name",
        "gen_ai.operation.name",
        "gen_ai.tool.name",
        "gen_ai.prompt.name",
        "error.type",
        "rpc.response.status_code",
        "mcp.protocol.version",
        "network.transport",
    ),
    _MCP_S,
)
SESSION = Instrument(
    "mcp.server.session.duration",
    "s",
    "Duration of an MCP session, which only stdio has here: over HTTP each request stands alone.",
    ("network.transport",),
    (*_MCP_S[4:], 600, 3_600, 14_400, 86_400),
)
CHAT = Instrument(
    "gen_ai.client.operation.duration",
    "s",
    "Duration of a request to a model, with its waiting for a place.",
    ("gen_ai.operation.name", "gen_ai.provider.name", "gen_ai.request.model", "error.type"),
    _CHAT_S,
)
TOKENS = Instrument(
    "gen_ai.client.token.usage",
    "{token}",
    "Tokens that one request to a model read (input) and wrote (output).",
    ("gen_ai.operation.name", "gen_ai.provider.name", "gen_ai.request.model", "gen_ai.token.type"),
    _TOKENS,
)
INSTRUMENTS = (OPERATION, SESSION, CHAT, TOKENS)

_SERIES_MAX = 4_000
"""Label sets of one instrument; what would be one more is told under `_OTHER`. Names that clients make up never come so far."""


class Recorded:
    """One instrument of a registry, its label sets bound once.

    Args:
        instrument: Which.
        registry: The hub's own.
    """

    def __init__(self, instrument: Instrument, registry: CollectorRegistry) -> None:
        labels = [name.replace(".", "_") for name in instrument.attributes]
        self._width = len(labels)
        self._histogram = Histogram(
            instrument.prometheus, instrument.about, labels, buckets=instrument.bounds, registry=registry
        )
        self._bound: dict[tuple[str, ...], Callable[[float], None]] = {}

    def take(self, key: tuple[str, ...], amount: float) -> None:
        """One observation under these values of the attributes, in their order."""
        observe = self._bound.get(key)
        if observe is None:
            if len(self._bound) >= _SERIES_MAX:
                key = ("_OTHER",) * self._width
            observe = self._bound[key] = self._histogram.labels(*key).observe
        observe(amount)
