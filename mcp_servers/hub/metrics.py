"""Owns the hub's Prometheus metrics: a registry per hub, children bound once per label set."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import asyncpg
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from approvals.model import Standing
from approvals.slack.words import CONNECTED
from body_broker.storage.postgres import LOST, Pool
from mcp_servers.hub.conventions import OPERATION, SESSION, Recorded
from mcp_servers.hub.experts_metrics import ExpertJobs

_BUCKETS_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_OUTCOMES: tuple[str, ...] = ("approved", "denied", "expired", "cancelled", "done", "failed", "unknown")
_PEOPLE_S = (1, 5, 10, 30, 60, 120, 300, 600, 900, 1_800, 3_600, 4 * 3_600, 24 * 3_600)
"""Bounds for what waits for people."""
_BY_PEOPLE: frozenset[Standing] = frozenset({"approved", "denied"})
_TOTALS = """
SELECT state, outcome, count(*) AS n FROM approval WHERE state <> 'pending' GROUP BY state, outcome
"""
_NOW = """
SELECT (SELECT count(*) FROM approval WHERE state = 'pending' AND expires_at > clock_timestamp()) AS pending,
       (SELECT count(*) FROM approval_notice WHERE failures > 0) AS failed_notices,
       (SELECT count(*) FROM approval a LEFT JOIN approval_notice n ON n.approval_id = a.id
        WHERE a.notify AND a.state = 'pending' AND a.expires_at > clock_timestamp() AND n.shown IS NULL
            AND a.created_at < clock_timestamp() - interval '60 seconds') AS unseen,
       (SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name = $1) AS listeners
"""


class _Approvals(Collector):
    """How approvals stand, as the database said when it was last asked: the same on every hub, whoever decided where.

    Where it did not say, nothing is told.
    """

    def __init__(self) -> None:
        self._now: Mapping[str, int] | None = None
        self._totals: Mapping[str, int] = {}

    async def read(self, pool: Pool) -> None:
        try:
            now, totals = await pool.fetchrow(_NOW, CONNECTED), await pool.fetch(_TOTALS)
        except (*LOST, asyncpg.PostgresError):
            self._now = None
            return
        assert now is not None, "counts are always a row"
        self._now, counted = dict(now), dict.fromkeys(_OUTCOMES, 0)
        for state, outcome, number in totals:
            counted[state] += number
            if outcome is not None:
                counted[outcome] += number
        self._totals = counted

    def collect(self) -> Iterator[Metric]:
        """In Prometheus' words."""
        if self._now is None:
            return
        yield GaugeMetricFamily(
            "body_broker_approvals_pending", "Requests that wait for people.", value=self._now["pending"]
        )
        yield GaugeMetricFamily(
            "body_broker_approval_notices_failed",
            "Requests whose notice failed and is tried again.",
            value=self._now["failed_notices"],
        )
        yield GaugeMetricFamily(
            "body_broker_approval_notices_unseen",
            "Requests that wait for people and were not shown in Slack for a minute.",
            value=self._now["unseen"],
        )
        yield GaugeMetricFamily(
            "body_broker_slack_connected",
            "Processes that are connected to Slack to hear clicks, over all hubs: one, or none.",
            value=self._now["listeners"],
        )
        total = CounterMetricFamily(
            "body_broker_approvals",
            "What became of requests to people, over all hubs: approved, denied, expired, cancelled; after a yes done, failed, unknown.",
            labels=["outcome"],
        )
        for outcome, number in self._totals.items():
            total.add_metric([outcome], number)
        yield total


class Metrics:
    """Counts calls by operation, kind of caller and outcome; times them; counts refusals before an identity was known.

    Attributes:
        operation, session: Of MCP, in OpenTelemetry's conventions.
    """

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
        self._asked = Counter(
            "body_broker_approvals_asked",
            "Calls that were put to people, by whether they joined a request that was there.",
            ["joined"],
            registry=self.registry,
        )
        self._decision_s = Histogram(
            "body_broker_approval_decision_seconds",
            "From asking to what people decided, where this hub took their decision.",
            buckets=_PEOPLE_S,
            registry=self.registry,
        )
        self.operation, self.session = Recorded(OPERATION, self.registry), Recorded(SESSION, self.registry)
        self._approvals, self._jobs = _Approvals(), ExpertJobs()
        self.registry.register(self._approvals)
        self.registry.register(self._jobs)
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

    def approval_asked(self, *, joined: bool) -> None:
        """A call was put to people."""
        self._asked.labels("yes" if joined else "no").inc()

    def approval_ended(self, outcome: Standing, waited_s: float) -> None:
        """A request was decided here, so long after it was asked; how many were is counted in the database."""
        if outcome in _BY_PEOPLE:
            self._decision_s.observe(waited_s)

    async def read(self, pool: Pool) -> None:
        """Ask the database how approvals and experts' jobs stand, for the next text."""
        await self._approvals.read(pool)
        await self._jobs.read(pool)

    def text(self) -> str:
        """Every metric in Prometheus' text form."""
        return generate_latest(self.registry).decode()
