"""Owns which folder a caller's `repo_path` means: a registered repository's name, or a path inside one's root, and nothing else."""

from __future__ import annotations

import os.path
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from body_broker.errors import NotFound

PATH_MAX = 1_000
# A name's first sign is a letter or digit, so that no value ever begins with a dash; `%` and backslashes are in no path here:
# what decodes them somewhere else would decode another path.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,99}")
_PATH = re.compile(r"/?[^\x00-\x1f\x7f%\\-][^\x00-\x1f\x7f%\\]*")


@dataclass(frozen=True, slots=True)
class Repository:
    """A registered repository.

    Attributes:
        name: What callers say.
        root: A resolved absolute path on the machine that scans.
        skips: Names of folders that its operator leaves out of scans.
    """

    name: str
    root: Path
    skips: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Target:
    """What is to be scanned: a folder of a repository.

    Attributes:
        repository: Which.
        path: Below its root, with `/`; empty for all of it.
    """

    repository: Repository
    path: str = ""


def is_name(text: str) -> bool:
    """Whether a repository may be called that."""
    return _NAME.fullmatch(text) is not None


def target_of(repo_path: str, repositories: Iterable[Repository]) -> Target:
    """The folder that `repo_path` means, by its words alone: nothing is looked up on the disk.

    Raises:
        NotFound: It is no registered name, nor inside a registered root; the same words whether something is there or not.
    """
    known = {repository.name: repository for repository in repositories}
    if repo_path in known:
        return Target(known[repo_path])
    if not _is_plain(repo_path):
        raise unknown()
    if repo_path.startswith("/"):
        return _inside(Path(repo_path), known.values())
    name, _, rest = repo_path.partition("/")
    if name not in known:
        raise unknown()
    return _inside(known[name].root / rest.strip("/"), [known[name]])


def locate(target: Target) -> Path:
    """The target's folder on this machine, proved to lie below its root. Blocks.

    Raises:
        NotFound: It is not there, is no folder, or a symbolic link leads out of the root.
    """
    root = target.repository.root
    folder = root / target.path
    try:
        # A root that was moved and replaced by a link is not the root that was registered.
        there = root.resolve(strict=True) == root and folder.resolve(strict=True)
    except (OSError, RuntimeError):
        there = False
    if there is False or not there.is_relative_to(root) or there != folder or not there.is_dir():
        raise unknown()
    return folder


def unknown() -> NotFound:
    """The one refusal of a path."""
    return NotFound(
        "No registered repository has that name or holds that path.",
        next_step="`body-broker repos list` shows them, `body-broker repos add PATH` adds one: ask an operator.",
    )


def _is_plain(text: str) -> bool:
    return len(text) <= PATH_MAX and _PATH.fullmatch(text) is not None and ".." not in text.split("/")


def _inside(path: Path, repositories: Iterable[Repository]) -> Target:
    path = Path(os.path.normpath(path))  # `..` is refused before; this drops `.` and doubled slashes
    holding = [repository for repository in repositories if path.is_relative_to(repository.root)]
    if not holding:
        raise unknown()
    nearest = max(holding, key=lambda repository: len(repository.root.parts))
    inner = path.relative_to(nearest.root)
    return Target(nearest, "" if inner == Path() else inner.as_posix())
