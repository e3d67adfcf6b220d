"""Owns how a scan is told: its report, and the one line that sums it up. Nothing of the scanned code is in either."""

from __future__ import annotations

from datetime import UTC, datetime

from mcp_servers.cybersecurity.findings import SEVERITIES, Scan, ScannerRun, SecurityReport
from mcp_servers.cybersecurity.merging import Compared, groups
from mcp_servers.cybersecurity.paths import Target
from mcp_servers.cybersecurity.store import Kept

_VERDICTS = {
    "findings": "",
    "no_findings": "No findings",
    "inconclusive": "Inconclusive: nothing was found, but not everything was looked at",
}


def report(
    scan: Scan, compared: Compared, kept: list[Kept], *, target: Target, scan_id: str, job_id: str
) -> SecurityReport:
    """The report of a scan that is kept under this id."""
    found = [*compared.findings, *compared.fixed]
    dropped = {"findings_not_kept": len(found) - len(kept)} if len(found) > len(kept) else {}
    return SecurityReport(
        summary=summary(scan, new=sum(f.status == "new" for f in compared.findings), fixed=len(compared.fixed)),
        scan_id=scan_id,
        job_id=job_id,
        repository=target.repository.name,
        whole=not target.path,
        verdict=scan.verdict,
        complete=scan.complete,
        revision=scan.revision,
        counts=scan.counts(),
        new=sum(f.status == "new" for f in compared.findings),
        fixed=len(compared.fixed),
        groups=groups(compared.findings, {k.finding.fingerprint: k.id for k in kept}),
        scanners=list(scan.runs),
        files=scan.files,
        skipped=scan.skipped | dropped,
        isolation=scan.isolation,
        at=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def summary(scan: Scan, *, new: int | None = None, fixed: int | None = None) -> str:
    """One line: how many of what severity, what is new, and what was not looked at."""
    counts = scan.counts()
    if counts:
        number = sum(counts.values())
        said = f"{number} finding{'s' * (number != 1)} ({', '.join(f'{counts[s]} {s}' for s in SEVERITIES if s in counts)})"
        if not scan.complete:
            said += ", and not everything was looked at"
    else:
        said = _VERDICTS[scan.verdict]
    if new is not None and counts:
        said += f", {new} new"
    if fixed:
        said += f", {fixed} fixed since the scan before"
    return f"{said}. {scan.files} files; {'; '.join(told(run) for run in scan.runs)}.{_skipped(scan)}"


def told(run: ScannerRun) -> str:
    """How one scanner did, in a few words."""
    words = f"{run.name} {run.status.replace('_', ' ')}"
    if run.errors:
        words += f" ({', '.join(f'{number} x {kind}' for kind, number in sorted(run.errors.items()))})"
    return words


def _skipped(scan: Scan) -> str:
    if not scan.skipped:
        return ""
    left_out = ", ".join(f"{number} {reason}" for reason, number in scan.skipped.items())
    return f" Not scanned: {left_out.replace('_', ' ')}."
