"""Owns the form of a backup: one tar of few known members, the last of them a manifest with the digest of each of the others."""

from __future__ import annotations

import fcntl
import gzip
import hashlib
import io
import json
import os
import secrets
import tarfile
import zlib
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from body_broker.errors import BadInput, Conflict, Unavailable

DUMP, ROOT_KEY, ANCHOR, MANIFEST = "postgres.dump", "root.key", "audit-anchor.jsonl.gz", "manifest.json"
FORMAT = 1
CHUNK_BYTES = 1 << 20
_BLOCK = tarfile.BLOCKSIZE
_MANIFEST_BYTES_MAX = 1 << 20
_NAMES = frozenset({DUMP, ROOT_KEY, ANCHOR})

Progress = Callable[[str, int, int | None], None]
"""What is being done, bytes done, bytes in all where that is known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What a backup says of itself.

    Attributes:
        program: The version of body-broker that made it.
        schema: The number of the newest migration in it.
        postgres: The major version of the server it was dumped from.
        taken_at: When, ISO 8601 in UTC, by the database's clock.
        key: The fingerprint of the root key that its contents need; the key itself may be a member.
    """

    program: str
    schema: int
    postgres: int
    taken_at: str
    key: str


@dataclass(frozen=True, slots=True)
class Member:
    """One file inside: where its bytes begin, how many they are, their SHA-256 in hex."""

    start: int
    size: int
    sha256: str


class Writer:
    """A backup that is being written, member by member, each streamed once."""

    def __init__(self, handle: IO[bytes]) -> None:
        self._handle = handle
        self._members: dict[str, dict[str, Any]] = {}  # Any: goes into JSON

    @contextmanager
    def member(self, name: str) -> Generator[Sink]:
        """What is written into the sink becomes the member."""
        header = self._handle.tell()
        self._handle.write(bytes(_BLOCK))  # its size is known when it is there
        sink = Sink(self._handle)
        yield sink
        self._handle.write(bytes(-sink.size % _BLOCK))
        self._handle.seek(header)
        self._handle.write(_header(name, sink.size))
        self._handle.seek(0, os.SEEK_END)
        self._members[name] = {"bytes": sink.size, "sha256": sink.digest.hexdigest()}

    def add(self, name: str, content: bytes) -> None:
        """A member of bytes that are at hand."""
        with self.member(name) as sink:
            sink.write(content)

    def add_compressed(self, name: str, file: IO[bytes], size: int) -> None:
        """A member of the first bytes of a file, through gzip."""
        with self.member(name) as sink, gzip.GzipFile("", "wb", fileobj=sink, mtime=0) as packed:
            while size and (found := file.read(min(CHUNK_BYTES, size))):
                packed.write(found)
                size -= len(found)

    def finish(self, facts: Facts) -> None:
        """The manifest, and the end of the tar: without both the file is no backup."""
        text = json.dumps({"format": FORMAT, **asdict(facts), "members": self._members}, indent=1)
        self.add(MANIFEST, text.encode())
        self._handle.write(bytes(2 * _BLOCK))


class Sink(io.RawIOBase):
    """What counts and digests the bytes of one member on their way."""

    def __init__(self, handle: IO[bytes]) -> None:
        self.size = 0
        self.digest = hashlib.sha256()
        self._handle = handle

    def writable(self) -> bool:
        """True."""
        return True

    def write(self, data: Any) -> int:  # Any: whatever has a buffer, as io has it
        """All of it is taken."""
        self._handle.write(data)
        self.digest.update(data)
        self.size += len(data)
        return len(data)


@dataclass(frozen=True, slots=True)
class Archive:
    """A backup that was read through once: every digest in it fits."""

    facts: Facts
    members: Mapping[str, Member]
    handle: IO[bytes]

    def copy(self, name: str, target: Callable[[bytes], object], progress: Callable[[int, int], None]) -> None:
        """Hand a member's bytes on, in pieces."""
        member = self.members[name]
        self.handle.seek(member.start)
        left = member.size
        while left:
            found = self.handle.read(min(CHUNK_BYTES, left))
            target(found)
            left -= len(found)
            progress(member.size - left, member.size)

    def read(self, name: str) -> bytes:
        """A small member, whole."""
        parts: list[bytes] = []
        self.copy(name, parts.append, lambda _done, _total: None)
        return b"".join(parts)

    def unpack(self, name: str, target: IO[bytes]) -> None:
        """A member that went through gzip, as it was."""
        unpacking = zlib.decompressobj(wbits=31)  # GzipFile would read on into what follows the member
        self.copy(name, lambda part: target.write(unpacking.decompress(part)), lambda _done, _total: None)
        target.write(unpacking.flush())


@contextmanager
def new_file(file: Path, *, force: bool) -> Generator[IO[bytes]]:
    """A file of this user alone that appears under its name when it is whole and on the disk, or never.

    It is written beside its name; what a killed process left there is removed by the next one.

    Args:
        file: Where it goes.
        force: Replace a file that is there.

    Raises:
        Conflict: There is one, and it is not to be replaced.
        Unavailable: It cannot be written.
    """
    if not force and os.path.lexists(file):
        raise _there_is_one()
    _sweep(file)
    draft = file.with_name(f".{file.name}.{secrets.token_hex(6)}.partial")
    try:
        with os.fdopen(os.open(draft, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "w+b") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX)  # whoever sweeps sees that it is alive
            try:
                yield handle
                handle.flush()
                os.fsync(handle.fileno())
                draft.replace(file) if force else os.link(draft, file)
            finally:
                draft.unlink(missing_ok=True)
        sync_directory(file.parent)
    except FileExistsError as error:
        raise _there_is_one() from error
    except OSError as error:
        raise Unavailable(
            "The backup cannot be written.",
            next_step="Name a file in a folder of yours, on a disk with room.",
            details={"component": "backup"},
        ) from error


def sync_directory(folder: Path) -> None:
    """Names that were given in the folder survive a power cut from here on."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def open_archive(file: Path, progress: Progress) -> Generator[Archive]:
    """A backup, read through: it is whole, and every member has the digest that the manifest gives it.

    Raises:
        BadInput: It is no backup, is cut off or was changed, or a newer program made it.
        Unavailable: It cannot be read.
    """
    try:
        handle = file.open("rb")
    except OSError as error:
        raise Unavailable("The backup cannot be read.", details={"component": "backup"}) from error
    with handle:
        try:
            found = _checked(handle, os.fstat(handle.fileno()).st_size, progress)
        except (tarfile.TarError, ValueError) as error:  # ValueError: a name or a number that no tar of ours has
            raise _no_backup() from error
        except OSError as error:
            raise Unavailable("The backup cannot be read.", details={"component": "backup"}) from error
        yield found


def _checked(handle: IO[bytes], size: int, progress: Progress) -> Archive:
    found = _entries(handle, size)
    manifest = found.pop(MANIFEST, None)
    if manifest is None:
        raise _cut_off() if found else _no_backup()
    written = _manifest(handle, manifest)
    members: dict[str, Member] = {}
    listed: Mapping[str, Any] = written["members"]  # Any: JSON; each value is compared with what is there
    if set(listed) != set(found) or DUMP not in found:
        raise _changed()
    done, total = 0, sum(entry.size for entry in found.values())
    for name, entry in found.items():
        digest = hashlib.sha256()
        handle.seek(entry.offset_data)
        left = entry.size
        while left:
            part = handle.read(min(CHUNK_BYTES, left))
            if not part:
                raise _cut_off()
            digest.update(part)
            left -= len(part)
            done += len(part)
            progress("checking", done, total)
        if listed[name] != {"bytes": entry.size, "sha256": digest.hexdigest()}:
            raise _changed()
        members[name] = Member(entry.offset_data, entry.size, digest.hexdigest())
    return Archive(written["facts"], members, handle)


def _entries(handle: IO[bytes], size: int) -> dict[str, tarfile.TarInfo]:
    found: dict[str, tarfile.TarInfo] = {}
    end = 0
    while True:
        handle.seek(end)
        block = handle.read(_BLOCK)
        if block == bytes(_BLOCK):  # the end as it was written: two of them, and nothing after
            rest = handle.read(_BLOCK + 1)
            if rest == bytes(_BLOCK):
                return found
            raise _cut_off() if len(rest) < _BLOCK and found else _no_backup()
        if len(block) < _BLOCK:
            raise _cut_off() if found else _no_backup()
        entry = tarfile.TarInfo.frombuf(block, "ascii", "strict")
        entry.offset_data = end + _BLOCK
        if entry.name in found or entry.name not in _NAMES | {MANIFEST} or not entry.isreg() or MANIFEST in found:
            raise _no_backup()
        end = entry.offset_data + entry.size + -entry.size % _BLOCK
        if end > size:
            raise _cut_off()
        found[entry.name] = entry


def _manifest(handle: IO[bytes], entry: tarfile.TarInfo) -> dict[str, Any]:  # Any: JSON beside our Facts
    if entry.size > _MANIFEST_BYTES_MAX:
        raise _no_backup()
    handle.seek(entry.offset_data)
    try:
        fields: dict[str, Any] = json.loads(handle.read(entry.size))
        form, members = fields.pop("format"), fields.pop("members")
        if isinstance(form, int) and form > FORMAT:
            raise BadInput(
                "A newer version of body-broker made this backup.",
                next_step="Restore it with that version, or a later one.",
            )
        numbers = (form, fields["schema"], fields["postgres"])
        texts = (fields["program"], fields["taken_at"], fields["key"])
        fits = all(isinstance(n, int) for n in numbers) and all(isinstance(t, str) for t in texts)
        if not (fits and form == FORMAT and isinstance(members, dict)):
            raise _changed()
        return {"facts": Facts(**fields), "members": members}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise _changed() from error


def _header(name: str, size: int) -> bytes:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = size, 0o600
    return entry.tobuf(tarfile.GNU_FORMAT)  # one block, whatever the size


def _sweep(file: Path) -> None:
    for left in file.parent.glob(f".{file.name}.*.partial"):
        with suppress(OSError), left.open("rb") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)  # one that is being written is held
            left.unlink()


def _there_is_one() -> Conflict:
    return Conflict("There is a file of that name.", next_step="Name another one, or pass --force to replace it.")


def _no_backup() -> BadInput:
    return BadInput("This file is no backup of body-broker.", next_step="Name a file that `body-broker backup` wrote.")


def _cut_off() -> BadInput:
    return BadInput("The backup is cut off: its end is missing.", next_step="Copy it again from where it was made.")


def _changed() -> BadInput:
    return BadInput(
        "The backup was changed or damaged: its digests do not fit.", next_step="Copy it again, or take another one."
    )
