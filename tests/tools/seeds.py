"""Owns docs/seeds.md: every name of the source documents and where it is, read from docs/seeds.toml; and what is wrong with a row."""

from __future__ import annotations

import ast
import builtins
import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.tools.project import ROOT

# What Python brings, and the handle every method has: no names of the documents' own.
_NOT_THEIRS = {*dir(builtins), "Dict", "List", "Optional", "self", "args", "kwargs", "gather", "time"}
_BLOCK = re.compile(r"```(\w*)\n(.*?)```", re.DOTALL)
_IN_SETTINGS = re.compile(r"(?:^|[\s-])(?:name|Name|value): *\"?([\w.-]+)\"?$", re.MULTILINE)
_SCRIPT = re.compile(r"[\w-]+\.ps1")
_SOURCES = (
    "multi-tier-model-architecture.md",
    "integration-patterns.md",
    "cost-optimised-platform.md",
    "deployment-modes.md",
    "infrastructure.md",
)


@dataclass(frozen=True, slots=True)
class Row:
    """One name of a source document.

    Attributes:
        document: The file it stands in.
        part: The part of that file.
        name: As it is written there.
        state: `at PATH[::SYMBOL]`, `issue N`, `later` or `departed`.
        remarks: The test first where it is here; then what is worth saying.
    """

    document: str
    part: str
    name: str
    state: str
    remarks: tuple[str, ...]

    def faults(self) -> Iterator[str]:
        """What does not hold of this row."""
        kind, _, rest = self.state.partition(" ")
        if kind == "at":
            yield from self._faults_of_place(rest)
            if not self.remarks or not (ROOT / self.remarks[0]).is_file():
                yield f"{self.name}: names no test that exists"
        elif not (kind == "issue" and rest.isdecimal()) and self.state not in {"later", "departed"}:
            yield f"{self.name}: {self.state} is no state"
        elif not self.remarks:
            yield f"{self.name}: says neither what nor why"

    def _faults_of_place(self, place: str) -> Iterator[str]:
        path, _, symbol = place.partition("::")
        file = ROOT / path
        if not file.exists():
            yield f"{self.name}: {path} is not here"
        elif symbol and symbol not in _defined(file):
            yield f"{self.name}: {path} defines no {symbol}"

    def cells(self) -> tuple[str, str]:
        """What the page says of it: where, and what else."""
        kind, _, rest = self.state.partition(" ")
        if kind == "at":
            path, _, symbol = rest.partition("::")
            where = f"[`{path}`](../{path})" + (f" `{symbol}`" if symbol else "")
            test, *more = self.remarks
            return where, "; ".join([f"test: [`{test}`](../{test})", *more])
        return (
            f"not yet (issue {rest})" if kind == "issue" else "not yet (later)" if kind == "later" else "departed"
        ), "; ".join(self.remarks)


def rows() -> list[Row]:
    """Every row of docs/seeds.toml, in its order."""
    found: dict[str, dict[str, dict[str, str]]] = tomllib.loads((ROOT / "docs" / "seeds.toml").read_text("utf-8"))
    return [
        Row(document, part, name, state, tuple(remarks))
        for document, parts in found.items()
        for part, names in parts.items()
        for name, text in names.items()
        for state, *remarks in [text.split(" | ")]
    ]


def page() -> str:
    """docs/seeds.md."""
    every = rows()
    lines = [
        "# The source documents, name by name\n",
        "Five documents describe the studio's platform. Every name in them stands here with the place it lives in and the test",
        "that holds it, or when it will come, or why we do something else. Made from [seeds.toml](seeds.toml).\n",
    ]
    for document in _SOURCES:
        lines.append(f"## {document}\n")
        ours = [row for row in every if row.document == document]
        for part in dict.fromkeys(row.part for row in ours):
            lines += [f"### {part}\n", "| Name | Where | |", "| --- | --- | --- |"]
            for row in ours:
                if row.part == part:
                    where, remark = row.cells()
                    lines.append(f"| {row.name} | {where} | {remark} |")
            lines.append("")
    here = sum(row.state.startswith("at ") for row in every)
    lines.append(f"{len(every)} rows, {here} of them here.")
    return "\n".join(lines) + "\n"


def identifiers(document: Path) -> set[str]:
    """Every name of its own in a source document's code: Python's definitions, calls, parameters, types; settings; scripts."""
    found: set[str] = set()
    for language, block in _BLOCK.findall(document.read_text("utf-8")):
        if language == "python":
            found |= {name for node in ast.walk(ast.parse(block)) for name in _names(node)}
        elif language == "yaml":
            found |= set(_IN_SETTINGS.findall(block))
        elif language == "powershell":
            found |= set(_SCRIPT.findall(block))
    return {name for name in found if name not in _NOT_THEIRS and not name.isdecimal() and not name.startswith("__")}


def _names(node: ast.AST) -> list[str]:
    match node:
        case ast.ClassDef(name=name) | ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
            return [name]
        case (
            ast.Call(func=ast.Attribute(attr=name), keywords=keywords)
            | ast.Call(func=ast.Name(id=name), keywords=keywords)
        ):
            return [name, *(k.arg for k in keywords if k.arg)]
        case ast.arg(arg=name, annotation=annotation):
            return [name, *(n.id for n in ast.walk(annotation) if isinstance(n, ast.Name))] if annotation else [name]
        case ast.Dict(keys=keys):
            return [k.value for k in keys if isinstance(k, ast.Constant) and isinstance(k.value, str)]
        case _:
            return []


def _defined(file: Path) -> set[str]:
    if file.suffix != ".py":
        return set()
    body = ast.parse(file.read_text("utf-8")).body
    targets = (t for node in body if isinstance(node, ast.Assign) for t in node.targets)
    return (
        {node.name for node in body if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)}
        | {target.id for target in targets if isinstance(target, ast.Name)}
        | {node.target.id for node in body if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)}
    )
