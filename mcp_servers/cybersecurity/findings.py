"""Owns the words of a scan: what a scanner saw, how it went, what became of it as findings, and the report."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from body_broker.calls import Result

ScannerName = Literal["semgrep", "detect-secrets", "gitleaks"]
SCANNERS: tuple[ScannerName, ...] = ("semgrep", "detect-secrets", "gitleaks")
CORE: frozenset[ScannerName] = frozenset({"semgrep", "detect-secrets"})
"""Without an answer of each of these nothing is said to be free of findings."""

FINDINGS_SEEN_MAX = 20_000
"""Of one scanner in one scan; the rest is counted, and the scanner's answer is partial."""
BEYOND = "findings too many"
"""How the rest is called among a scanner's errors."""

Severity = Literal["critical", "high", "medium", "low", "info", "unknown"]
SEVERITIES: tuple[Severity, ...] = ("critical", "high", "medium", "low", "info", "unknown")
"""The gravest first; `unknown` is what a scanner gave no known severity."""
Category = Literal["sast", "secret"]
ScannerStatus = Literal["ok", "partial", "failed", "timed_out", "not_installed", "not_applicable", "stale", "disabled"]
Verdict = Literal["findings", "no_findings", "inconclusive"]
Status = Literal["new", "existing", "fixed"]
Isolation = Literal["bwrap", "rlimit"]

_SETTLED: frozenset[ScannerStatus] = frozenset({"ok", "not_applicable"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What one scanner saw at one place.

    Attributes:
        scanner: Which.
        rule: The rule's id.
        group: What scanners share that see the same fault: a CWE, `secret`, or the rule itself.
        category: Kind of fault.
        severity: As the scanner gave it.
        title: A few words of the rule's own, nothing of the code.
        message: The rule's explanation; rules may put code into it.
        path: As the repository names it.
        line: First line, from 1.
        end_line: Last line.
        cwe: Such as CWE-78.
        references: Addresses to read on at.
        fix: What to do, where the rule says it.
    """

    scanner: ScannerName
    rule: str
    group: str
    category: Category
    severity: Severity
    title: str
    message: str
    path: str
    line: int
    end_line: int
    cwe: tuple[str, ...] = ()
    references: tuple[str, ...] = ()
    fix: str = ""


class Location(BaseModel):
    """Where in the repository; lines count from 1."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: str
    start: int
    end: int


class Finding(BaseModel):
    """One fault at one place, whoever saw it.

    Attributes:
        fingerprint: The same in every scan while rule, path and the line's words (no text in quotes) stay, wherever it moves.
        scanners: Every scanner that saw it.
        rules: Every rule that saw it, the gravest first.
        message: From rules, who may quote code: outside text.
        snippet: The line, with what may be secret masked; nothing where a secret is the finding. Outside text.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    fingerprint: str
    scanners: list[ScannerName]
    rules: list[str]
    title: str
    category: Category
    severity: Severity
    severity_source: str
    cwe: list[str] = Field(default_factory=list[str])
    location: Location
    message: str
    snippet: str
    fix: str = ""
    references: list[str] = Field(default_factory=list[str])
    status: Status = "new"

    @property
    def rule(self) -> str:
        """The rule it goes by."""
        return self.rules[0]


class ScannerRun(BaseModel):
    """How one scanner did. `errors` counts kinds of trouble, in words of ours or the scanner's own names for them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: ScannerName
    status: ScannerStatus
    version: str = ""
    duration_ms: int = 0
    files_scanned: int = 0
    errors: dict[str, int] = Field(default_factory=dict[str, int])
    rules_loaded: int = 0
    rules_failed: int = 0

    @property
    def settled(self) -> bool:
        """Whether its silence means something."""
        return self.status in _SETTLED


class Group(BaseModel):
    """The findings of one rule."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rule: str
    title: str
    severity: Severity
    count: int
    finding_id: str | None = None


class SecurityReport(Result):
    """What a scan came to. No text of the scanned code is in it: rules' names and counts only.

    Attributes:
        status: `running` where the scan goes on as a job; then nothing below `summary` is known.
        complete: Whether every core scanner settled and every file was read; otherwise something may be missing.
        whole: Whether all of the repository was asked for, not a folder of it.
        revision: Digest of the paths and contents that were scanned.
        groups: The ten gravest rules.
        skipped: What was not scanned, by reason.
    """

    status: Literal["done", "running"] = "done"
    job_id: str | None = None
    summary: str
    scan_id: str | None = None
    repository: str | None = None
    whole: bool = True
    verdict: Verdict | None = None
    complete: bool | None = None
    revision: str | None = None
    counts: dict[Severity, int] = Field(default_factory=dict[Severity, int])
    new: int = 0
    fixed: int = 0
    groups: list[Group] = Field(default_factory=list[Group])
    scanners: list[ScannerRun] = Field(default_factory=list[ScannerRun])
    files: int = 0
    skipped: dict[str, int] = Field(default_factory=dict[str, int])
    isolation: Isolation | None = None
    at: str | None = None

    def handle(self) -> str | None:
        """The job, as long as the scan goes on."""
        return self.job_id if self.status == "running" else None

    def text(self) -> str:
        """The summary, then the gravest rules and where to go on."""
        lines = [self.summary]
        lines += [f"- {g.severity} {g.rule} x{g.count}: {g.title} ({g.finding_id})" for g in self.groups]
        if self.scan_id is not None and self.counts:
            lines.append(f"list_findings(scan_id={self.scan_id}) lists them; get_finding shows one.")
        return "\n".join(lines)


@dataclass(frozen=True, slots=True)
class Scan:
    """Everything one scan gave, before it is kept anywhere.

    Attributes:
        runs: One for every scanner there is.
        findings: The gravest first.
        revision: Digest of what was scanned.
        files: How many were scanned.
        skipped: What was not, by reason.
        cut: Whether some were left out that ought to have been scanned.
        isolation: What held the scanners.
    """

    runs: tuple[ScannerRun, ...]
    findings: tuple[Finding, ...]
    revision: str
    files: int
    skipped: dict[str, int]
    cut: bool
    isolation: Isolation

    @property
    def complete(self) -> bool:
        """Whether its silence means something."""
        return not self.cut and self.files > 0 and all(run.settled for run in self.runs if run.name in CORE)

    @property
    def verdict(self) -> Verdict:
        """What may be said of it."""
        if self.findings:
            return "findings"
        return "no_findings" if self.complete else "inconclusive"

    def counts(self) -> dict[Severity, int]:
        """How many findings of each severity, without those of which there are none."""
        found: dict[Severity, int] = {}
        for severity in SEVERITIES:
            if number := sum(f.severity == severity for f in self.findings):
                found[severity] = number
        return found


def graver(one: Severity, other: Severity) -> Severity:
    """The graver of two; whatever is known is graver than unknown."""
    return one if SEVERITIES.index(one) <= SEVERITIES.index(other) else other
