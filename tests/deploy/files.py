"""Owns compose.yaml, Dockerfile and .dockerignore as the tests read them: interpolated as Compose does, parsed as Docker does."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import yaml

from tests.tools.project import ROOT, tracked_files

COMPOSE = ROOT / "compose.yaml"
_VARIABLE = re.compile(r"\$\{(?P<name>\w+)(?:(?P<how>:?[-?])(?P<rest>[^}]*))?\}")
Service = dict[str, Any]  # YAML


class Missing(Exception):
    """A variable that must be set is not; the message is compose.yaml's own."""


def compose(env: Mapping[str, str]) -> dict[str, Any]:  # YAML
    """compose.yaml with its variables filled in; a service's variable without a value is passed on where it is set.

    Raises:
        Missing: One that must be set is not, or is empty.
    """
    found = _filled(yaml.safe_load(COMPOSE.read_text("utf-8")), env)
    for service in found["services"].values():
        given = service.get("environment", {})
        given |= {name: env.get(name) for name, value in given.items() if value is None}
    return found


def _filled(node: Any, env: Mapping[str, str]) -> Any:  # YAML
    if isinstance(node, dict):
        return {key: _filled(value, env) for key, value in node.items()}  # pyright: ignore[reportUnknownVariableType]
    if isinstance(node, list):
        return [_filled(value, env) for value in node]  # pyright: ignore[reportUnknownVariableType]
    return _VARIABLE.sub(lambda m: _value(m, env), node) if isinstance(node, str) else node


def _value(found: re.Match[str], env: Mapping[str, str]) -> str:
    value = env.get(found["name"], "")
    if not value and (found["how"] or "").endswith("?"):
        raise Missing(f"{found['name']}: {found['rest']}")
    return value or (found["rest"] or "" if (found["how"] or "").endswith("-") else "")


def variables() -> dict[str, set[str]]:
    """Every variable of compose.yaml with the ways it is asked for: `:?` must be set, `:-` has a default."""
    found: dict[str, set[str]] = {}
    for match in _VARIABLE.finditer(COMPOSE.read_text("utf-8")):
        found.setdefault(match["name"], set()).add(match["how"] or "")
    return found


def passed_on() -> set[str]:
    """Every variable that a service gets as it is set, or not at all."""
    services = yaml.safe_load(COMPOSE.read_text("utf-8"))["services"].values()
    return {name for service in services for name, value in service.get("environment", {}).items() if value is None}


def example() -> dict[str, str]:
    """What .env.example names, with the values that stand there, in use or as a comment."""
    text = (ROOT / ".env.example").read_text("utf-8")
    return dict(re.findall(r"^#?([A-Z][A-Z0-9_]+)=(.*)$", text, re.MULTILINE))


@dataclass(frozen=True)
class Step:
    """One instruction of a Dockerfile, its continued lines joined: `RUN`, its words as written, and the stage it is in."""

    keyword: str
    text: str
    stage: int

    @property
    def words(self) -> list[str]:
        return json.loads(self.text) if self.text.startswith("[") else shlex.split(self.text)


def dockerfile() -> list[Step]:
    """The Dockerfile's instructions in order."""
    steps: list[Step] = []
    stage = -1
    lines = [line for line in (ROOT / "Dockerfile").read_text("utf-8").splitlines() if not line.startswith("#")]
    for line in "\n".join(lines).replace("\\\n", " ").splitlines():
        if line.strip():
            keyword, _, text = line.strip().partition(" ")
            stage += keyword == "FROM"
            steps.append(Step(keyword, " ".join(text.split()), stage))
    return steps


def env_of(stage: int) -> dict[str, str]:
    """What the Dockerfile's ENV instructions set in a stage."""
    return dict(
        word.split("=", 1)
        for step in dockerfile()
        if step.keyword == "ENV" and step.stage == stage
        for word in step.words
    )


def is_ignored(path: Path) -> bool:
    """Whether .dockerignore keeps the file from the daemon: the last line that fits it decides, as in Docker."""
    relative = path.relative_to(ROOT)
    ignored = False
    for line in (ROOT / ".dockerignore").read_text("utf-8").splitlines():
        pattern = line.strip()
        if not pattern or pattern.startswith("#"):
            continue
        again, pattern = pattern.startswith("!"), pattern.removeprefix("!")
        if any(_fits(part, pattern) for part in (relative, *relative.parents)):
            ignored = not again
    return ignored


def _fits(path: Path, pattern: str) -> bool:
    if pattern.startswith("**/"):
        return fnmatch(path.name, pattern.removeprefix("**/"))
    return str(path) != "." and path.parent == Path() and fnmatch(path.name, pattern)


def context() -> Iterator[Path]:
    """Every file of the tree that Docker would be given."""
    return (file for file in tracked_files() if not is_ignored(file))
