"""Owns what a backup is made of and how a data directory is made from one: PostgreSQL's own dump, the root key, the anchor.

Valkey's state is not in it. Limits and announcements are of the moment; a session's state may only make it less trusted, and
what a session read after the dump would be missing from any copy: whoever restores counts every session as tainted instead.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
import subprocess
import tempfile
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from body_broker.errors import Conflict, StoreStartError, Unavailable
from body_broker.storage import embedded
from body_broker.storage.archive import (
    ANCHOR,
    CHUNK_BYTES,
    DUMP,
    ROOT_KEY,
    Archive,
    Facts,
    Progress,
    Writer,
    sync_directory,
)
from body_broker.storage.embedded.binaries import postgres_programs
from body_broker.storage.embedded.layout import Layout
from body_broker.telemetry import get_logger

KEY_FILE = Path("secrets") / "root.key"
ANCHOR_FILE = Path("audit-anchor.jsonl")
_KEEPER_ENDS_S = 60.0
_POLL_S = 0.02
_SAID_BYTES_MAX = 4000
_log = get_logger(__name__)


def write_backup(
    handle: IO[bytes], database_url: str, facts: Facts, *, root_key: Path | None, anchor: Path, progress: Progress
) -> None:
    """Write a backup; blocks for as long as it takes, while everybody goes on working.

    The anchor comes before the dump: every checkpoint it names is committed by then, so that the database of the backup is never
    older than its anchor, and the audit holds after a restore.

    Args:
        handle: Writable and seekable.
        database_url: The database, at one moment.
        facts: What the manifest says.
        root_key: The file of the root key; None where the key is a setting.
        anchor: The audit's anchor, which need not be there.
        progress: Told now and then.

    Raises:
        StoreStartError: PostgreSQL's dump failed; the log has its words.
        OSError: A file cannot be read or written.
    """
    writer = Writer(handle)
    if root_key is not None:
        writer.add(ROOT_KEY, root_key.read_bytes())
    with suppress(FileNotFoundError), anchor.open("rb") as lines:
        writer.add_compressed(ANCHOR, lines, os.fstat(lines.fileno()).st_size)
    with writer.member(DUMP) as sink, _program("pg_dump", "--format=custom", f"--dbname={database_url}") as dumping:
        assert dumping.stdout
        while found := dumping.stdout.read(CHUNK_BYTES):
            sink.write(found)
            progress("dumping", sink.size, None)
    writer.finish(facts)


def load_dump(archive: Archive, database_url: str, progress: Progress) -> None:
    """Load a backup's dump into an empty database, all of it or nothing; blocks.

    Raises:
        StoreStartError: PostgreSQL did not take it; the log has its words.
    """
    with _program("pg_restore", "--single-transaction", "--no-owner", f"--dbname={database_url}") as loading:
        assert loading.stdin
        with suppress(BrokenPipeError):  # it ended early, and its exit code says so
            archive.copy(DUMP, loading.stdin.write, lambda done, total: progress("loading", done, total))


def put_files(archive: Archive, place: Path) -> None:
    """The root key and the anchor of a backup, as files of this user alone in a data directory that is being made."""
    if ROOT_KEY in archive.members:
        (place / KEY_FILE.parent).mkdir(mode=0o700)
        with _private(place / KEY_FILE) as file:
            file.write(archive.read(ROOT_KEY))
    if ANCHOR in archive.members:
        with _private(place / ANCHOR_FILE) as file:
            archive.unpack(ANCHOR, file)


@contextmanager
def new_data_dir(data_dir: Path) -> Generator[Path]:
    """A folder beside the data directory that takes its name when all went well, and else is gone.

    What a killed process left there is removed first. The stores in it are stopped before it gets its name.

    Raises:
        Conflict: The data directory holds something, or somebody restores into it just now.
        Unavailable: The folder cannot be made, or cannot be given the name.
    """
    target = data_dir.expanduser().resolve()
    refuse_used(target)
    place = target.with_name(f".{target.name}.restoring")
    try:
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _locked(place):
            try:
                yield place
                _await_keeper(place)
                refuse_used(target)
                place.rename(target)  # over an empty directory, or to where none is
            finally:
                _remove(place)
        for folder in (target, target.parent):
            sync_directory(folder)
    except OSError as error:
        raise Unavailable(
            "The data directory cannot be made.",
            next_step="Name one inside a folder of yours: --data-dir. A mount point cannot be replaced, a folder inside it can.",
            details={"component": "restore"},
        ) from error


def refuse_used(data_dir: Path) -> None:
    """Return where the data directory does not exist or is empty.

    Raises:
        Conflict: It holds something.
    """
    if os.path.lexists(data_dir) and not (data_dir.is_dir() and not any(data_dir.iterdir())):
        raise Conflict(
            "The data directory holds something already.",
            next_step="Restore into one that is empty or does not exist: --data-dir. Nothing was touched.",
        )


@contextmanager
def embedded_postgres(data_dir: Path) -> Generator[str]:
    """The URL of a data directory's PostgreSQL, without its Valkey."""
    urls = embedded.start(data_dir, valkey=False)
    try:
        yield urls.database_url
    finally:
        embedded.release(data_dir)


@contextmanager
def _program(name: str, *arguments: str) -> Generator[subprocess.Popen[bytes]]:
    """A program of PostgreSQL with pipes; ended with us, and its exit code is looked at.

    Raises:
        StoreStartError: It failed.
    """
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(  # noqa: S603  # a program of our own wheel
            [postgres_programs() / name, "--no-password", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=said,
            env={},  # libpq's own variables would lead it elsewhere
        )
        try:
            yield process
            if process.stdin:
                with suppress(BrokenPipeError):
                    process.stdin.close()
            code = process.wait()
        finally:
            process.kill()  # no more than a no-op where it has ended
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe:
                    with suppress(BrokenPipeError):
                        pipe.close()
        if code:
            said.seek(0)
            _log.error(
                "postgres_program_failed", program=name, said=said.read(_SAID_BYTES_MAX).decode(errors="replace")
            )
            raise StoreStartError(f"PostgreSQL's {name} failed.", next_step="The log has its own words.")


@contextmanager
def _locked(place: Path) -> Generator[None]:
    """The folder, empty and ours, for as long as this lasts."""
    place.mkdir(mode=0o700, exist_ok=True)
    handle = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        found = os.fstat(handle)
        if found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) & 0o077:
            raise PermissionError("the folder is not ours alone")
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise Conflict("Somebody restores into this data directory just now.") from error
        _await_keeper(place)
        for left in place.iterdir():
            shutil.rmtree(left) if left.is_dir() and not left.is_symlink() else left.unlink()
        yield
    finally:
        os.close(handle)


def _await_keeper(place: Path) -> None:
    """Until the servers of the folder, which nobody uses any more, have ended."""
    deadline = time.monotonic() + _KEEPER_ENDS_S
    while (left := embedded.status(place)).keeper_pid or left.postgres_pid:
        if time.monotonic() > deadline:
            raise StoreStartError("The embedded stores of the new data directory do not end.")
        time.sleep(_POLL_S)


def _remove(place: Path) -> None:
    if place.exists():  # else it has its name
        with suppress(StoreStartError):
            _await_keeper(place)
        shutil.rmtree(place, ignore_errors=True)
    with suppress(OSError):  # it lay inside, or was never made
        Layout(place).sockets.rmdir()


@contextmanager
def _private(file: Path) -> Generator[IO[bytes]]:
    with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb") as handle:
        yield handle
        handle.flush()
        os.fsync(handle.fileno())
