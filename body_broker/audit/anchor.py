"""Owns the anchor: the checkpoints' chain, copied line by line to a file outside the database. Nothing here blocks the loop."""

from __future__ import annotations

import asyncio
import fcntl
import os
from collections.abc import AsyncIterator, Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import orjson

from body_broker.audit.checkpoints import Checkpoint, checkpoint
from body_broker.errors import Conflict, Unavailable
from body_broker.storage.postgres import Pool

_PAGE_BYTES = 1 << 20
_TAIL_BYTES = 1 << 16
_MORE = "SELECT number, mac, body FROM audit_checkpoint WHERE number > $1::bigint ORDER BY number LIMIT 200"
_MAC_AT = "SELECT mac FROM audit_checkpoint WHERE number = $1::bigint"


class Line(NamedTuple):
    """One checkpoint as the file has it."""

    number: int
    mac: bytes
    body: str


async def write_anchor(pool: Pool, key: bytes, file: Path) -> Checkpoint:
    """Make a checkpoint, append to the file every checkpoint it lacks, and return the newest.

    The file is made with mode 0600; each append is one write under a lock, on the disk when this returns. Any number of
    processes may share it.

    Raises:
        Conflict: The file does not end in a checkpoint of this database: one of the two was tampered with, or the database
            was restored from a backup.
        Unavailable: The file cannot be written.
    """
    newest = await checkpoint(pool, key)
    try:
        last = await asyncio.to_thread(_last, file)
        if last is not None and await pool.fetchval(_MAC_AT, last.number) != last.mac:
            raise Conflict(
                "The audit's anchor does not end in a checkpoint of this database.",
                next_step="Run `body-broker audit verify`. If the database was restored, move the anchor file aside first.",
            )
        done = last.number if last else 0
        while rows := await pool.fetch(_MORE, done):
            await asyncio.to_thread(_append, file, [Line(*row) for row in rows])
            done = rows[-1]["number"]
    except OSError as error:
        raise Unavailable("The audit's anchor cannot be written.", details={"component": "audit_anchor"}) from error
    return newest


async def pages(file: Path) -> AsyncIterator[list[tuple[int, Line | None]]]:
    """Every line with its place in the file, counted from 1, a megabyte at a time; None for a line that is not an anchor's.

    Half a line at the end, left by a power cut, is none; the next append removes it.

    Raises:
        OSError: The file cannot be read.
    """
    handle = await asyncio.to_thread(file.open, "rb")
    try:
        place = 0
        while found := await asyncio.to_thread(handle.readlines, _PAGE_BYTES):
            yield [(place + i, _parse(text)) for i, text in enumerate(found, 1) if text.endswith(b"\n")]
            place += len(found)
    finally:
        handle.close()


def _parse(text: bytes) -> Line | None:
    try:
        fields: dict[str, Any] = orjson.loads(text)
        return Line(int(fields["number"]), bytes.fromhex(fields["mac"]), str(fields["body"]))
    except (ValueError, KeyError, TypeError):
        return None


def _last(file: Path) -> Line | None:
    try:
        with _locked(file, os.O_RDONLY) as handle:
            return _last_line(handle)
    except FileNotFoundError:
        return None


def _append(file: Path, wanted: Sequence[Line]) -> None:
    with _locked(file, os.O_RDWR | os.O_CREAT | os.O_APPEND) as handle:
        last = _last_line(handle)
        end = _whole(handle)
        os.ftruncate(handle, end)  # half a line, left by a power cut
        text = b"".join(
            orjson.dumps({"number": line.number, "mac": line.mac.hex(), "body": line.body}) + b"\n"
            for line in wanted
            if last is None or line.number > last.number  # another process may have been here since
        )
        if text and os.write(handle, text) != len(text):
            os.ftruncate(handle, end)
            raise OSError("the disk took half a line")
        os.fsync(handle)
    folder = os.open(file.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


@contextmanager
def _locked(file: Path, flags: int) -> Generator[int]:
    handle = os.open(file, flags | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield handle
    finally:
        os.close(handle)


def _whole(handle: int) -> int:
    """Where the last whole line ends."""
    end = os.fstat(handle).st_size
    while end:
        start = max(0, end - _TAIL_BYTES)
        cut = os.pread(handle, end - start, start).rfind(b"\n")
        if cut >= 0:
            return start + cut + 1
        end = start
    return 0


def _last_line(handle: int) -> Line | None:
    end = _whole(handle)
    start = end - 1
    text = b""
    while start > 0 and b"\n" not in text:
        size = min(_TAIL_BYTES, start)
        start -= size
        text = os.pread(handle, size, start) + text
    if not end:
        return None
    found = _parse(text.rpartition(b"\n")[2])
    if found is None:
        raise Conflict(
            "The audit's anchor ends in a line that is not an anchor's.",
            next_step="Run `body-broker audit verify`, then move the anchor file aside; the next one begins anew.",
        )
    return found
