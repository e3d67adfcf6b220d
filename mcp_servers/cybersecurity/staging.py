"""Owns the copy that scanners see: regular files alone, opened without following any link, within bounds, gone afterwards."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import stat
import tempfile
from collections import Counter
from collections.abc import Callable, Collection, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from body_broker.errors import Unavailable

_PREFIX = "scan-"
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# Not blocking: what turned into a pipe between listing and opening must not hold us.
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
# A scanner reads these as orders of what not to look at; under another name they are files like any other.
_ORDERS = frozenset(
    {".gitignore", ".semgrepignore", ".gitleaksignore", ".gitleaks.toml", "gitleaks.toml", ".secrets.baseline"}
)
_CUTS = frozenset({"too_many_files", "too_much", "too_large", "too_deep", "unreadable"})


@dataclass(frozen=True, slots=True)
class Bounds:
    """How much one scan may take in."""

    files: int = 50_000
    bytes: int = 500 * 1024**2
    file_bytes: int = 5 * 1024**2
    depth: int = 40


BOUNDS = Bounds()


@dataclass(slots=True)
class Stage:
    """A staged copy.

    Attributes:
        source: The copy; all that scanners are shown.
        work: An empty folder for what scanners write.
        files: Copied.
        bytes: Copied.
        skipped: What was not copied, by reason.
        renamed: Names in the copy that differ from the repository's: copied path -> the repository's.
        revision: Digest over paths and contents.
    """

    source: Path
    work: Path
    files: int = 0
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


@contextmanager
def staged(
    root: Path,
    path: str,
    staging_dir: Path,
    *,
    skips: Collection[str] = (),
    bounds: Bounds = BOUNDS,
    stopped: Callable[[], bool] = lambda: False,
) -> Generator[Stage]:
    """A private copy of a folder, removed on the way out. Blocks.

    Args:
        root: A resolved folder.
        path: What to copy below it; empty is all. No part of it may be a link.
        staging_dir: Where copies lie; made where it is missing. What a killed process left there is removed first.
        skips: Names of folders to leave out, at any depth; the operator's, never the repository's.
        bounds: How much may be copied.
        stopped: Asked now and then whether to give up.

    Raises:
        Unavailable: The copy cannot be made here.
        InterruptedError: `stopped` said so.
    """
    sweep(staging_dir)
    with _private(staging_dir) as place:
        stage = Stage(place / "source", place / "work")
        try:
            stage.source.mkdir(mode=0o700)
            stage.work.mkdir(mode=0o700)
            _Copying(stage, frozenset(skips), bounds, stopped).copy(root, path)
        except InterruptedError:
            raise
        except OSError as error:
            raise Unavailable(
                "The repository could not be copied for its scan.",
                next_step="Check that its files can be read and that the data dir has room, then scan again.",
                details={"component": "staging"},
            ) from error
        yield stage


def sweep(staging_dir: Path) -> int:
    """How many copies were removed that nobody holds any more: their process was killed. Blocks."""
    gone = 0
    if not staging_dir.is_dir():
        return gone
    with _making(staging_dir):
        for place in staging_dir.glob(f"{_PREFIX}*"):
            with contextlib.suppress(OSError), (place / "lock").open("ab") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _remove(place)
                gone += 1
    return gone


@contextmanager
def _making(staging_dir: Path) -> Generator[None]:
    """While this is held nobody sweeps a place that is made and not yet locked."""
    with (staging_dir / "making.lock").open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextmanager
def _private(staging_dir: Path) -> Generator[Path]:
    try:
        staging_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _making(staging_dir):
            place = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=staging_dir))
            lock = (place / "lock").open("ab")
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise Unavailable(
            "There is no place for the copy that a scan needs.",
            next_step="Check that the data dir can be written, then scan again.",
            details={"component": "staging"},
        ) from error
    try:
        yield place
    finally:
        _remove(place)
        lock.close()


def _remove(place: Path) -> None:
    shutil.rmtree(place, ignore_errors=True)


class _Copying:
    """One walk over a repository, through file descriptors alone: no path of it is ever resolved twice."""

    def __init__(self, stage: Stage, skips: frozenset[str], bounds: Bounds, stopped: Callable[[], bool]) -> None:
        self._stage, self._skips, self._bounds, self._stopped = stage, skips, bounds, stopped
        self._digests: list[tuple[str, bytes]] = []

    def copy(self, root: Path, path: str) -> None:
        at = os.open(root, _FOLDER)
        try:
            for part in filter(None, path.split("/")):
                above, at = at, os.open(part, _FOLDER, dir_fd=at)
                os.close(above)
            self._folder(at, self._stage.source, "", f"{path}/" if path else "", 0)
        finally:
            os.close(at)
        whole = hashlib.sha256()
        for named, digest in sorted(self._digests):
            whole.update(len(named).to_bytes(4, "big") + named.encode() + digest)
        self._stage.revision = whole.hexdigest()

    def _folder(self, at: int, into: Path, copied: str, named: str, depth: int) -> None:
        for name in sorted(os.listdir(at)):
            if self._stopped():
                raise InterruptedError
            try:
                mode = os.stat(name, dir_fd=at, follow_symlinks=False).st_mode
            except OSError:
                self._skip("unreadable")
                continue
            if reason := self._reason(name, mode):
                self._skip(reason)
                continue
            plain = staged_name(name)
            if (into / plain).exists():
                plain = f"{plain}~{self._stage.files}"
            below = (f"{copied}{plain}", f"{named}{shown_name(name)}")
            if stat.S_ISDIR(mode):
                self._below(at, name, into / plain, below, depth)
            elif self._has_room():
                self._file(at, name, into / plain, below)

    def _reason(self, name: str, mode: int) -> str | None:
        if name == ".git":
            return "git"
        if stat.S_ISDIR(mode):
            return "asked" if name in self._skips else None
        if stat.S_ISREG(mode):
            return None
        return "link" if stat.S_ISLNK(mode) else "special"

    def _below(self, at: int, name: str, into: Path, below: tuple[str, str], depth: int) -> None:
        if depth >= self._bounds.depth:
            self._skip("too_deep")
            return
        try:
            inner = os.open(name, _FOLDER, dir_fd=at)
        except OSError:
            self._skip("unreadable")
            return
        try:
            into.mkdir(mode=0o700)
            self._folder(inner, into, f"{below[0]}/", f"{below[1]}/", depth + 1)
        finally:
            os.close(inner)

    def _has_room(self) -> bool:
        if self._stage.files >= self._bounds.files:
            self._skip("too_many_files")
            return False
        return True

    def _file(self, at: int, name: str, into: Path, below: tuple[str, str]) -> None:
        copied, named = below
        try:
            source = os.open(name, _FILE, dir_fd=at)
        except OSError:
            self._skip("unreadable")
            return
        with os.fdopen(source, "rb", buffering=0) as file:
            found = os.fstat(source)
            if not stat.S_ISREG(found.st_mode):
                self._skip("special")
            elif found.st_size > self._bounds.file_bytes:
                self._skip("too_large")
            elif self._stage.bytes + found.st_size > self._bounds.bytes:
                self._skip("too_much")
            else:
                self._write(file.read(self._bounds.file_bytes), into, copied, named)

    def _write(self, content: bytes, into: Path, copied: str, named: str) -> None:
        # semgrep knows a script without an ending by its first line, if it could be run. Nothing here is.
        script = content.startswith(b"#!")
        target = os.open(into, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o700 if script else 0o600)
        with os.fdopen(target, "wb") as file:
            file.write(content)
        stage = self._stage
        stage.files += 1
        stage.bytes += len(content)
        self._digests.append((named, hashlib.sha256(content).digest()))
        if copied != named:
            stage.renamed[copied] = named

    def _skip(self, reason: str) -> None:
        self._stage.skipped[reason] += 1


def shown_name(name: str) -> str:
    """A file's name as people may be shown it: what cannot be printed is escaped."""
    if name.isprintable():
        return name
    raw = name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else f"\\u{ord(c):04x}" for c in raw)


def staged_name(name: str) -> str:
    """A file's name in the copy: one that every scanner can print, and takes no orders from."""
    plain = shown_name(name).replace("\\", "_")
    if plain != name:
        # Two odd names must not become one.
        plain = f"{hashlib.sha256(os.fsencode(name)).hexdigest()[:8]}-{plain[-80:]}"
    return f"{plain}.staged" if name.lower() in _ORDERS else plain
