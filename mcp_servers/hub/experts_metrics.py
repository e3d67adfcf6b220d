"""Owns how experts' jobs stand, as metrics: queues, durations, outcomes and cost, the same on every hub, for the database has them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import asyncpg
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from body_broker.storage.postgres import LOST, Pool
from tiers.bronze.jobs import LIMIT_KEY

_OPEN = """
SELECT kind, state, count(*) AS n, extract(epoch FROM clock_timestamp() - min(created_at))::float8 AS oldest_s
FROM work WHERE limit_key = $1 AND state IN ('waiting', 'queued', 'running', 'unknown') GROUP BY kind, state ORDER BY kind, state
"""
_ENDED = """
SELECT kind, state, count(*) AS n,
    percentile_cont(ARRAY[0.5, 0.95]) WITHIN GROUP (ORDER BY extract(epoch FROM finished_at - created_at)::float8) AS seconds
FROM work WHERE limit_key = $1 AND finished_at > clock_timestamp() - interval '1 hour' GROUP BY kind, state ORDER BY kind, state
"""
_COST = """
SELECT kind, avg(usd)::float8 AS usd, count(*) FILTER (WHERE maybe_spent) AS maybe_spent
FROM (SELECT w.kind, coalesce(sum(c.cost), 0)::float8 / 1e9 AS usd, bool_or(c.maybe_spent) AS maybe_spent
    FROM work w JOIN expert_call c ON c.job = w.id
    WHERE w.limit_key = $1 AND w.finished_at > clock_timestamp() - interval '1 hour' GROUP BY w.kind, w.id) AS job
GROUP BY kind ORDER BY kind
"""
_HOUR = "of those that ended in the last hour"
_QUANTILES = ("0.5", "0.95")
_Rows = Sequence[Any]  # asyncpg's records


class ExpertJobs(Collector):
    """How experts' jobs stood when the database was last asked; where it did not say, nothing is told."""

    def __init__(self) -> None:
        self._read: tuple[_Rows, _Rows, _Rows] | None = None

    async def read(self, pool: Pool) -> None:
        """Ask the database, for the next text."""
        try:
            async with pool.acquire() as connection:
                self._read = (
                    await connection.fetch(_OPEN, LIMIT_KEY),
                    await connection.fetch(_ENDED, LIMIT_KEY),
                    await connection.fetch(_COST, LIMIT_KEY),
                )
        except (*LOST, asyncpg.PostgresError):
            self._read = None

    def collect(self) -> Iterator[Metric]:
        """In Prometheus' words."""
        if self._read is None:
            return
        open_, ended, cost = self._read
        number = _gauge("jobs", "Experts' jobs that have not ended; `waiting` ones hold no worker.", "kind", "state")
        oldest = _gauge("jobs_oldest_queued_seconds", "Age of the oldest job that waits for a worker.", "kind")
        for row in open_:
            number.add_metric([row["kind"], row["state"]], row["n"])
            if row["state"] == "queued":
                oldest.add_metric([row["kind"]], row["oldest_s"])
        outcomes = _gauge("jobs_ended", "Experts' jobs that ended in the last hour, by how.", "kind", "outcome")
        seconds = _gauge("job_seconds", f"From asking for a job to its end, {_HOUR}.", "kind", "outcome", "quantile")
        for row in ended:
            outcomes.add_metric([row["kind"], row["state"]], row["n"])
            for quantile, found in zip(_QUANTILES, row["seconds"], strict=True):
                seconds.add_metric([row["kind"], row["state"], quantile], found)
        usd = _gauge("job_usd", f"US dollars that a job cost on average, as far as is known, {_HOUR}.", "kind")
        maybe = _gauge("jobs_maybe_spent", f"Jobs of which nobody can say what they cost, {_HOUR}.", "kind")
        for row in cost:
            usd.add_metric([row["kind"]], row["usd"])
            maybe.add_metric([row["kind"]], row["maybe_spent"])
        yield from (number, oldest, outcomes, seconds, usd, maybe)


def _gauge(name: str, about: str, *labels: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"body_broker_expert_{name}", about, labels=labels)
