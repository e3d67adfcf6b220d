"""The documents say what is: generated ones are current, and what the written ones name (files, commands, settings) is there."""

from __future__ import annotations

import ast
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from body_broker.settings import NOT_SETTINGS, PREFIX, Settings
from mcp_servers.hub.cli import body_broker
from mcp_servers.hub.rooms import ROOMS
from tests.components import data_dir
from tests.tools import ordered, seeds
from tests.tools.project import PACKAGES, ROOT, pyproject, tracked_files
from tests.tools.regen import GENERATED, Generated

README_LINES_MAX = 200
ARCHITECTURE_LINES_MAX = 300
# What tools wait for that no version has yet; their rows name it.
LATER = {operation.needs for room in ROOMS for operation in room.operations()}

PAGES = [f for f in tracked_files() if f.suffix == ".md"]
# What is written about the present; seeds.md and the ADRs also name what is not here yet, or no longer.
PRESENT = [f for f in PAGES if f.name != "seeds.md" and f.parent.name != "adr"]
ADRS = sorted(f for f in PAGES if f.parent.name == "adr" and f.name[0].isdecimal())


def name_of(file: Path) -> str:
    return file.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("item", GENERATED, ids=lambda item: f"{item.path} {item.part or ''}".strip())
def test_a_generated_file_says_what_the_code_says(item: Generated) -> None:
    assert item.is_current(), f"{item.path} is stale: run `poe regen`"


def test_a_stale_part_is_seen_and_a_missing_mark_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.tools.regen.ROOT", tmp_path)
    file = tmp_path / "page.md"
    part = Generated("page.md", lambda: "new\n", part="x")
    file.write_text("before\n<!-- generated: x -->\nold\n<!-- end -->\nafter\n")

    assert not part.is_current()
    assert part.wanted() == "before\n<!-- generated: x -->\nnew\n<!-- end -->\nafter\n"
    file.write_text("no marks\n")
    with pytest.raises(SystemExit, match="exactly one part"):
        part.wanted()


def test_what_is_said_of_each_name_of_the_source_documents_holds() -> None:
    assert [fault for row in seeds.rows() for fault in row.faults()] == []


@pytest.mark.requires("seeds")
def test_every_name_in_the_source_documents_code_is_accounted_for() -> None:
    documents = sorted((data_dir().parent / "seeds").glob("*.md"))
    listed = {d.name: " ".join(r.name for r in seeds.rows() if r.document == d.name) for d in documents}
    words = {name: {*re.findall(r"\w+", text), *re.findall(r"[\w.-]+", text)} for name, text in listed.items()}

    assert {d.name: seeds.identifiers(d) - words[d.name] for d in documents} == {d.name: set() for d in documents}
    assert len(documents) == 5


def test_a_row_that_does_not_hold_is_found() -> None:
    def faults(state: str, *remarks: str) -> list[str]:
        return list(seeds.Row("d", "p", "n", state, remarks).faults())

    assert faults("at tests/tools/seeds.py::Row", "tests/test_docs.py") == []
    assert faults("at tests/tools/seeds.py::Raw", "tests/test_docs.py") == ["n: tests/tools/seeds.py defines no Raw"]
    assert faults("at tests/tools/sods.py", "tests/test_docs.py") == ["n: tests/tools/sods.py is not here"]
    assert faults("at tests/tools/seeds.py", "tests") == ["n: names no test that exists"]
    assert faults("issue soon", "x") == ["n: issue soon is no state"]
    assert faults("later") == ["n: says neither what nor why"]


def test_every_relative_link_leads_somewhere() -> None:
    link = re.compile(r"\]\(((?!https?:|#|mailto:)[^)#\s]+)")

    dead = [
        f"{name_of(f)}: {to}"
        for f in PAGES
        for to in link.findall(f.read_text("utf-8"))
        if not (f.parent / to).exists()
    ]

    assert dead == []


def test_every_file_a_page_names_is_there() -> None:
    # `body_broker/text.py`, `policies/`: a path of the repository in code marks.
    path = re.compile(r"`((?:\.ci|docs|examples|tests|" + "|".join(PACKAGES) + r")/[\w./-]*)(?:::\w+)?`")

    gone = [
        f"{name_of(f)}: {p}" for f in PRESENT for p in path.findall(f.read_text("utf-8")) if not (ROOT / p).exists()
    ]

    assert gone == []


def test_the_code_map_has_every_room() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text("utf-8")
    folders = {
        name_of(f.parent) for f in tracked_files() if f.suffix == ".py" and f.relative_to(ROOT).parts[0] in PACKAGES
    }

    assert sorted(folder for folder in folders if f"`{folder}/`" not in text) == []


def test_the_two_pages_one_reads_first_stay_short() -> None:
    assert len((ROOT / "README.md").read_text("utf-8").splitlines()) <= README_LINES_MAX
    assert len((ROOT / "ARCHITECTURE.md").read_text("utf-8").splitlines()) <= ARCHITECTURE_LINES_MAX


def commands_in(text: str) -> Iterator[str]:
    """Every `body-broker ...` that a page tells one to type."""
    for block in re.findall(r"```\w*\n(.*?)```", text, re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            if found := re.search(r"(?:^|\s)body-broker\s.*", line.split("#")[0]):
                yield found.group().strip()
    yield from re.findall(r"`(?:uv run )?(body-broker [^`]+)`", text)


def faults_of(line: str) -> Iterator[str]:
    """What of a command line the program does not have."""
    words = shlex.split(line.replace("[", " ").replace("]", " ").replace("|", " "))[1:]
    words = words[: words.index("--")] if "--" in words else words  # what follows is another program's
    command: click.Command = body_broker
    for word in words:
        if isinstance(command, click.Group):
            found = command.get_command(click.Context(command), word)
            if found is None:
                if not word.startswith("-"):
                    yield f"{line}: no command {word}"
                return
            command = found
    known = {option for parameter in command.params for option in parameter.opts} | {"--help"}
    yield from (f"{line}: no option {w}" for w in words if w.startswith("--") and w.split("=")[0] not in known)


def test_every_command_a_page_tells_one_to_type_exists() -> None:
    lines = {line for file in PRESENT for line in commands_in(file.read_text("utf-8"))}

    assert [fault for line in sorted(lines) for fault in faults_of(line)] == []
    assert lines


def test_a_command_that_does_not_exist_is_found() -> None:
    assert list(faults_of("body-broker sing")) == ["body-broker sing: no command sing"]
    assert list(faults_of("body-broker serve --loud")) == ["body-broker serve --loud: no option --loud"]
    assert list(commands_in("```\n$ uv run body-broker demo --once  # all\n```")) == ["body-broker demo --once"]


def test_the_project_file_of_claude_code_starts_a_hub_over_stdio() -> None:
    servers = json.loads((ROOT / ".mcp.json").read_text("utf-8"))["mcpServers"]

    (server,) = servers.values()
    assert [server["command"], *server["args"][:2]] == ["uv", "run", "body-broker"]
    assert "--stdio" in server["args"]
    assert list(faults_of(shlex.join(server["args"][1:]))) == []


def test_every_setting_a_page_names_exists() -> None:
    def unknown(name: str) -> bool:
        known = name.removeprefix(PREFIX).lower() in Settings.model_fields or name in LATER
        return not name.startswith(NOT_SETTINGS) and not known

    named = {(name_of(f), n) for f in PRESENT for n in re.findall(rf"{PREFIX}[A-Z_]*[A-Z]", f.read_text("utf-8"))}

    assert {(file, name) for file, name in named if unknown(name)} == set()


def requirement_names(lines: list[str]) -> set[str]:
    return {match.group().lower() for line in lines if (match := re.match(r"[A-Za-z0-9._-]+", line))}


def declared() -> dict[str, set[str]]:
    """The names this project depends on, by where pyproject.toml has them."""
    found = pyproject()
    groups: dict[str, list[str]] = found["dependency-groups"]
    extras: dict[str, list[str]] = found["project"]["optional-dependencies"]
    return {
        "dependency": requirement_names(found["project"]["dependencies"]),
        **{f"group {name}": requirement_names(lines) for name, lines in groups.items()},
        **{f"extra {name}": requirement_names(lines) for name, lines in extras.items()},
    }


@pytest.mark.parametrize("package", ordered.PACKAGES, ids=lambda package: package.name)
def test_what_the_readme_says_of_an_ordered_package_is_true(package: ordered.Package) -> None:
    assert package.name in declared()[package.declared]
    for module in package.used_in:
        tree = ast.parse((ROOT / module).read_text("utf-8"))
        imported = {
            name.split(".")[0]
            for node in ast.walk(tree)
            for name in (
                [a.name for a in node.names]
                if isinstance(node, ast.Import)
                else [node.module or ""]
                if isinstance(node, ast.ImportFrom)
                else []
            )
        }
        called = package.program and package.program in (ROOT / module).read_text("utf-8")
        assert called or package.module in imported, f"{module} does not use {package.name}"
    assert package.used_in or package.issue


def test_every_direct_dependency_is_accounted_for() -> None:
    text = (ROOT / "docs" / "dependencies.md").read_text("utf-8")

    assert set(re.findall(r"^\| `([a-z0-9._-]+)`", text, re.MULTILINE)) == set().union(*declared().values())


def test_decisions_are_numbered_once_and_name_what_holds_them() -> None:
    assert [f.name[:4] for f in ADRS] == [f"{n:04}" for n in range(1, len(ADRS) + 1)]
    for adr in ADRS:
        text = adr.read_text("utf-8")
        assert re.findall(r"^## (\w+)", text, re.MULTILINE) == ["Context", "Decision", "Consequences", "Held"], adr.name
        held = re.findall(r"`([\w./-]+?)(?:::\w+)?`", text.split("## Held")[1])
        assert held, f"{adr.name} names no test or contract"
        assert [path for path in held if "/" in path and not (ROOT / path).exists()] == [], adr.name


def test_the_changelog_has_this_version() -> None:
    version = pyproject()["project"]["version"]

    assert re.search(rf"^## \[({version}|Unreleased)\]", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE)
