"""Owns what the tiers count, as metrics of this process."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from mcp_servers.hub.conventions import CHAT, TOKENS, Recorded
from tiers.counts import Counts
from tiers.model import Usage

_GAP_S = (0.001, 0.0025, 0.005, 0.008, 0.012, 0.016, 0.025, 0.05, 0.1, 0.15, 0.25, 0.5, 1, 2)
"""Bounds of the time between pieces; 16 ms is gold's level."""
_FIRST_S = (0.005, 0.01, 0.025, 0.05, 0.08, 0.1, 0.15, 0.25, 0.5, 1, 1.5, 2.5, 5, 10, 15)
"""Bounds of the time to the first piece; 250 ms is silver's level."""
_WHOLE_S = (0.005, 0.016, 0.05, 0.1, 0.2, 0.3, 0.5, 1, 2, 4, 8, 15, 30, 60, 120, 300, 600)
_TOOL_S = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_STATES = ("closed", "half-open", "open")


class TierCounts(Counts):
    """Counts into a registry; `tiers.counts.Counts` says what each is.

    Args:
        registry: The hub's own.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry
        self._first = self._histogram("first_token", "To an engine's first token.", ["tier", "engine"], _FIRST_S)
        self._gaps = self._histogram("token_gap", "Between two pieces of an answer.", ["tier", "engine"], _GAP_S)
        self._whole = self._histogram(
            "answer", "To the whole answer, by what it came from.", ["tier", "source"], _WHOLE_S
        )
        self._tool_s = self._histogram("tool", "Of one call of a tool by a tier.", ["tier"], _TOOL_S)
        self._tokens = self._counter(
            "tokens", "Tokens read (cached ones among them) and written.", ["tier", "engine", "kind"]
        )
        self._chats, self._usage = Recorded(CHAT, registry), Recorded(TOKENS, registry)
        self._fallbacks = self._counter("fallbacks", "Steps down, by why.", ["tier", "reason"])
        self._asked = self._counter(
            "cache_asked", "How often a cache was asked, by what came of it.", ["cache", "outcome"]
        )
        self._usd = self._counter("spent_usd", "US dollars spent; what may have been spent counts as spent.", ["tier"])
        self._tools = self._counter(
            "tool_calls", "Calls of tools by tiers, by how they ended.", ["tier", "tool", "outcome"]
        )
        self._queues = self._gauge("waiting", "Requests that wait for an engine.", ["queue"])
        self._breakers = self._gauge(
            "breaker", "1 for the state that an engine's circuit breaker is in.", ["engine", "state"]
        )
        self._bound: dict[tuple[object, ...], Callable[[float], None]] = {}

    def _histogram(self, name: str, about: str, labels: list[str], buckets: tuple[float, ...]) -> Histogram:
        return Histogram(f"body_broker_tier_{name}_seconds", about, labels, buckets=buckets, registry=self.registry)

    def _counter(self, name: str, about: str, labels: list[str]) -> Counter:
        return Counter(f"body_broker_tier_{name}", about, labels, registry=self.registry)

    def _gauge(self, name: str, about: str, labels: list[str]) -> Gauge:
        return Gauge(f"body_broker_tier_{name}", about, labels, registry=self.registry)

    def _take(self, metric: Histogram | Counter | Gauge, amount: float, **labels: str) -> None:
        """Observe or add; the child of a label set is looked up once."""
        key = (metric, *labels.values())
        take = self._bound.get(key)
        if take is None:
            child = metric.labels(**labels)
            take = self._bound[key] = child.observe if isinstance(child, Histogram) else child.inc
        take(amount)

    def first_token(self, tier: str, engine: str, seconds: float) -> None:
        """An engine's first token came so long after it was asked."""
        self._take(self._first, seconds, tier=tier, engine=engine)

    def token_gap(self, tier: str, engine: str, seconds: float) -> None:
        """So long between two pieces of one answer."""
        self._take(self._gaps, seconds, tier=tier, engine=engine)

    def answered(self, tier: str, source: str, seconds: float) -> None:
        """A request was answered, from this source, so long after it came."""
        self._take(self._whole, seconds, tier=tier, source=source)

    def tokens(self, tier: str, engine: str, usage: Usage) -> None:
        """What an engine read and wrote."""
        for kind, number in (("prompt", usage.prompt), ("cached", usage.cached), ("completion", usage.completion)):
            self._take(self._tokens, max(0, number), tier=tier, engine=engine, kind=kind)

    def asked(self, operation: str, provider: str, model: str, seconds: float, usage: Usage, *, fault: str) -> None:
        """A request to an engine ended."""
        self._chats.take((operation, provider, model, fault), seconds)
        for kind, number in (("input", usage.prompt), ("output", usage.completion)):
            if number > 0:
                self._usage.take((operation, provider, model, kind), number)

    def fell_back(self, tier: str, reason: str) -> None:
        """One step down."""
        self._take(self._fallbacks, 1, tier=tier, reason=reason)

    def cached(self, cache: str, *, hit: bool) -> None:
        """A cache was asked."""
        self._take(self._asked, 1, cache=cache, outcome="hit" if hit else "miss")

    def waiting(self, queue: str, change: int) -> None:
        """So many more (or fewer) wait in a queue."""
        self._take(self._queues, change, queue=queue)

    def breaker(self, engine: str, state: Callable[[], str]) -> None:
        """An engine has a breaker: its state is read whenever the metrics are, for it changes by time alone too."""
        for each in _STATES:
            self._breakers.labels(engine, each).set_function(lambda each=each: float(state() == each))

    def spent(self, tier: str, usd: float) -> None:
        """Money was spent."""
        self._take(self._usd, max(0.0, usd), tier=tier)

    def tool_used(self, tier: str, tool: str, outcome: str, seconds: float) -> None:
        """A tier called a tool of the hub."""
        self._take(self._tools, 1, tier=tier, tool=tool, outcome=outcome)
        self._take(self._tool_s, seconds, tier=tier)
