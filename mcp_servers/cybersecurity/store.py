"""Owns the rows of repositories, scans and findings."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg
import orjson

from body_broker.errors import BadInput, Conflict, NotFound
from body_broker.storage.postgres import Connection, Executor
from body_broker.text import new_id
from mcp_servers.cybersecurity.findings import Category, Finding, SecurityReport, Severity, Status
from mcp_servers.cybersecurity.paths import Repository, is_name

FINDINGS_KEPT_MAX = 5_000
"""Of one scan; the gravest are kept."""

_ADD = """
INSERT INTO repository (name, root, skips, by) VALUES ($1, $2, $3::text[], $4) ON CONFLICT DO NOTHING RETURNING name
"""
_LIST = """
SELECT r.name, r.root, r.skips, s.id AS scan, s.verdict, s.at
FROM repository r LEFT JOIN LATERAL (
    SELECT id, verdict, at FROM scan WHERE repository = r.name AND path = '' ORDER BY ordinal DESC LIMIT 1) s ON true
WHERE r.name COLLATE "C" > $1 ORDER BY r.name COLLATE "C" LIMIT $2::integer
"""
_ADD_SCAN = """
INSERT INTO scan (id, repository, path, job_id, requester, revision, verdict, complete, report)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9::text::jsonb)
"""
_ADD_FINDINGS = """
INSERT INTO finding (id, scan_id, ordinal, fingerprint, rule, category, severity, status, path, line, body)
SELECT id, $1, ordinal, fingerprint, rule, category, severity, status, path, line, body
FROM jsonb_to_recordset($2::text::jsonb) AS f (
    id text, ordinal integer, fingerprint text, rule text, category text, severity text, status text, path text,
    line integer, body jsonb)
"""
_BEFORE = """
SELECT f.body::text FROM finding f
WHERE f.status <> 'fixed' AND f.scan_id = (
    SELECT id FROM scan WHERE repository = $1 AND path = $2 AND complete ORDER BY ordinal DESC LIMIT 1)
"""
_SCAN = """
SELECT id, report::text FROM scan
WHERE id = $1 OR (repository = $1 AND path = '' AND NOT EXISTS (SELECT FROM scan WHERE id = $1)) ORDER BY ordinal DESC LIMIT 1
"""
_FINDINGS = """
SELECT id, ordinal, body::text FROM finding
WHERE scan_id = $1 AND ordinal > $2::integer
  AND ($3::text IS NULL OR severity = $3) AND ($4::text IS NULL OR category = $4)
  AND ($5::text IS NULL OR starts_with(path, $5)) AND ($6::text IS NULL OR status = $6)
ORDER BY ordinal LIMIT $7::integer
"""
_FINDING = "SELECT id, scan_id, body::text FROM finding WHERE id = $1"
_SEVERITIES = "SELECT id, severity FROM finding WHERE scan_id = $1 AND id = ANY ($2::text[])"
_LATEST = "SELECT id FROM scan WHERE starts_with(id, $1) OR starts_with(repository, $1) ORDER BY ordinal DESC LIMIT $2::integer"


@dataclass(frozen=True, slots=True)
class Registered:
    """A repository with its latest scan."""

    repository: Repository
    scan_id: str | None
    verdict: str | None
    at: str | None


@dataclass(frozen=True, slots=True)
class Kept:
    """A finding as a scan kept it."""

    id: str
    scan_id: str
    finding: Finding


@dataclass(frozen=True, slots=True, kw_only=True)
class Where:
    """Which findings of a scan."""

    severity: Severity | None = None
    category: Category | None = None
    path_prefix: str | None = None
    status: Status | None = None


async def add_repository(executor: Executor, repository: Repository, *, by: str) -> bool:
    """Whether it is new; the same again changes nothing.

    Raises:
        BadInput: It cannot be called that.
        Conflict: The name or the root is registered otherwise.
    """
    if not is_name(repository.name):
        raise BadInput(
            f"A repository cannot be called {repository.name!r}.",
            next_step="Pass --name with letters, digits and . _ + - only, a letter or digit first, 100 at most.",
        )
    added = await executor.fetchval(_ADD, repository.name, str(repository.root), list(repository.skips), by)
    if added is not None:
        return True
    rows = await executor.fetch(
        "SELECT name, root, skips FROM repository WHERE name = $1 OR root = $2", repository.name, str(repository.root)
    )
    if [_repository(row) for row in rows] == [repository]:
        return False
    taken = ", ".join(f"{row['name']} is {row['root']}" for row in rows)
    raise Conflict(
        f"Something else is registered there: {taken}.",
        next_step="Pass another --name, or `body-broker repos remove NAME` first.",
    )


async def remove_repository(executor: Executor, name: str) -> int:
    """How many scans went with it.

    Raises:
        NotFound: None of that name is registered.
    """
    scans = await executor.fetchval("SELECT count(*) FROM scan WHERE repository = $1", name)
    if await executor.fetchval("DELETE FROM repository WHERE name = $1 RETURNING name", name) is None:
        raise NotFound("No repository of that name is registered.", next_step="`body-broker repos list` shows them.")
    return int(scans)


async def repositories(executor: Executor) -> list[Repository]:
    """Every registered repository."""
    return [_repository(row) for row in await executor.fetch("SELECT name, root, skips FROM repository")]


async def registered(executor: Executor, *, after: str = "", limit: int = 1_000) -> list[Registered]:
    """Repositories with their latest scans, by name."""
    rows = await executor.fetch(_LIST, after, limit)
    return [
        Registered(_repository(row), row["scan"], row["verdict"], row["at"] and row["at"].isoformat()) for row in rows
    ]


async def findings_before(executor: Executor, repository: str, path: str) -> dict[str, Finding]:
    """What the latest complete scan of this folder had found, by fingerprint."""
    rows = await executor.fetch(_BEFORE, repository, path)
    return await asyncio.to_thread(lambda: {f.fingerprint: f for f in (_finding(row["body"]) for row in rows)})


async def add_scan(connection: Connection, report: SecurityReport, path: str, requester: str, rows: str) -> None:
    """Keep a scan with its findings, in the caller's transaction.

    Args:
        connection: The caller's.
        report: What the scan came to.
        path: The folder that was scanned.
        requester: Who asked.
        rows: `rows_of` its findings.

    Raises:
        NotFound: The repository was removed meanwhile.
    """
    try:
        await connection.execute(
            _ADD_SCAN,
            report.scan_id,
            report.repository,
            path,
            report.job_id,
            requester,
            report.revision,
            report.verdict,
            report.complete,
            report.model_dump_json(),
        )
    except asyncpg.ForeignKeyViolationError as error:
        raise NotFound("The repository was removed while it was scanned.") from error
    await connection.execute(_ADD_FINDINGS, report.scan_id, rows)


def keep(findings: Sequence[Finding], scan_id: str) -> list[Kept]:
    """The findings under ids of their own, as many as are kept."""
    return [Kept(new_id("fnd"), scan_id, finding) for finding in findings[:FINDINGS_KEPT_MAX]]


def rows_of(kept: Sequence[Kept]) -> str:
    """The findings as the table takes them. Slow: not for the event loop."""
    return orjson.dumps([_row(ordinal, each) for ordinal, each in enumerate(kept)]).decode()


async def report_of(executor: Executor, scan: str) -> SecurityReport:
    """A scan's report; of a repository's name, the report of the latest scan of all of it.

    Raises:
        NotFound: There is no such scan.
    """
    return SecurityReport.model_validate_json((await _scan(executor, scan))["report"])


async def scan_named(executor: Executor, scan: str) -> str:
    """A scan's id; of a repository's name, the id of the latest scan of all of it.

    Raises:
        NotFound: There is no such scan.
    """
    return str((await _scan(executor, scan))["id"])


async def _scan(executor: Executor, scan: str) -> asyncpg.Record:
    row = await executor.fetchrow(_SCAN, scan)
    if row is None:
        raise NotFound(
            "There is no scan by that id, nor a scanned repository by that name.",
            next_step="Name a repository instead of a scan: its latest one is meant.",
        )
    return row


async def list_findings(
    executor: Executor, scan_id: str, where: Where, *, after: int, limit: int
) -> list[tuple[int, Kept]]:
    """Findings of a scan with their places in it, the gravest first."""
    rows = await executor.fetch(
        _FINDINGS, scan_id, after, where.severity, where.category, where.path_prefix, where.status, limit
    )
    return [(row["ordinal"], Kept(row["id"], scan_id, _finding(row["body"]))) for row in rows]


async def finding(executor: Executor, finding_id: str) -> Kept:
    """One finding.

    Raises:
        NotFound: There is none by that id.
    """
    row = await executor.fetchrow(_FINDING, finding_id)
    if row is None:
        raise NotFound("There is no finding by that id.", next_step="list_findings gives the ids of a scan's findings.")
    return Kept(row["id"], row["scan_id"], _finding(row["body"]))


async def severities(executor: Executor, scan_id: str, ids: Sequence[str]) -> dict[str, Severity]:
    """How grave those of these findings are that the scan has, by id."""
    return {row["id"]: row["severity"] for row in await executor.fetch(_SEVERITIES, scan_id, list(ids))} if ids else {}


async def latest_scans(executor: Executor, start: str, limit: int) -> list[str]:
    """Ids of the latest scans whose id or repository begins so."""
    return [row["id"] for row in await executor.fetch(_LATEST, start, limit)]


def _row(ordinal: int, kept: Kept) -> dict[str, Any]:  # JSON
    found = kept.finding
    return {
        "id": kept.id,
        "ordinal": ordinal,
        "fingerprint": found.fingerprint,
        "rule": found.rule,
        "category": found.category,
        "severity": found.severity,
        "status": found.status,
        "path": found.location.path,
        "line": found.location.start,
        "body": found.model_dump(mode="json"),
    }


def _repository(row: asyncpg.Record) -> Repository:
    return Repository(row["name"], Path(row["root"]), tuple(row["skips"]))


def _finding(body: str) -> Finding:
    return Finding.model_validate_json(body)
