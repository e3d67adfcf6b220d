"""Owns the walk that copies a repository: through file descriptors alone, no path of it ever resolved twice, each thing counted."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections import Counter
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from mcp_servers.cybersecurity.content import (
    has_odd_coding,
    looks_like_code,
    numbered_name,
    shown_name,
    staged_name,
    staged_text,
)

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# Not blocking: what turned into a pipe between listing and opening must not hold us.
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_HOPS_MAX = 20
_PATH_BYTES_MAX = 3_000
"""Of a path below the copy: a scanner opens by the whole path, which the system bounds at 4,096."""
_UNNAMEABLE = frozenset({errno.ENAMETOOLONG, errno.EINVAL, errno.EILSEQ, errno.EEXIST})
_CUTS = frozenset(
    {"too_many_files", "too_much", "too_large", "too_deep", "unreadable", "link_not_followed", "odd_coding"}
)


@dataclass(frozen=True, slots=True)
class Bounds:
    """How much one scan may take in; folders count as files."""

    files: int = 50_000
    bytes: int = 500 * 1024**2
    file_bytes: int = 5 * 1024**2
    depth: int = 40


@dataclass(slots=True)
class Stage:
    """A staged copy.

    Attributes:
        source: The copy; all that scanners are shown.
        work: An empty folder for what scanners write.
        files: Copied.
        folders: Made.
        code: How many of the files look like code and are not empty.
        bytes: Copied.
        skipped: What was not copied, or not as its language reads it, by reason.
        renamed: Names in the copy that differ from the repository's: copied path -> the repository's.
        revision: Digest over paths and contents.
    """

    source: Path
    work: Path
    files: int = 0
    folders: int = 0
    code: int = 0
    bytes: int = 0
    skipped: Counter[str] = field(default_factory=Counter[str])
    renamed: dict[str, str] = field(default_factory=dict[str, str])
    revision: str = ""

    @property
    def cut(self) -> bool:
        """Whether something was left out that ought to have been scanned."""
        return not _CUTS.isdisjoint(self.skipped)

    def original(self, path: str) -> str:
        """How the repository names a path of the copy."""
        return self.renamed.get(path, path)


@dataclass(frozen=True, slots=True)
class _Place:
    """Something of the repository: how its copy is called, and how the repository calls it."""

    name: str
    copied: str
    named: str


@dataclass(slots=True)
class _Folder:
    """A folder that is being copied: open in the repository and in the copy, with the names that the copy's has."""

    at: int
    into: int
    copied: str
    named: tuple[str, ...]
    depth: int
    taken: set[str] = field(default_factory=set[str])


class Copying:
    """One walk over a repository.

    Args:
        stage: Filled.
        skips: Names of folders to leave out.
        own: The hub's own data dir, whose files are nobody's code.
        bounds: How much may be copied.
        stopped: Asked now and then whether to give up.
    """

    def __init__(
        self, stage: Stage, skips: frozenset[str], own: Path | None, bounds: Bounds, stopped: Callable[[], bool]
    ) -> None:
        self._stage, self._skips, self._bounds, self._stopped = stage, skips, bounds, stopped
        self._own = _identity(own.stat()) if own is not None and own.exists() else None
        self._digests: list[tuple[str, bytes]] = []
        self._root, self._above = -1, ""

    def copy(self, root: Path, path: str) -> None:
        """Copy a folder of a root; no part of either may be a link.

        Raises:
            OSError: It cannot be read or copied.
            InterruptedError: `stopped` said so.
        """
        parts = tuple(filter(None, path.split("/")))
        self._above = f"{root}/"
        with _opened(root, ()) as self._root, _opened(self._root, parts) as at, _opened(self._stage.source, ()) as into:
            if self._is_own(at):
                self._skip("own_data")
            else:
                self._folder(_Folder(at, into, "", parts, 0))
        whole = hashlib.sha256()
        for named, digest in sorted(self._digests):
            whole.update(len(named).to_bytes(4, "big") + named.encode() + digest)
        self._stage.revision = whole.hexdigest()

    def _folder(self, folder: _Folder) -> None:
        at: int = folder.at
        for name in sorted(os.listdir(at)):
            if self._stopped():
                raise InterruptedError
            try:
                mode = os.stat(name, dir_fd=at, follow_symlinks=False).st_mode
            except OSError:
                self._skip("unreadable")
                continue
            if reason := self._reason(folder, name, mode):
                self._skip(reason)
            elif self._has_room() and (place := self._place(folder, name)):
                try:
                    self._take(folder, place, name, mode)
                except OSError as error:
                    if error.errno not in _UNNAMEABLE:
                        raise
                    self._skip("unreadable")

    def _reason(self, folder: _Folder, name: str, mode: int) -> str | None:
        if stat.S_ISDIR(mode):
            if name in self._skips:
                return "asked"
            # Below the root anybody could call a folder so, and have it run.
            return "git" if name == ".git" and not folder.named and _is_git(folder.at) else None
        return None if stat.S_ISREG(mode) or stat.S_ISLNK(mode) else "special"

    def _has_room(self) -> bool:
        if self._stage.files + self._stage.folders >= self._bounds.files:
            self._skip("too_many_files")
            return False
        return True

    def _place(self, folder: _Folder, name: str) -> _Place | None:
        plain = staged_name(name)
        number = 0
        while (called := numbered_name(plain, number) if number else plain) in folder.taken:
            number += 1
        copied = f"{folder.copied}{called}"
        if len(os.fsencode(copied)) > _PATH_BYTES_MAX:
            self._skip("too_deep")
            return None
        folder.taken.add(called)
        return _Place(called, copied, "/".join(map(shown_name, (*folder.named, name))))

    def _take(self, folder: _Folder, place: _Place, name: str, mode: int) -> None:
        if stat.S_ISDIR(mode):
            self._below(folder, place, name)
        elif stat.S_ISLNK(mode):
            self._link(folder, place, name)
        else:
            try:
                source = os.open(name, _FILE, dir_fd=folder.at)
            except OSError:
                self._skip("unreadable")
                return
            self._file(source, folder.into, place)

    def _below(self, folder: _Folder, place: _Place, name: str) -> None:
        if folder.depth >= self._bounds.depth:
            self._skip("too_deep")
            return
        try:
            inner = os.open(name, _FOLDER, dir_fd=folder.at)
        except OSError:
            self._skip("unreadable")
            return
        try:
            if self._is_own(inner):
                self._skip("own_data")
                return
            os.mkdir(place.name, 0o700, dir_fd=folder.into)
            self._stage.folders += 1
            into = os.open(place.name, _FOLDER, dir_fd=folder.into)
            try:
                self._folder(_Folder(inner, into, f"{place.copied}/", (*folder.named, name), folder.depth + 1))
            finally:
                os.close(into)
        finally:
            os.close(inner)

    def _link(self, folder: _Folder, place: _Place, name: str) -> None:
        """What a link leads to in the repository is code under the link's name too; folders are walked where they lie."""
        try:
            found = self._followed(folder.named, name)
        except OSError as error:
            self._skip("link" if error.errno == errno.ENOENT else "link_not_followed")
            return
        if found is None:
            self._skip("link")
        else:
            self._file(found, folder.into, place)

    def _followed(self, above: tuple[str, ...], name: str) -> int | None:
        """The regular file that a link means, open; None where it is something else, or not in the repository."""
        done: list[str] = [*above]
        ahead = [name]
        hops = 0
        while ahead:
            part = ahead.pop()
            if part == "..":
                if not done:
                    return None
                done.pop()
                continue
            with _opened(self._root, tuple(done)) as at:
                if self._is_own(at):
                    return None
                mode = os.stat(part, dir_fd=at, follow_symlinks=False).st_mode
                if stat.S_ISLNK(mode):
                    hops += 1
                    target = os.readlink(part, dir_fd=at)
                    if target.startswith("/"):
                        if not target.startswith(self._above):
                            return None
                        done, target = [], target.removeprefix(self._above)
                    if hops > _HOPS_MAX:
                        raise OSError(errno.ELOOP, "too many links")
                    ahead += [piece for piece in reversed(target.split("/")) if piece not in {"", "."}]
                elif stat.S_ISREG(mode) and not ahead:
                    return os.open(part, _FILE, dir_fd=at)
                else:
                    done.append(part)
        return None

    def _file(self, source: int, into: int, place: _Place) -> None:
        with os.fdopen(source, "rb", buffering=0) as file:
            found = os.fstat(source)
            if not stat.S_ISREG(found.st_mode):
                self._skip("special")
            elif found.st_size > self._bounds.file_bytes:
                self._skip("too_large")
            elif self._stage.bytes + found.st_size > self._bounds.bytes:
                self._skip("too_much")
            else:
                try:
                    content = file.read(self._bounds.file_bytes)
                except OSError:
                    self._skip("unreadable")
                    return
                self._write(content, into, place)

    def _write(self, content: bytes, into: int, place: _Place) -> None:
        text = staged_text(place.name, content)
        stage = self._stage
        self._digests.append((place.named, hashlib.sha256(content).digest()))
        if text is None:
            self._skip("binary")
            return
        # semgrep knows a script without an ending by its first line, if it could be run. Nothing here is.
        target = os.open(place.name, _NEW, 0o700 if text.startswith(b"#!") else 0o600, dir_fd=into)
        with os.fdopen(target, "wb") as file:
            file.write(text)
        stage.files += 1
        stage.bytes += len(content)
        stage.code += bool(text.strip()) and looks_like_code(place.name, text)
        if has_odd_coding(place.name, text):
            self._skip("odd_coding")
        if place.copied != place.named:
            stage.renamed[place.copied] = place.named

    def _is_own(self, folder: int) -> bool:
        return self._own is not None and _identity(os.fstat(folder)) == self._own

    def _skip(self, reason: str) -> None:
        self._stage.skipped[reason] += 1


@contextmanager
def _opened(start: Path | int, parts: tuple[str, ...]) -> Generator[int]:
    """A folder, opened part by part without following a link."""
    at = os.dup(start) if isinstance(start, int) else os.open(start, _FOLDER)
    try:
        for part in parts:
            above, at = at, os.open(part, _FOLDER, dir_fd=at)
            os.close(above)
        yield at
    finally:
        os.close(at)


def _is_git(folder: int) -> bool:
    """Whether a folder's `.git` is what git made: with a head and objects."""
    with suppress(OSError), _opened(folder, (".git",)) as at:
        head, objects = (os.stat(name, dir_fd=at, follow_symlinks=False).st_mode for name in ("HEAD", "objects"))
        return stat.S_ISREG(head) and stat.S_ISDIR(objects)
    return False


def _identity(found: os.stat_result) -> tuple[int, int]:
    return found.st_dev, found.st_ino
