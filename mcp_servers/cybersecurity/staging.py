"""Owns the place of the copy that scanners see: private, held while it is used, gone afterwards whatever happens."""

from __future__ import annotations

import contextlib
import fcntl
import shutil
import tempfile
from collections.abc import Callable, Collection, Generator
from contextlib import contextmanager
from pathlib import Path

from body_broker.errors import Unavailable
from mcp_servers.cybersecurity.copying import Bounds, Copying, Stage

_PREFIX = "scan-"
BOUNDS = Bounds()


@contextmanager
def staged(
    root: Path,
    path: str,
    staging_dir: Path,
    *,
    skips: Collection[str] = (),
    own: Path | None = None,
    bounds: Bounds = BOUNDS,
    stopped: Callable[[], bool] = lambda: False,
) -> Generator[Stage]:
    """A private copy of a folder, removed on the way out. Blocks.

    Args:
        root: A resolved folder.
        path: What to copy below it; empty is all. No part of it may be a link.
        staging_dir: Where copies lie; made where it is missing. What a killed process left there is removed first.
        skips: Names of folders to leave out, at any depth; the operator's, never the repository's.
        own: The hub's own data dir, left out wherever it lies.
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
            Copying(stage, frozenset(skips), own, bounds, stopped).copy(root, path)
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
