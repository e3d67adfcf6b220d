"""The semgrep engine: found, installed beside the environment, linked, and finding what a rule describes."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from body_broker.errors import Unavailable
from mcp_servers.hub import scanners
from tests.components import missing

RULE = """
rules:
  - id: shell-true
    languages: [python]
    severity: ERROR
    message: A shell runs this text.
    pattern: subprocess.run(..., shell=True, ...)
"""


@pytest.fixture
def without_group(monkeypatch: pytest.MonkeyPatch) -> None:
    """As somebody who came by plain pip sees it: no semgrep in the environment."""
    found = importlib.util.find_spec

    def hidden(name: str, package: str | None = None) -> object:
        return None if name == "semgrep" else found(name, package)

    monkeypatch.setattr("importlib.util.find_spec", hidden)


def scan(program: Path, config: Path, target: Path) -> Any:  # semgrep's report
    arguments = ("--config", config, "--metrics", "off", "--json", "--quiet", "-j", "1", "--no-git-ignore", target)
    done = subprocess.run(
        [program, "scan", "--experimental", *arguments], capture_output=True, check=True, timeout=60, text=True
    )
    return json.loads(done.stdout)


@pytest.mark.requires("semgrep")
def test_the_engine_of_the_environment_is_linked_and_finds_what_the_rule_describes(tmp_path: Path) -> None:
    (tmp_path / "rules.yaml").write_text(RULE)
    source = tmp_path / "source"
    source.mkdir()
    (source / "bad.py").write_text("import subprocess\n\nsubprocess.run(command, shell=True)\n")
    (source / "good.py").write_text("import subprocess\n\nsubprocess.run([command])\n")

    installed = scanners.install(tmp_path / "a data dir")

    assert installed.version == scanners.VERSION
    assert not installed.fetched
    report = scan(installed.program, tmp_path / "rules.yaml", source)
    assert report["errors"] == []
    assert [(Path(r["path"]).name, r["start"]["line"]) for r in report["results"]] == [("bad.py", 3)]


@pytest.mark.usefixtures("without_group")
def test_it_is_fetched_once_where_the_environment_has_none(tmp_path: Path) -> None:
    assert scanners.find_semgrep(tmp_path) is None

    try:
        first = scanners.install(tmp_path)
    except Unavailable as refused:
        missing("registry", refused.message)
    again = scanners.install(tmp_path)

    assert (first.fetched, again.fetched) == (True, False)
    assert first.version == again.version == scanners.VERSION
    assert sorted(p.name for p in (tmp_path / "scanners").iterdir()) == ["osemgrep", f"semgrep-{scanners.VERSION}"]


@pytest.mark.usefixtures("without_group")
def test_a_fetch_that_fails_leaves_nothing_behind_and_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing = shutil.which("false")

    def no_installer(_name: str) -> str | None:
        return failing

    monkeypatch.setattr("shutil.which", no_installer)

    with pytest.raises(Unavailable, match="could not be installed") as refused:
        scanners.install(tmp_path)

    assert "registry" in refused.value.next_step
    assert list((tmp_path / "scanners").iterdir()) == []


@pytest.mark.requires("semgrep")
def test_a_link_that_points_elsewhere_is_made_anew(tmp_path: Path) -> None:
    engine = scanners.find_semgrep(tmp_path)
    assert engine is not None
    scanners.link_semgrep(tmp_path / "gone", tmp_path)

    assert scanners.semgrep_version(scanners.link_semgrep(engine, tmp_path)) == scanners.VERSION


def test_a_program_that_does_not_run_is_said_so(tmp_path: Path) -> None:
    broken = tmp_path / "osemgrep"
    broken.write_text("not a program")
    broken.chmod(0o755)

    with pytest.raises(Unavailable, match="does not run"):
        scanners.semgrep_version(broken)
