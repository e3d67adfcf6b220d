"""One scan with the real scanners: what they find, how each did, and what may be said of it."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from mcp_servers.cybersecurity import semgrep
from mcp_servers.cybersecurity.copying import Stage
from mcp_servers.cybersecurity.findings import CORE, Finding, Scan, ScannerRun
from mcp_servers.cybersecurity.reporting import summary
from mcp_servers.cybersecurity.scanning import Scanning
from tests.components import need
from tests.mcp_servers.cybersecurity.repositories import (
    BIND,
    GITHUB_TOKEN,
    PASSWORD,
    SECRETS,
    SUMMON,
    faulty,
    rules_in,
    scanning,
    write,
)
from tests.waiting import wait_until

pytestmark = pytest.mark.requires("semgrep")


def places(found: Scan) -> set[tuple[str, int, str]]:
    return {(f.location.path, f.location.start, f.category) for f in found.findings}


def run_of(found: Scan, name: str) -> ScannerRun:
    return next(run for run in found.runs if run.name == name)


def at(found: Scan, path: str, line: int) -> Finding:
    return next(f for f in found.findings if (f.location.path, f.location.start) == (path, line))


async def test_planted_faults_and_secrets_are_found_where_they_are(tmp_path: Path) -> None:
    found = await scanning(tmp_path).scan(faulty(tmp_path / "repo"), "")

    assert places(found) == {
        ("app/run.py", 5, "sast"),
        ("app/calc.py", 2, "sast"),
        ("config.py", 1, "secret"),
        ("config.py", 2, "secret"),
        ("config.py", 3, "secret"),
    }
    shell = at(found, "app/run.py", 5)
    assert (shell.rules, shell.severity, shell.cwe) == (["studio.summon"], "high", ["CWE-78"])
    assert shell.snippet == "rites.summon('ls ' + name, loud=True)"
    assert (found.verdict, found.complete, found.files) == ("findings", True, 4)
    assert {run.name: run.status for run in found.runs} == {
        "semgrep": "ok",
        "detect-secrets": "ok",
        "gitleaks": "not_installed",
    }
    ran = run_of(found, "semgrep")
    assert (ran.version, ran.files_scanned, ran.rules_failed) == ("1.185.0", 3, 0)
    assert ran.rules_loaded >= 2
    assert run_of(found, "detect-secrets").files_scanned == 4


async def test_no_secret_is_in_anything_a_scan_gives(tmp_path: Path) -> None:
    code = f"import rites\nrites.summon('login {GITHUB_TOKEN}', loud=True)\nrites.bind('{SECRETS[2]}')  # password = '{SECRETS[2]}'\n"
    repo = write(faulty(tmp_path / "repo"), {"both.py": code})
    need("gitleaks")

    found = await scanning(tmp_path, leaks=True).scan(repo, "")

    assert {("both.py", 2, "sast"), ("both.py", 2, "secret"), ("both.py", 3, "sast")} <= places(found)
    for secret in SECRETS:
        assert secret not in repr(found)
    for finding in found.findings:
        assert finding.category == "sast" or finding.snippet == ""
    assert at(found, "app/run.py", 5).message == "The rite calls 'ls ' + name."


@pytest.mark.requires("gitleaks")
async def test_what_two_scanners_see_is_one_finding_with_two_witnesses(tmp_path: Path) -> None:
    found = await scanning(tmp_path, leaks=True).scan(faulty(tmp_path / "repo"), "")

    assert run_of(found, "gitleaks").status == "ok"
    assert at(found, "config.py", 2).scanners == ["detect-secrets", "gitleaks"]
    assert len([f for f in found.findings if f.location.path == "config.py"]) == 3


async def test_a_repository_without_faults_has_no_findings(tmp_path: Path) -> None:
    found = await scanning(tmp_path).scan(write(tmp_path / "repo", {"a.py": "print('hello')\n"}), "")
    assert (found.verdict, found.complete, found.findings) == ("no_findings", True, ())


async def test_without_code_in_the_rules_languages_semgrep_is_not_applicable(tmp_path: Path) -> None:
    found = await scanning(tmp_path).scan(write(tmp_path / "repo", {"notes.txt": "hello\n"}), "")
    assert run_of(found, "semgrep").status == "not_applicable"
    assert found.verdict == "no_findings"


async def test_of_an_empty_repository_nothing_is_said(tmp_path: Path) -> None:
    found = await scanning(tmp_path).scan(write(tmp_path / "repo", {}), "")
    assert {run.status for run in found.runs} == {"not_applicable"}
    assert found.verdict == "inconclusive"


async def test_without_semgrep_silence_means_nothing_and_findings_still_count(tmp_path: Path) -> None:
    silent = write(tmp_path / "silent", {"a.py": BIND})
    found = await scanning(tmp_path, engine=False).scan(silent, "")
    assert (run_of(found, "semgrep").status, found.verdict) == ("not_installed", "inconclusive")
    found = await scanning(tmp_path, engine=False).scan(faulty(tmp_path / "repo"), "")
    assert (found.verdict, found.complete, len(found.findings)) == ("findings", False, 3)
    assert "not everything was looked at" in summary(found)


async def test_without_detect_secrets_silence_means_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def hidden(_name: str) -> None:
        """As where the group `scanners` was not installed."""

    monkeypatch.setattr("importlib.util.find_spec", hidden)
    found = await scanning(tmp_path, engine=False).scan(write(tmp_path / "repo", {"a.py": "x = 1\n"}), "")
    assert {run.status for run in found.runs} == {"not_installed"}
    assert found.verdict == "inconclusive"


async def test_a_scanner_that_was_not_asked_for_is_disabled(tmp_path: Path) -> None:
    found = await scanning(tmp_path).scan(write(tmp_path / "repo", {"a.py": "x = 1\n"}), "", scanners=["semgrep"])
    assert {run.name: run.status for run in found.runs} == {
        "semgrep": "ok",
        "detect-secrets": "disabled",
        "gitleaks": "disabled",
    }
    assert found.verdict == "inconclusive"


async def test_a_caller_who_leaves_secrets_out_is_shown_none_and_findings_keep_their_fingerprints(
    tmp_path: Path,
) -> None:
    code = f"import rites\nrites.bind(x)\rrites.summon(x, '{PASSWORD}', loud=True)  # password = '{PASSWORD}'\n"
    repo = write(tmp_path / "repo", {"a.py": code, "b.py": BIND})
    whole = await scanning(tmp_path).scan(repo, "")
    assert (at(whole, "a.py", 3).snippet, at(whole, "b.py", 2).snippet) == ("", "return rites.bind(text)")

    found = await scanning(tmp_path).scan(repo, "", scanners=["semgrep"])

    assert places(found) == {("a.py", 2, "sast"), ("a.py", 3, "sast"), ("b.py", 2, "sast")}
    assert PASSWORD not in repr(found)
    assert at(found, "b.py", 2).snippet == "return rites.bind(text)"
    assert {f.fingerprint for f in found.findings} <= {f.fingerprint for f in whole.findings}


async def test_where_secrets_could_not_be_looked_for_no_code_is_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def hidden(_name: str) -> None:
        """As where the group `scanners` was not installed."""

    monkeypatch.setattr("importlib.util.find_spec", hidden)
    found = await scanning(tmp_path).scan(faulty(tmp_path / "repo"), "")
    shell = at(found, "app/run.py", 5)
    assert (shell.snippet, shell.message) == ("", shell.title)


async def test_of_code_in_languages_without_rules_nothing_is_said(tmp_path: Path) -> None:
    found = await scanning(tmp_path).scan(write(tmp_path / "repo", {"main.go": "package main\n", "README.md": "x"}), "")
    assert (found.verdict, run_of(found, "semgrep").status) == ("inconclusive", "partial")
    assert "semgrep partial (1 x files of code in languages without rules)" in summary(found)


async def test_findings_beyond_what_is_taken_in_are_counted_and_the_answer_is_partial(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    need("gitleaks")
    for module in ("semgrep", "secrets"):
        monkeypatch.setattr(f"mcp_servers.cybersecurity.{module}.FINDINGS_SEEN_MAX", 2)
    keys = "".join(f"token{n} = '{GITHUB_TOKEN[:-1]}{n}'\nrites.bind(x)\n" for n in range(5))
    found = await scanning(tmp_path, leaks=True).scan(write(tmp_path / "repo", {"a.py": keys}), "")
    for run in found.runs:
        assert run.status == "partial"
        assert run.errors["findings too many"] >= 3
    assert len(found.findings) <= 6
    assert not found.complete


async def test_a_file_s_name_stops_no_scanner(tmp_path: Path) -> None:
    repo = write(tmp_path / "repo", {"config.py": f"key = '{GITHUB_TOKEN}'\n", "a." + "b" * 253: b"\xe9\n"})
    found = await scanning(tmp_path).scan(repo, "")
    assert (places(found), run_of(found, "detect-secrets").status) == ({("config.py", 1, "secret")}, "ok")


async def test_a_rule_that_does_not_parse_makes_semgrep_s_answer_partial(tmp_path: Path) -> None:
    scans = scanning(tmp_path)
    broken = "rules:\n  - {id: broken, languages: [python], severity: ERROR, message: x, pattern: 'def ((('}\n"
    write(tmp_path / "rules", {"broken.yaml": broken})

    found = await scans.scan(write(tmp_path / "repo", {"a.py": "x = 1\n"}), "")

    ran = run_of(found, "semgrep")
    assert (ran.status, ran.errors, ran.rules_failed) == ("partial", {"Rule parse error": 1}, 1)
    assert found.verdict == "inconclusive"


async def test_code_that_does_not_parse_makes_semgrep_s_answer_partial(tmp_path: Path) -> None:
    repo = write(tmp_path / "repo", {"a.py": "rites.bind(x)\ndef (((:\n  rites.summon(\n"})
    found = await scanning(tmp_path).scan(repo, "")
    ran = run_of(found, "semgrep")
    assert ran.status == "partial"
    assert ran.errors
    assert not found.complete


async def test_without_rules_semgrep_has_failed(tmp_path: Path) -> None:
    run, seen = await semgrep.scan(tmp_path / "osemgrep", Stage(tmp_path, tmp_path, files=1), [], 60)
    assert (run.status, run.errors, seen) == ("failed", {"no rules": 1}, [])


async def test_scanners_that_run_out_of_time_say_so(tmp_path: Path) -> None:
    found = await scanning(tmp_path, timeout_s=0.01).scan(faulty(tmp_path / "repo"), "")
    assert {run.name: run.status for run in found.runs if run.name in CORE} == dict.fromkeys(CORE, "timed_out")
    assert found.verdict == "inconclusive"
    assert list((tmp_path / "staging").glob("scan-*")) == []


async def test_what_does_not_run_or_does_not_answer_has_failed(tmp_path: Path) -> None:
    for number, text in enumerate(("not a program", "#!/bin/sh\necho not json\n", "#!/bin/sh\nexit 3\n")):
        program = write(tmp_path, {f"program{number}": text}) / f"program{number}"
        program.chmod(0o755)
        scans = Scanning(
            staging_dir=tmp_path / "staging",
            engine=program,
            gitleaks=program,
            rules_dir=rules_in(tmp_path / "rules"),
            timeout_s=30,
        )
        found = await scans.scan(write(tmp_path / "repo", {"a.py": "x = 1\n"}), "")
        assert run_of(found, "semgrep").status == "failed"
        assert run_of(found, "gitleaks").status == "failed"
        assert found.verdict == "inconclusive"


async def test_what_is_over_the_bounds_makes_a_silent_scan_inconclusive(tmp_path: Path) -> None:
    repo = write(tmp_path / "repo", {"a.py": "x = 1\n", "big.py": b"#" * (5 * 1024**2 + 1)})
    found = await scanning(tmp_path).scan(repo, "")
    assert (found.skipped, found.verdict) == ({"too_large": 1}, "inconclusive")
    assert "Not scanned: 1 too large" in summary(found)


async def test_text_that_is_not_utf_8_is_scanned_too(tmp_path: Path) -> None:
    line = f"# é\ntoken = '{GITHUB_TOKEN}'\n"
    repo = write(
        tmp_path / "repo",
        {
            "latin.py": line.encode("latin-1"),
            "wide.txt": line.encode("utf-16"),
            "picture.svg": line,
            "b.bin": b"\0" + line.encode(),
            "noise.bin": bytes(range(32)) + line.encode(),
        },
    )
    found = await scanning(tmp_path).scan(repo, "")
    assert places(found) == {(name, 2, "secret") for name in ("latin.py", "wide.txt", "picture.svg", "b.bin")}
    assert (found.skipped, found.complete) == ({"binary": 1}, True)


async def test_a_script_without_an_ending_is_known_by_its_first_line(tmp_path: Path) -> None:
    found = await scanning(tmp_path).scan(write(tmp_path / "repo", {"deploy": f"#!/usr/bin/env python3\n{BIND}"}), "")
    assert places(found) == {("deploy", 3, "sast")}


async def test_scans_of_one_process_take_turns(tmp_path: Path) -> None:
    scans = scanning(tmp_path)
    running = 0
    most = 0

    async def watch() -> None:
        nonlocal running, most
        while True:
            running = len(list((tmp_path / "staging").glob("scan-*")))
            most = max(most, running)
            await asyncio.sleep(0.005)

    watching = asyncio.create_task(watch())
    repos = [faulty(tmp_path / f"repo{number}") for number in range(3)]
    found = await asyncio.gather(*(scans.scan(repo, "") for repo in repos))
    watching.cancel()
    assert [len(each.findings) for each in found] == [5, 5, 5]
    assert most == 1


async def test_a_scan_that_is_cancelled_leaves_no_process_and_no_copy(tmp_path: Path) -> None:
    slow = write(tmp_path, {"slow": "#!/bin/sh\necho $$ > pid\nsleep 600\n"}) / "slow"
    slow.chmod(0o755)
    scans = Scanning(
        staging_dir=tmp_path / "staging",
        engine=slow,
        gitleaks=None,
        rules_dir=rules_in(tmp_path / "rules"),
        timeout_s=600,
    )
    task = asyncio.create_task(scans.scan(write(tmp_path / "repo", {"a.py": SUMMON}), ""))
    (file,) = await wait_until(lambda: list((tmp_path / "staging").glob("scan-*/work/pid")), "the scanner runs")
    pid = int(await wait_until(file.read_text, "it wrote its pid"))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert list((tmp_path / "staging").glob("scan-*")) == []
