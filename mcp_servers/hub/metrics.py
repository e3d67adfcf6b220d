"""Owns the hub's Prometheus metrics: a registry per hub, children bound once per label set."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_BUCKETS_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class Metrics:
    """Counts calls by operation, kind of caller and outcome; times them; counts refusals before an identity was known."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._calls = Counter(
            "body_broker_calls",
            "Calls by operation, caller kind and outcome.",
            ["operation", "caller", "outcome"],
            registry=self.registry,
        )
        self._seconds = Histogram(
            "body_broker_call_seconds",
            "Time inside the gate.",
            ["operation"],
            buckets=_BUCKETS_S,
            registry=self.registry,
        )
        self._refused = Counter(
            "body_broker_refused", "Requests refused before they had an identity.", ["reason"], registry=self.registry
        )
        self.open_calls = Gauge("body_broker_open_calls", "Calls inside the gate now.", registry=self.registry)
        self._bound_calls: dict[tuple[str, str, str], Callable[[], None]] = {}
        self._bound_seconds: dict[str, Callable[[float], None]] = {}

    def called(self, operation: str, caller: str, outcome: str, seconds: float) -> None:
        """One call ended. `operation` must be a known row's name, `caller` a kind: label sets stay few."""
        key = (operation, caller, outcome)
        count = self._bound_calls.get(key)
        if count is None:
            count = self._bound_calls[key] = self._calls.labels(*key).inc
        count()
        observe = self._bound_seconds.get(operation)
        if observe is None:
            observe = self._bound_seconds[operation] = self._seconds.labels(operation).observe
        observe(seconds)

    def refused(self, reason: str) -> None:
        """One request had no identity that holds, or came to a wrong host."""
        self._refused.labels(reason).inc()

    def text(self) -> str:
        """Every metric in Prometheus' text form."""
        return generate_latest(self.registry).decode()
