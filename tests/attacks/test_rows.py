"""The table of attacks is whole and current: every row there, every test that it names exists, nothing is open that has been built."""

from __future__ import annotations

import ast
import tomllib
from pathlib import Path
from typing import Any

from tests.components import PROJECT

_TABLE: dict[str, list[dict[str, Any]]] = tomllib.loads(Path(__file__).with_name("rows.toml").read_text("utf-8"))
_ALL = [*_TABLE["row"], *_TABLE["incident"]]
_ROWS = 27


def exists(test: str) -> bool:
    """Whether pytest would find it: a function at the top of that file."""
    file, _, name = test.partition("::")
    path = PROJECT / file
    if not path.is_file():
        return False
    tree = ast.parse(path.read_text("utf-8"))
    return any(isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name == name for node in tree.body)


def test_every_attack_of_the_study_stands_once() -> None:
    assert [row["number"] for row in _TABLE["row"]] == list(range(1, _ROWS + 1))
    assert all(row["cve"].startswith("CVE-") and row["attack"] for row in _TABLE["row"])
    assert all(row["tests"] for row in _TABLE["row"]), "a row that nothing holds off"
    assert all(row["tests"] or row["open"] for row in _ALL)


def test_every_test_that_is_named_is_there() -> None:
    named = {test for row in _ALL for test in row["tests"]}
    assert {test for test in named if not exists(test)} == set()


def test_what_is_open_has_not_been_built() -> None:
    """A file that is there must stand under `tests`, by its test's name."""
    files = {file: row["attack"] for row in _ALL for file in row.get("open", ())}
    built = {file: attack for file, attack in files.items() if (PROJECT / file).is_file()}
    for file, attack in sorted(files.items()):
        print(f"open: {attack} ({file})")
    assert built == {}, "name its test in rows.toml in place of the file"
