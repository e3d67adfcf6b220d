"""Owns the facts of an admin report: totals that the hub's own records hold over a period, each with its unit and its source.

Totals only: what somebody asked for, read or was answered is in none of them.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

import asyncpg

from body_broker.storage.postgres import Connection, Pool
from body_broker.work.worker import RETENTION_S
from mcp_servers.admin.models import PeriodName, ReportFact, ReportName

DAYS: Mapping[PeriodName, int] = {"day": 1, "week": 7, "month": 30}
GROUP_SECONDS_MAX = 5
"""How long one group of facts may take; what takes longer is not collected, and that is said."""
_WORK_DAYS = RETENTION_S // (24 * 3600)
_KEY = re.compile(r"[^A-Za-z0-9_.-]+")

_WORK = """
SELECT kind, state, count(*) AS number,
    percentile_cont(0.5) WITHIN GROUP (ORDER BY extract(epoch FROM finished_at - started_at)::float8) AS median,
    percentile_cont(0.95) WITHIN GROUP (ORDER BY extract(epoch FROM finished_at - started_at)::float8) AS p95
FROM work WHERE created_at >= $1::timestamptz GROUP BY kind, state ORDER BY kind, state
"""
_QUEUE = "SELECT state, count(*) AS number FROM work WHERE finished_at IS NULL GROUP BY state ORDER BY state"
_EXPERTS = """
SELECT engine, count(*) AS asked, count(*) FILTER (WHERE state = 'answered') AS answered,
    count(*) FILTER (WHERE state = 'failed') AS failed, count(*) FILTER (WHERE state = 'lost') AS lost,
    count(*) FILTER (WHERE maybe_spent) AS maybe_spent, coalesce(sum(cost), 0)::float8 / 1e9 AS usd,
    percentile_cont(0.5) WITHIN GROUP (ORDER BY extract(epoch FROM ended_at - begun_at)::float8)
        FILTER (WHERE state = 'answered') AS median
FROM expert_call WHERE begun_at >= $1::timestamptz GROUP BY engine ORDER BY engine
"""
_SPEND = """
SELECT tier, sum(spent)::float8 / 1e9 AS usd, sum(requests)::bigint AS requests,
    sum(prompt_tokens)::bigint AS prompt_tokens, sum(completion_tokens)::bigint AS completion_tokens
FROM spend_day WHERE asker = '*' AND day >= $1::date GROUP BY tier ORDER BY tier
"""
_SPEND_DAYS = """
SELECT day, tier, spent::float8 / 1e9 AS usd FROM spend_day WHERE asker = '*' AND day >= $1::date ORDER BY day, tier
"""
_APPROVALS = """
SELECT count(*) AS asked, count(*) FILTER (WHERE state = 'pending' AND expires_at > clock_timestamp()) AS pending,
    count(*) FILTER (WHERE state = 'approved') AS approved, count(*) FILTER (WHERE state = 'denied') AS denied,
    count(*) FILTER (WHERE state = 'expired' OR (state = 'pending' AND expires_at <= clock_timestamp())) AS expired,
    count(*) FILTER (WHERE state = 'cancelled') AS cancelled, count(*) FILTER (WHERE outcome = 'done') AS done,
    count(*) FILTER (WHERE outcome = 'failed') AS failed, count(*) FILTER (WHERE outcome = 'unknown') AS unknown,
    percentile_cont(0.5) WITHIN GROUP (ORDER BY extract(epoch FROM decided_at - created_at)::float8)
        FILTER (WHERE state IN ('approved', 'denied')) AS median,
    percentile_cont(0.95) WITHIN GROUP (ORDER BY extract(epoch FROM decided_at - created_at)::float8)
        FILTER (WHERE state IN ('approved', 'denied')) AS p95
FROM approval WHERE created_at >= $1::timestamptz
"""
_AUDIT = """
SELECT body::jsonb ->> 'kind' AS kind, coalesce(body::jsonb ->> 'verdict', 'none') AS verdict, count(*) AS number,
    sum(count(*)) OVER ()::bigint AS total
FROM audit_record WHERE at >= extract(epoch FROM $1::timestamptz)::float8
GROUP BY 1, 2 ORDER BY 3 DESC, 1, 2 LIMIT 60
"""
_SCANS = """
SELECT count(*) AS made, count(*) FILTER (WHERE NOT complete) AS incomplete,
    count(*) FILTER (WHERE verdict = 'findings') AS with_findings
FROM scan WHERE at >= $1::timestamptz
"""
_FINDINGS = """
SELECT f.severity, count(*) AS number
FROM repository r CROSS JOIN LATERAL (
    SELECT id FROM scan WHERE repository = r.name AND path = '' ORDER BY ordinal DESC LIMIT 1) s
JOIN finding f ON f.scan_id = s.id AND f.status <> 'fixed' GROUP BY f.severity ORDER BY f.severity
"""
_REPOSITORIES = """
SELECT count(*) AS registered, count(*) FILTER (WHERE NOT EXISTS (
    SELECT FROM scan WHERE repository = r.name AND path = '')) AS never_scanned
FROM repository r
"""
_CHANGES = """
SELECT kind, state, count(*) AS number FROM admin_change
WHERE state <> 'draft' AND created_at >= $1::timestamptz GROUP BY kind, state ORDER BY kind, state
"""


@dataclass(frozen=True, slots=True)
class Collected:
    """The facts of a period, and what ought to be among them and is not, in words.

    Attributes:
        since: When the period began; UTC, as `until`.
    """

    facts: list[ReportFact]
    missing: list[str]
    since: datetime
    until: datetime


Group = Callable[[Connection, datetime], Awaitable[list[ReportFact]]]


async def collect(pool: Pool, report: ReportName, period: PeriodName) -> Collected:
    """What the hub's records say now of the last days; every group of facts is of the same moment.

    Args:
        pool: The stores.
        report: Says which groups.
        period: Days back from now; money is counted by whole UTC days.
    """
    facts: list[ReportFact] = []
    missing: list[str] = []
    async with pool.acquire() as connection, connection.transaction(isolation="repeatable_read", readonly=True):
        await connection.execute(f"SET LOCAL statement_timeout = '{GROUP_SECONDS_MAX}s'")
        until: datetime = await connection.fetchval("SELECT clock_timestamp()")
        since = until - timedelta(days=DAYS[period])
        facts += _period(since, until, period)
        for name in GROUPS[report]:
            try:
                async with connection.transaction():
                    facts += await _GROUPS[name](connection, since)
            except asyncpg.QueryCanceledError:
                missing.append(f"{name}: counting it took longer than {GROUP_SECONDS_MAX} s.")
    if DAYS[period] > _WORK_DAYS and {"work", "experts"} & set(GROUPS[report]):
        missing.append(
            f"work and experts: what ended more than {_WORK_DAYS} days ago is not kept, so it is not counted."
        )
    return Collected(facts, missing, since, until)


def fact(key: str, value: float | str, unit: str, source: str) -> ReportFact:
    """A fact; the key is made fit to be one, and a fraction is told to six places: of what is less than one, those that say something."""
    told = value
    if isinstance(value, float):
        told = round(value, 6) if abs(value) >= 1 else float(f"{value:.6g}")
    return ReportFact(key=_KEY.sub("_", key), value=told, unit=unit, source=source)


def _period(since: datetime, until: datetime, period: PeriodName) -> list[ReportFact]:
    source = "the hub's clock"
    return [
        fact("period.days", DAYS[period], "days", source),
        fact("period.since", since.isoformat(timespec="seconds"), "UTC", source),
        fact("period.until", until.isoformat(timespec="seconds"), "UTC", source),
    ]


async def _work(connection: Connection, since: datetime) -> list[ReportFact]:
    source = "work, begun in the period"
    rows = await connection.fetch(_WORK, since)
    found: list[ReportFact] = []
    for row in rows:
        found.append(fact(f"work.{row['kind']}.{row['state']}", row["number"], "jobs", source))
        if row["state"] == "succeeded":
            found += _seconds(f"work.{row['kind']}", row, source)
    total = sum(row["number"] for row in rows)
    failed = sum(row["number"] for row in rows if row["state"] == "failed")
    return [
        fact("work.total", total, "jobs", source),
        *_share("work.failed", failed, total, "jobs", source),
        *found,
    ]


async def _queue(connection: Connection, _since: datetime) -> list[ReportFact]:
    rows = await connection.fetch(_QUEUE)
    return [fact(f"queue.now.{row['state']}", row["number"], "jobs", "work, as it stands now") for row in rows]


async def _experts(connection: Connection, since: datetime) -> list[ReportFact]:
    source = "questions to models for experts' jobs"
    found: list[ReportFact] = []
    for row in await connection.fetch(_EXPERTS, since):
        key = f"experts.{row['engine']}"
        numbers = ("asked", "answered", "failed", "lost", "maybe_spent")
        found += [fact(f"{key}.{name}", row[name], "questions", source) for name in numbers]
        found.append(fact(f"{key}.usd", row["usd"], "USD", source))
        if row["median"] is not None:
            found.append(fact(f"{key}.seconds.median", row["median"], "seconds", source))
    return found


async def _spend(connection: Connection, since: datetime) -> list[ReportFact]:
    source = f"spend, UTC days from {since.date().isoformat()}"
    found: list[ReportFact] = []
    rows = await connection.fetch(_SPEND, since)
    for row in rows:
        key = f"spend.{row['tier']}"
        found.append(fact(f"{key}.usd", row["usd"], "USD", source))
        found.append(fact(f"{key}.requests", row["requests"], "requests", source))
        found += [fact(f"{key}.{name}", row[name], "tokens", source) for name in ("prompt_tokens", "completion_tokens")]
    return [fact("spend.total.usd", float(sum(row["usd"] for row in rows)), "USD", source), *found]


async def _spend_days(connection: Connection, since: datetime) -> list[ReportFact]:
    rows = await connection.fetch(_SPEND_DAYS, since)
    return [fact(f"spend.{r['tier']}.{r['day'].isoformat()}.usd", r["usd"], "USD", "spend, one UTC day") for r in rows]


async def _approvals(connection: Connection, since: datetime) -> list[ReportFact]:
    source = "approvals, asked for in the period"
    row = await connection.fetchrow(_APPROVALS, since)
    assert row is not None, "an aggregate without groups has one row"
    asked = ("asked", "pending", "approved", "denied", "expired", "cancelled")
    return [
        *(fact(f"approvals.{name}", row[name], "requests", source) for name in asked),
        *(fact(f"approvals.outcome.{name}", row[name], "requests", source) for name in ("done", "failed", "unknown")),
        *_seconds("approvals.decided", row, source),
    ]


async def _audit(connection: Connection, since: datetime) -> list[ReportFact]:
    rows = await connection.fetch(_AUDIT, since)
    source = "the audit's records of the period"
    return [
        fact("audit.records", rows[0]["total"] if rows else 0, "records", source),
        *(fact(f"audit.{row['kind']}.{row['verdict']}", row["number"], "records", source) for row in rows),
    ]


async def _security(connection: Connection, since: datetime) -> list[ReportFact]:
    scans = await connection.fetchrow(_SCANS, since)
    repositories = await connection.fetchrow(_REPOSITORIES)
    assert scans is not None, "an aggregate without groups has one row"
    assert repositories is not None, "an aggregate without groups has one row"
    findings = await connection.fetch(_FINDINGS)
    latest = "the latest whole scan of each repository"
    return [
        *(fact(f"scans.{name}", number, "scans", "scans of the period") for name, number in scans.items()),
        *(fact(f"repositories.{name}", n, "repositories", "registered now") for name, n in repositories.items()),
        fact("findings.open", sum(row["number"] for row in findings), "findings", latest),
        *(fact(f"findings.open.{row['severity']}", row["number"], "findings", latest) for row in findings),
    ]


async def _changes(connection: Connection, since: datetime) -> list[ReportFact]:
    source = "changes that people had approved"
    rows = await connection.fetch(_CHANGES, since)
    return [
        fact("changes.total", sum(row["number"] for row in rows), "changes", source),
        *(fact(f"changes.{row['kind']}.{row['state']}", row["number"], "changes", source) for row in rows),
    ]


async def _database(connection: Connection, _since: datetime) -> list[ReportFact]:
    size = await connection.fetchval("SELECT pg_database_size(current_database())")
    return [fact("database.bytes", size, "bytes", "PostgreSQL, as it stands now")]


def _seconds(key: str, row: asyncpg.Record, source: str) -> list[ReportFact]:
    """Median and 95th percentile, where anything was timed."""
    if row["median"] is None:
        return []
    return [fact(f"{key}.seconds.{name}", row[name], "seconds", source) for name in ("median", "p95")]


def _share(key: str, part: int, total: int, unit: str, source: str) -> list[ReportFact]:
    """A part and its percentage, which a model need not compute then."""
    share = [fact(f"{key}.share", 100 * part / total, "percent", source)] if total else []
    return [fact(key, part, unit, source), *share]


_GROUPS: Mapping[str, Group] = {
    "work": _work,
    "queue": _queue,
    "experts": _experts,
    "spend": _spend,
    "spend by day": _spend_days,
    "approvals": _approvals,
    "audit": _audit,
    "security": _security,
    "changes": _changes,
    "database": _database,
}
GROUPS: Mapping[ReportName, Sequence[str]] = {
    "weekly": ("work", "queue", "experts", "spend", "approvals", "audit", "security", "changes"),
    "costs": ("spend", "spend by day", "experts", "work"),
    "capacity": ("work", "queue", "experts", "spend", "database"),
    "incidents": ("work", "queue", "experts", "approvals", "audit", "security", "changes"),
}
"""Which groups of facts each report has."""
