"""The commands `repos` and `scan`, as people and CI run them."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from body_broker.storage import embedded
from mcp_servers.hub.cli.scan import exit_code
from tests.components import gitleaks, scratch_dir
from tests.mcp_servers.cybersecurity.repositories import BIND, SECRETS, faulty, rules_in, scanning, write
from tests.mcp_servers.hub.test_clients import HUB, run
from tests.waiting import wait_until_sync

# What GitHub's code scanning and the standard ask of a file; written from the SARIF 2.1.0 specification.
_TEXT = {"type": "object", "required": ["text"], "properties": {"text": {"type": "string", "minLength": 1}}}
_PLACE = {
    "type": "object",
    "required": ["artifactLocation", "region"],
    "properties": {
        "artifactLocation": {
            "type": "object",
            "required": ["uri", "uriBaseId"],
            "properties": {"uri": {"type": "string", "pattern": r"^(?!/)[A-Za-z0-9._~!$&'()*+,;=:@%/-]+$"}},
        },
        "region": {
            "type": "object",
            "required": ["startLine"],
            "properties": {
                "startLine": {"type": "integer", "minimum": 1},
                "endLine": {"type": "integer", "minimum": 1},
            },
        },
    },
}
_RESULT = {
    "type": "object",
    "required": ["ruleId", "ruleIndex", "level", "message", "locations", "partialFingerprints"],
    "properties": {
        "ruleIndex": {"type": "integer", "minimum": 0},
        "level": {"enum": ["none", "note", "warning", "error"]},
        "message": _TEXT,
        "locations": {
            "type": "array",
            "minItems": 1,
            "items": {"type": "object", "required": ["physicalLocation"], "properties": {"physicalLocation": _PLACE}},
        },
        "partialFingerprints": {"type": "object", "minProperties": 1, "additionalProperties": {"type": "string"}},
    },
}
_RULE = {
    "type": "object",
    "required": ["id", "shortDescription", "defaultConfiguration"],
    "properties": {
        "shortDescription": _TEXT,
        "help": _TEXT,
        "properties": {
            "type": "object",
            "properties": {
                "security-severity": {"type": "string", "pattern": r"^\d+\.\d$"},
                "tags": {"type": "array", "uniqueItems": True, "items": {"type": "string"}},
            },
        },
    },
}
_NOTICE = {
    "type": "object",
    "required": ["message"],
    "properties": {"message": _TEXT, "level": {"enum": ["none", "note", "warning", "error"]}},
}
_INVOCATION = {
    "type": "object",
    "required": ["executionSuccessful"],
    "properties": {
        "executionSuccessful": {"type": "boolean"},
        "toolExecutionNotifications": {"type": "array", "items": _NOTICE},
    },
}
_RUN = {
    "type": "object",
    "required": ["tool", "results", "invocations"],
    "properties": {
        "tool": {
            "type": "object",
            "required": ["driver"],
            "properties": {
                "driver": {
                    "type": "object",
                    "required": ["name", "rules"],
                    "properties": {"rules": {"type": "array", "items": _RULE}},
                }
            },
        },
        "results": {"type": "array", "items": _RESULT},
        "invocations": {"type": "array", "minItems": 1, "items": _INVOCATION},
        "columnKind": {"enum": ["utf16CodeUnits", "unicodeCodePoints"]},
    },
}
SARIF: dict[str, Any] = {
    "type": "object",
    "required": ["version", "runs"],
    "properties": {
        "$schema": {"type": "string", "format": "uri"},
        "version": {"const": "2.1.0"},
        "runs": {"type": "array", "minItems": 1, "items": _RUN},
    },
}

pytestmark = pytest.mark.requires("semgrep")


@pytest.fixture(scope="module")
def data_dir() -> Iterator[Path]:
    """A data dir whose stores stay up between the commands of this file."""
    folder = Path(tempfile.mkdtemp(prefix="body-broker-cli-", dir=scratch_dir()))
    embedded.start(folder)
    yield folder
    embedded.release(folder)
    wait_until_sync(lambda: embedded.status(folder).keeper_pid is None, "the keeper ends")
    shutil.rmtree(folder)


async def command(data_dir: Path, tmp_path: Path, *words: str) -> tuple[int, str, str]:
    rules = rules_in(tmp_path / "rules")
    return await run(
        *(HUB, *words, "--data-dir", str(data_dir)),
        BODY_BROKER_SCAN_RULES_DIR=str(rules),
        BODY_BROKER_GITLEAKS=str(gitleaks() if gitleaks().is_file() else tmp_path / "none"),
    )


async def test_any_folder_is_scanned_without_a_hub_and_told_as_a_table(data_dir: Path, tmp_path: Path) -> None:
    repo = faulty(tmp_path / "repo")

    code, out, err = await command(data_dir, tmp_path, "scan", str(repo))

    assert (code, err) == (1, "")
    lines = out.splitlines()
    assert lines[0].split()[:3] == ["high", "app/run.py:5", "studio.summon"]
    assert lines[-1].startswith("5 findings (3 high, 2 medium). 4 files; semgrep ok; detect-secrets ok; gitleaks ")
    for secret in SECRETS:
        assert secret not in out
    assert "clean" not in out
    _, tail, _ = await command(data_dir, tmp_path, "audit", "tail")
    assert "operator:" in tail
    assert "scan" in tail


@pytest.mark.parametrize(
    ("files", "fail_on", "code"),
    [
        ({"a.py": "x = 1\n"}, None, 0),
        ({"a.py": BIND}, None, 1),
        ({"a.py": BIND}, "medium", 1),
        ({"a.py": BIND}, "high", 0),
        ({}, None, 2),
        ({"a.py": "x = 1\n", "big": b"#" * (5 * 1024**2 + 1)}, None, 2),
        ({"a.py": BIND, "big": b"#" * (5 * 1024**2 + 1)}, "high", 2),
        ({"a.py": BIND, "big": b"#" * (5 * 1024**2 + 1)}, "low", 1),
    ],
)
async def test_ci_reads_the_outcome_from_the_exit_code(
    tmp_path: Path, files: dict[str, str | bytes], fail_on: Any, code: int
) -> None:
    found = await scanning(tmp_path).scan(write(tmp_path / "repo", files), "")
    assert exit_code(found, fail_on or "info") == code


async def test_the_exit_codes_are_the_command_s(data_dir: Path, tmp_path: Path) -> None:
    repo = write(tmp_path / "repo", {"a.py": BIND})
    empty = write(tmp_path / "empty", {})
    assert (await command(data_dir, tmp_path, "scan", str(repo), "--fail-on", "high"))[0] == 0
    code, out, _ = await command(data_dir, tmp_path, "scan", str(empty))
    assert (code, "Inconclusive" in out) == (2, True)
    code, _, err = await command(data_dir, tmp_path, "scan", str(tmp_path / "nothing"))
    assert (code, "is no folder" in err, "Traceback" in err) == (2, True, False)
    _, before, _ = await command(data_dir, tmp_path, "audit", "tail", "-n", "500")
    code, _, err = await command(data_dir, tmp_path, "scan", str(repo), "--sarif", str(tmp_path / "no" / "x.sarif"))
    assert (code, "cannot be written" in err) == (2, True)
    _, after, _ = await command(data_dir, tmp_path, "audit", "tail", "-n", "500")
    assert 0 < before.count(" scan") == after.count(" scan"), "the scan had not begun"


async def test_sarif_is_as_the_standard_says_and_the_places_are_real(data_dir: Path, tmp_path: Path) -> None:
    repo = write(faulty(tmp_path / "repo"), {"ä b#1/-o?.py": BIND, "bad.py": "rites.bind(x)\ndef (((:\n"})
    file = tmp_path / "out.sarif"

    code, _, err = await command(data_dir, tmp_path, "scan", str(repo), "--sarif", str(file))

    assert code == 1, err
    told = json.loads(file.read_text())
    jsonschema.validate(told, SARIF)
    (ran,) = told["runs"]
    rules = [rule["id"] for rule in ran["tool"]["driver"]["rules"]]
    assert all(rules[result["ruleIndex"]] == result["ruleId"] for result in ran["results"])
    shell = next(r for r in ran["results"] if r["ruleId"] == "studio.summon")
    assert shell["locations"][0]["physicalLocation"]["artifactLocation"]["uri"] == "app/run.py"
    assert shell["locations"][0]["physicalLocation"]["region"]["startLine"] == 5
    assert shell["level"] == "error"
    uris = {r["locations"][0]["physicalLocation"]["artifactLocation"]["uri"] for r in ran["results"]}
    assert "%C3%A4%20b%231/-o%3F.py" in uris
    marks = [r["partialFingerprints"]["bodyBroker/v1"] for r in ran["results"]]
    assert len(set(marks)) == len(marks) == 7
    (invocation,) = ran["invocations"]
    assert not invocation["executionSuccessful"], "bad.py does not parse"
    assert "semgrep/partial" in [n["descriptor"]["id"] for n in invocation["toolExecutionNotifications"]]
    for secret in SECRETS:
        assert secret not in file.read_text()


async def test_repositories_are_added_listed_and_removed_and_each_step_is_on_the_audit(
    data_dir: Path, tmp_path: Path
) -> None:
    repo = faulty(tmp_path / "game")
    (tmp_path / "linked").symlink_to(repo)
    code, out, _ = await command(data_dir, tmp_path, "repos", "add", str(tmp_path / "linked"), "--skip", "node_modules")
    assert (code, out) == (0, f"game is {repo.resolve()}.\n")
    _, out, _ = await command(data_dir, tmp_path, "repos", "list")
    assert out.split()[:3] == ["game", "never", "scanned"]
    assert "(without node_modules)" in out
    _, out, _ = await command(data_dir, tmp_path, "repos", "remove", "game")
    assert out == "game is gone, and 0 scans with it.\n"
    _, tail, _ = await command(data_dir, tmp_path, "audit", "tail")
    assert "repos add" in tail
    assert "repos remove" in tail


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("add", "/no/such/folder"), "is no folder"),
        (("add", "/"), "The whole machine is no repository"),
        (("add", ".", "--name", "a/b"), "cannot be called"),
        (("add", ".", "--skip", "a/b"), "is no folder's name"),
    ],
)
async def test_what_cannot_be_registered_is_said(
    data_dir: Path, tmp_path: Path, words: tuple[str, ...], said: str
) -> None:
    code, _, err = await command(data_dir, tmp_path, "repos", *words)
    assert code != 0
    assert said in err
    assert "Traceback" not in err
