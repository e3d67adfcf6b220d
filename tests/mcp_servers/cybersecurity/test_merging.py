"""How what scanners saw becomes findings: once each, known again, the gravest first."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from mcp_servers.cybersecurity.findings import Category, Finding, Scan, ScannerName, ScannerRun, ScannerStatus, Seen
from mcp_servers.cybersecurity.merging import Line, compare, groups, merge
from mcp_servers.cybersecurity.paths import Repository, Target
from mcp_servers.cybersecurity.reporting import report
from mcp_servers.cybersecurity.store import FINDINGS_KEPT_MAX, keep

SEEN = Seen(
    scanner="semgrep",
    rule="r1",
    group="CWE-78",
    category="sast",
    severity="medium",
    title="T",
    message="M",
    path="a.py",
    line=2,
    end_line=2,
)


def seen(**changed: Any) -> Seen:
    return dataclasses.replace(SEEN, **changed)


def lines(*text: str) -> Line:
    return lambda _path, number: text[number - 1] if number <= len(text) else ""


def marks(found: list[Finding]) -> list[str]:
    return [f.fingerprint for f in found]


def test_a_fault_that_several_saw_is_one_finding_of_the_gravest_severity_with_every_witness() -> None:
    sights = [
        seen(rule="r2", severity="high", end_line=4, cwe=("CWE-78",), references=("https://a",)),
        seen(cwe=("CWE-78", "CWE-77"), references=("https://b", "https://a")),
    ]
    (found,) = merge(sights, lines("", "os.system(x)"))
    assert (found.rules, found.severity, found.scanners) == (["r2", "r1"], "high", ["semgrep"])
    assert (found.cwe, found.references) == (["CWE-78", "CWE-77"], ["https://a", "https://b"])
    assert (found.location.start, found.location.end) == (2, 4)


def test_other_faults_places_and_kinds_stay_apart() -> None:
    kinds: list[Category] = ["sast", "secret"]
    sights = [seen(), seen(group="CWE-95"), seen(path="b.py"), seen(line=3), *(seen(category=kind) for kind in kinds)]
    assert len(set(marks(merge(sights, lines("", "x", "y"))))) == 5


def test_a_fingerprint_stays_when_the_line_moves_or_is_indented_and_changes_with_its_text() -> None:
    first = merge([seen()], lines("", "os.system(x)"))
    assert marks(merge([seen(line=3)], lines("", "", "    os.system(x)  "))) == marks(first)
    assert marks(merge([seen(rule="renamed")], lines("", "os.system(x)"))) == marks(first)
    assert marks(merge([seen()], lines("", "os.system(y)"))) != marks(first)


def test_a_fingerprint_is_the_same_whoever_else_looked() -> None:
    code = lines("key = 'hunter2'", "os.system('ls hunter2 ' + x)  # hunter2", "key = 'hunter3'", "key = 'hunter4'")
    fault = seen(line=2, end_line=2)
    known = [seen(scanner="detect-secrets", category="secret", group="secret", line=n, end_line=n) for n in (2, 3)]
    more = [seen(scanner="gitleaks", category="secret", group="secret", line=n, end_line=n) for n in (1, 3, 4)]
    whole = {(f.location.start, f.category): f.fingerprint for f in merge([fault, *known, *more], code)}
    for sights in ([fault], [fault, *known], known):
        for found in merge(sights, code):
            assert whole[found.location.start, found.category] == found.fingerprint
    assert len(set(whole.values())) == 5


def test_what_was_not_asked_for_hides_code_and_is_no_finding() -> None:
    secret = seen(scanner="detect-secrets", category="secret", group="secret", line=3, end_line=3)
    fault = seen(line=1, end_line=400, message="call(hunter2)")
    (found,) = merge([secret, fault], lines("call(", "", "'hunter2')"), told=["semgrep"])
    assert (found.snippet, found.message) == ("", "T")


def test_where_secrets_were_not_looked_for_no_code_is_shown() -> None:
    (found,) = merge([seen(message="call(hunter2)")], lines("", "call(hunter2)"), quoting=False)
    assert (found.snippet, found.message) == ("", "T")


def test_equal_lines_have_fingerprints_of_their_own_in_order() -> None:
    two = merge([seen(line=1), seen(line=2)], lines("eval(x)", "eval(x)"))
    one = merge([seen(line=1)], lines("eval(x)"))
    assert len(set(marks(two))) == 2
    assert marks(one)[0] == marks(two)[0]


def test_no_secret_s_value_goes_into_a_fingerprint_a_snippet_or_a_message() -> None:
    secret = seen(category="secret", group="secret", rule="s", line=1, end_line=1, message="looks like a secret")
    fault = seen(line=1, end_line=1, message="eval of 'hunter2'", title="Code made of text")
    one = merge([secret, fault], lines("login(password='hunter2')"))
    other = merge([secret, fault], lines("login(password='hunter3')"))
    assert marks(one) == marks(other)
    assert "hunter" not in repr(one)
    assert {f.message for f in one} == {"looks like a secret", "Code made of text"}


def test_a_fault_whose_lines_reach_over_a_secret_shows_neither() -> None:
    secret = seen(category="secret", group="secret", line=3, end_line=3)
    fault = seen(line=1, end_line=5, message="call(hunter2)")
    found = merge([secret, fault], lines("call(", "'a',", "'hunter2',", ")"))
    assert {f.snippet for f in found} == {""}


def test_the_gravest_stand_first() -> None:
    severities = ["unknown", "low", "critical", "info", "high", "medium"]
    found = merge([seen(line=n, severity=s) for n, s in enumerate(severities, 1)], lines(*"abcdef"))
    assert [f.severity for f in found] == ["critical", "high", "medium", "low", "info", "unknown"]


def test_groups_are_told_by_rule_ten_at_most() -> None:
    found = merge([seen(line=n, rule=f"r{n % 12}", group=f"g{n % 12}") for n in range(30)], lines(*["x"] * 30))
    told = groups(found, {f.fingerprint: f"fnd_{n}" for n, f in enumerate(found)})
    assert len(told) == 10
    assert [g.count for g in told] == [3] * 6 + [2] * 4
    assert all(g.finding_id for g in told)


def test_compared_with_the_scan_before_each_is_new_existing_or_fixed() -> None:
    before = {f.fingerprint: f for f in merge([seen(), seen(path="gone.py")], lines("", "x"))}
    now = merge([seen(), seen(path="new.py")], lines("", "x"))
    compared = compare(now, before, complete=True, settled=["semgrep"])
    assert {(f.location.path, f.status) for f in compared.findings} == {("a.py", "existing"), ("new.py", "new")}
    assert [(f.location.path, f.status) for f in compared.fixed] == [("gone.py", "fixed")]
    assert compare(now, before, complete=False, settled=["semgrep"]).fixed == []
    assert compare(now, before, complete=True, settled=["gitleaks"]).fixed == []


def test_findings_beyond_those_that_are_kept_are_counted() -> None:
    found = merge([seen(line=n) for n in range(1, FINDINGS_KEPT_MAX + 8)], lines())
    run = ScannerRun(name="semgrep", status="ok")
    scan = Scan(
        runs=(run,), findings=tuple(found), revision="", files=1, skipped={"git": 1}, cut=False, isolation="rlimit"
    )
    compared = compare(found, {}, complete=True, settled=["semgrep"])
    kept = keep(compared.findings, "scn_x")

    told = report(scan, compared, kept, target=Target(Repository("game", Path("/x"))), scan_id="scn_x", job_id="job_x")

    assert (len(kept), told.counts) == (FINDINGS_KEPT_MAX, {"medium": FINDINGS_KEPT_MAX + 7})
    assert told.skipped == {"git": 1, "findings_not_kept": 7}


@pytest.mark.parametrize(
    ("semgrep", "secrets", "gitleaks", "verdict"),
    [
        ("ok", "ok", "ok", "no_findings"),
        ("ok", "ok", "not_installed", "no_findings"),
        ("ok", "ok", "failed", "no_findings"),
        ("not_applicable", "ok", "ok", "no_findings"),
        ("partial", "ok", "ok", "inconclusive"),
        ("failed", "ok", "ok", "inconclusive"),
        ("timed_out", "ok", "ok", "inconclusive"),
        ("not_installed", "ok", "ok", "inconclusive"),
        ("stale", "ok", "ok", "inconclusive"),
        ("disabled", "ok", "ok", "inconclusive"),
        ("ok", "partial", "ok", "inconclusive"),
        ("ok", "not_installed", "ok", "inconclusive"),
    ],
)
def test_the_verdict_of_a_silent_scan_is_its_core_scanners(
    semgrep: ScannerStatus, secrets: ScannerStatus, gitleaks: ScannerStatus, verdict: str
) -> None:
    names: list[tuple[ScannerName, ScannerStatus]] = [
        ("semgrep", semgrep),
        ("detect-secrets", secrets),
        ("gitleaks", gitleaks),
    ]
    runs = tuple(ScannerRun(name=name, status=status) for name, status in names)
    scan = Scan(runs=runs, findings=(), revision="", files=1, skipped={}, cut=False, isolation="rlimit")
    assert scan.verdict == verdict
    assert dataclasses.replace(scan, cut=True).verdict == "inconclusive"
    assert dataclasses.replace(scan, files=0).verdict == "inconclusive"
    found = tuple(merge([SEEN], lines("", "x")))
    assert dataclasses.replace(scan, findings=found).verdict == "findings"
