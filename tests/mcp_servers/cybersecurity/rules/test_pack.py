"""Our rules over their fixtures: each finds what its fixture marks, at that line, and no rule finds anything else there."""

from __future__ import annotations

import json
import re
import subprocess
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from mcp_servers.cybersecurity.semgrep import OUR_RULES, rule_files
from mcp_servers.hub import scanners

FIXTURES = Path(__file__).parent / "fixtures"
LANGUAGES = {"python": (".py",), "javascript": (".js", ".ts")}
CASES_MIN = 3
RULES_MIN = 14
MESSAGE_CHARS_MAX = 320

# `ruleid:` and `ok:` speak of the line below, as in semgrep's own tests. `also:` names a rule that is right, or known to
# be wrong, about a line that another rule's fixture is about: `also:` is the list of exceptions, where each is.
_BELOW = re.compile(r"(?:#|//) (ruleid|ok): (\S+)$")
_ALSO = re.compile(r"(?:#|//) also: (\S+)$")


class Mark(NamedTuple):
    """A rule and a line of a fixture: what a finding and a comment have in common."""

    file: str
    line: int
    rule: str


def rules() -> list[dict[str, Any]]:
    """Every rule of the pack, as YAML says it."""
    return [rule for file in rule_files(None) for rule in yaml.safe_load(file.read_text("utf-8"))["rules"]]


IDS = sorted(rule["id"] for rule in rules())


def fixture_of(rule_id: str) -> Path:
    _, language, name = rule_id.split(".")
    (found,) = (file for ending in LANGUAGES[language] if (file := FIXTURES / f"{name}{ending}").is_file())
    return found


def marks() -> Iterator[tuple[str, Mark]]:
    """Every comment of every fixture: `ruleid`, `ok` or `also`, and what it says."""
    for file in sorted(FIXTURES.iterdir()):
        for number, line in enumerate(file.read_text("utf-8").splitlines(), start=1):
            if below := _BELOW.search(line):
                yield below[1], Mark(file.name, number + 1, below[2])
            if also := _ALSO.search(line):
                yield "also", Mark(file.name, number, also[1])


MARKS = list(marks())


def marked(*kinds: str) -> set[Mark]:
    return {mark for kind, mark in MARKS if kind in kinds}


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Any]:
    """What the real engine says of all fixtures by all rules."""
    folder = tmp_path_factory.mktemp("engine")
    engine = scanners.find_semgrep(folder)
    assert engine is not None
    flags = ("--metrics", "off", "--json", "--quiet", "--jobs", "1", "--no-rewrite-rule-ids", "--no-git-ignore")
    told = ("--disable-nosem", "--x-ignore-semgrepignore-files", "--config", OUR_RULES, FIXTURES)
    done = subprocess.run(
        [scanners.link_semgrep(engine, folder), "scan", "--experimental", *flags, *told],
        capture_output=True,
        check=True,
        timeout=100,
    )
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def found(report: Mapping[str, Any]) -> set[Mark]:
    return {Mark(Path(r["path"]).name, r["start"]["line"], r["check_id"]) for r in report["results"]}


@pytest.mark.requires("semgrep")
def test_every_rule_loads_and_every_fixture_is_read_whole(report: Mapping[str, Any]) -> None:
    assert report["errors"] == []
    assert report["skipped_rules"] == []
    assert {Path(path).name for path in report["paths"]["scanned"]} == {file.name for file in FIXTURES.iterdir()}


@pytest.mark.requires("semgrep")
def test_the_rules_find_every_line_that_is_marked_and_no_other(found: set[Mark]) -> None:
    assert sorted(found) == sorted(marked("ruleid", "also"))


@pytest.mark.requires("semgrep")
@pytest.mark.parametrize("rule_id", IDS)
def test_a_rule_finds_its_cases_leaves_its_look_alikes_alone_and_no_other_rule_stands_in(
    found: set[Mark], rule_id: str
) -> None:
    name = fixture_of(rule_id).name
    cases = {mark for mark in marked("ruleid") if mark.file == name}
    alike = {mark for mark in marked("ok") if mark.file == name}

    assert {mark.rule for mark in cases | alike} == {rule_id}
    assert len(cases) >= CASES_MIN
    assert len(alike) >= CASES_MIN
    assert cases <= found
    assert not alike & found
    # The pack without this rule: none of its cases is found.
    assert not cases & {mark for mark in found if mark.rule != rule_id}


def test_every_fixture_is_a_rules_and_every_rule_has_one() -> None:
    assert len(IDS) >= RULES_MIN
    assert len(IDS) == len(set(IDS))
    assert sorted(fixture_of(rule_id) for rule_id in IDS) == sorted(FIXTURES.iterdir())
    assert {mark.rule for _, mark in MARKS} == set(IDS)


def test_a_rule_is_alone_in_a_file_that_has_its_name() -> None:
    for file in rule_files(None):
        (rule,) = yaml.safe_load(file.read_text("utf-8"))["rules"]
        language, _, name = file.stem.partition("-")

        assert rule["id"] == f"bb.{language}.{name}"
        assert rule["languages"] == (["python"] if language == "python" else ["javascript", "typescript"])


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: rule["id"])
def test_a_rule_says_what_it_found_how_sure_it_is_and_what_to_do(rule: dict[str, Any]) -> None:
    told = rule["metadata"]

    assert rule["severity"] in {"ERROR", "WARNING", "INFO"}
    assert 0 < len(rule["message"]) <= MESSAGE_CHARS_MAX
    # A message may not quote code: what the scanned code says is untrusted.
    assert not re.search(r"\$[A-Z]", rule["message"])
    assert set(told) == {"title", "category", "cwe", "confidence", "fix", "references"}
    assert told["category"] == "sast"
    assert re.fullmatch(r"CWE-[1-9]\d{0,3}", told["cwe"])
    assert told["confidence"] in {"high", "medium", "low"}
    assert 0 < len(told["title"]) <= 80
    assert told["fix"].endswith(".")
    assert any(source.startswith("https://") for source in told["references"])


@pytest.mark.parametrize("file", rule_files(None), ids=lambda file: file.stem)
def test_a_rule_has_no_anchor_which_the_engine_cannot_read(file: Path) -> None:
    kinds = {type(token).__name__ for token in yaml.scan(file.read_text("utf-8"))}  # pyright: ignore - it says no types

    assert not kinds & {"AnchorToken", "AliasToken"}


# The engine knows no anchors, so what many rules share stands in each. Words of a shared part, and how many rules have it.
SHARED = {
    "flask.request.$ATTR": 9,
    "get_(query_|body_)": 9,
    "$ROUTE": 9,
    "@$SERVER.tool": 7,
    "queryStringParameters": 9,
    '"location.hash"': 3,
    "addEventListener": 3,
    '"uuid.UUID(...)"': 11,
    "$CHECKED not in $KNOWN": 11,
    "$KNOWN.get": 11,
    "{1,3}https?": 2,
    "`https?": 2,
    '"Number.parseInt(...)"': 12,
    "$KNOWN.includes": 12,
    "secure_filename": 2,
    "$CHECKED.is_relative_to": 2,
    "aiofiles.open": 2,
    "execaCommand": 2,
    "childProcess": 2,
    "$ARGUMENTS, {": 2,
    '$SPAWN(\\"/bin/sh': 2,
}


@pytest.mark.parametrize("words", SHARED)
def test_what_rules_share_is_the_same_in_each(words: str) -> None:
    told = Counter(
        json.dumps({key: value for key, value in part.items() if key != "label"})
        for rule in rules()
        for kind in ("pattern-sources", "pattern-sanitizers", "pattern-sinks")
        for part in rule.get(kind, [])
        if words in json.dumps(part)
    )

    assert list(told.values()) == [SHARED[words]]
