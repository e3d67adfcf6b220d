"""Owns scans as the tests of audits have them: kept in the store, without a scanner."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from body_broker.storage.postgres import Pool
from body_broker.text import new_id
from mcp_servers.cybersecurity import store
from mcp_servers.cybersecurity.findings import SEVERITIES, Finding, Location, SecurityReport, Severity
from mcp_servers.cybersecurity.paths import Repository


def finding(severity: Severity = "high", rule: str = "studio.summon", line: int = 5, **more: Any) -> Finding:
    """A finding of semgrep's."""
    usual: dict[str, Any] = {
        "fingerprint": new_id("fp"),
        "scanners": ["semgrep"],
        "rules": [rule],
        "title": "A loud summons",
        "category": "sast",
        "severity_source": "semgrep",
        "cwe": ["CWE-78"],
        "location": Location(path="app/run.py", start=line, end=line),
        "message": "The rite is loud.",
        "snippet": "rites.summon(name, loud=True)",
    }
    return Finding(severity=severity, **usual | more)


async def kept_scan(pool: Pool, *findings: Finding, name: str = "game", complete: bool = True) -> tuple[str, list[str]]:
    """A scan of this repository that found these, the gravest first: its id, and the ids of the findings."""
    await store.add_repository(pool, Repository(name, Path("/roots") / name, ()), by="operator:ann")
    scan_id = new_id("scn")
    kept = store.keep(findings, scan_id)
    open_ = [f.severity for f in findings if f.status != "fixed"]
    report = SecurityReport(
        summary=f"{len(open_)} findings.",
        scan_id=scan_id,
        repository=name,
        verdict="findings" if open_ else "no_findings",
        complete=complete,
        revision="0" * 64,
        counts={each: open_.count(each) for each in SEVERITIES if each in open_},
    )
    async with pool.acquire() as connection, connection.transaction():
        await store.add_scan(connection, report, "", "person:sam", store.rows_of(kept))
    return scan_id, [each.id for each in kept]
