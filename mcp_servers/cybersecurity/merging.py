"""Owns how what scanners saw becomes findings: the same fault once with all its witnesses, known again from scan to scan."""

from __future__ import annotations

import hashlib
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, reduce
from itertools import groupby
from pathlib import Path

from mcp_servers.cybersecurity.findings import (
    SCANNERS,
    SEVERITIES,
    Category,
    Finding,
    Group,
    Location,
    ScannerName,
    Seen,
    graver,
)
from mcp_servers.cybersecurity.masking import MESSAGE_MAX, SNIPPET_MAX, mask, mask_values, words_of

_GROUPS_TOLD = 10
_PATH_MAX = 400

_STEADY: tuple[ScannerName, ...] = ("detect-secrets", "semgrep", "gitleaks")

_Spot = tuple[Category, str, str, int]
Line = Callable[[str, int], str]
"""`(path, line) -> text` of a line, empty where there is none."""


def merge(
    seen: Iterable[Seen], line: Line, *, told: Collection[ScannerName] = SCANNERS, quoting: bool = True
) -> list[Finding]:
    """The findings, the gravest first. Blocks: lines are read.

    Two sightings are one fault where category, group, path and line are the same.

    Args:
        seen: By every scanner that ran; all of it hides secrets and numbers equal lines.
        line: The lines of the copy.
        told: Whose sightings become findings.
        quoting: Whether code is shown: not where secrets were not looked for.
    """
    places: dict[_Spot, list[Seen]] = defaultdict(list)
    for sight in seen:
        places[sight.category, sight.group, sight.path, sight.line].append(sight)
    secret = _Secrets(sight for sights in places.values() for sight in sights)
    ordinals: dict[str, int] = defaultdict(int)
    found: list[Finding] = []
    # Numbered as the scanner that is always there saw them, so that a finding is known again whoever else looked.
    for (category, group, path, number), sights in sorted(places.items(), key=_steadiest):
        text = line(path, number)
        # Never the whole line, whoever saw what in it: the hash of a weak secret could be guessed.
        known = words_of(text) if category == "sast" else mask_values(text)
        mark = f"{category}|{group}|{path}|{known}"
        ordinals[mark] += 1
        shown = [sight for sight in sights if sight.scanner in told]
        if shown:
            fingerprint = hashlib.sha256(f"{mark}|{ordinals[mark]}".encode("utf-8", "replace")).hexdigest()
            found.append(_finding(fingerprint, shown, text, secret, quoting=quoting))
    found.sort(key=lambda f: (SEVERITIES.index(f.severity), f.category, f.location.path, f.location.start))
    return found


def _steadiest(place: tuple[_Spot, list[Seen]]) -> tuple[int, _Spot]:
    spot, sights = place
    return min(_STEADY.index(sight.scanner) for sight in sights), spot


def groups(findings: Sequence[Finding], ids: Mapping[str, str]) -> list[Group]:
    """The gravest rules with how often each was seen, and one finding of each to look at."""
    by_rule = {
        rule: list(group) for rule, group in groupby(sorted(findings, key=lambda f: f.rule), key=lambda f: f.rule)
    }
    told = [
        Group(
            rule=rule,
            title=of[0].title,
            severity=reduce(graver, (f.severity for f in of)),
            count=len(of),
            finding_id=ids.get(of[0].fingerprint),
        )
        for rule, of in by_rule.items()
    ]
    return sorted(told, key=lambda g: (SEVERITIES.index(g.severity), -g.count, g.rule))[:_GROUPS_TOLD]


@dataclass(frozen=True, slots=True)
class Compared:
    """Findings held against the scan before: `findings` marked new or existing, and what of then is gone."""

    findings: list[Finding]
    fixed: list[Finding]


def compare(
    findings: Iterable[Finding], before: Mapping[str, Finding], *, complete: bool, settled: Collection[ScannerName]
) -> Compared:
    """What is new and what is gone; nothing is called fixed by a scan that may have missed it.

    Args:
        findings: Of this scan.
        before: Of the latest complete one, by fingerprint.
        complete: Whether this one missed nothing.
        settled: The scanners of this one whose silence means something.
    """
    told = [f.model_copy(update={"status": "existing" if f.fingerprint in before else "new"}) for f in findings]
    now = {f.fingerprint for f in told}
    gone = [
        f.model_copy(update={"status": "fixed"})
        for mark, f in before.items()
        if mark not in now and not set(f.scanners).isdisjoint(settled)
    ]
    return Compared(told, gone if complete else [])


def lines_of(folder: Path, copied: Mapping[str, str]) -> Line:
    """The lines of a staged copy, by the repository's own paths.

    Args:
        folder: The copy.
        copied: The repository's path -> the copy's, where they differ.
    """

    @lru_cache(maxsize=16)
    def of(path: str) -> list[str]:
        try:
            return (folder / copied.get(path, path)).read_bytes().decode("utf-8", "replace").split("\n")
        except OSError:
            return []

    def line(path: str, number: int) -> str:
        lines = of(path)
        return lines[number - 1] if 0 < number <= len(lines) else ""

    return line


class _Secrets:
    """Lines that hold a secret."""

    def __init__(self, seen: Iterable[Seen]) -> None:
        self._lines: dict[str, list[int]] = defaultdict(list)
        for path, line in sorted({(s.path, number) for s in seen if s.category == "secret" for number in _ends(s)}):
            self._lines[path].append(line)

    def near(self, path: str, start: int, end: int) -> bool:
        lines = self._lines.get(path, [])
        first = bisect_left(lines, start)
        return first < len(lines) and lines[first] <= end


def _ends(sight: Seen) -> tuple[int, int]:
    return sight.line, sight.end_line


def _finding(fingerprint: str, sights: Collection[Seen], text: str, secret: _Secrets, *, quoting: bool) -> Finding:
    ordered = sorted(sights, key=lambda s: (SEVERITIES.index(s.severity), s.rule))
    first = ordered[0]
    hidden = not quoting or any(secret.near(s.path, s.line, s.end_line) for s in ordered)
    return Finding(
        fingerprint=fingerprint,
        scanners=sorted({s.scanner for s in ordered}),
        rules=list(dict.fromkeys(s.rule for s in ordered)),
        title=first.title,
        category=first.category,
        severity=first.severity,
        severity_source=first.scanner,
        cwe=list(dict.fromkeys(c for s in ordered for c in s.cwe)),
        location=Location(path=first.path[:_PATH_MAX], start=first.line, end=max(s.end_line for s in ordered)),
        # A rule's message may quote the line.
        message=first.title if hidden and first.category == "sast" else mask(first.message, MESSAGE_MAX),
        snippet="" if hidden else mask(text, SNIPPET_MAX),
        fix=first.fix,
        references=list(dict.fromkeys(r for s in ordered for r in s.references)),
    )
