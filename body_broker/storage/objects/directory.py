"""Owns objects in a directory: each is a file that is there whole or not at all, and no key leads out of the directory."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import secrets
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from body_broker.errors import BodyBrokerError, NotConfigured, Unavailable
from body_broker.storage.archive import sync_directory
from body_broker.storage.objects.model import JSON_TYPE, OBJECT_BYTES_MAX, absent, require_key, require_size

_DRAFTS = ".drafts"
"""No key begins with a point. In one folder, so that those of killed writers are found without a walk."""
_DRAFT_MAX_S = 3600.0
_GONE = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP})
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_REFUSED = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})


class DirectoryObjects:
    """Objects as files of this machine, or of a disk that all hubs share.

    Args:
        root: The directory; made where it is not there.
        setting: What names it, for messages.
    """

    def __init__(self, root: Path, *, setting: str) -> None:
        self._root, self._setting = root.absolute(), setting

    async def open(self) -> None:
        """Have the directory, without what writers left that were killed.

        Raises:
            NotConfigured: It cannot be made, or is not ours.
            Unavailable: The disk fails, or is full.
        """
        await self._in_thread(self._open)

    async def put(self, key: str, body: bytes, *, content_type: str = JSON_TYPE) -> None:
        """As `Objects.put`; the type is not kept: a name's ending says it."""
        _ = content_type
        require_size(len(body))
        await self._in_thread(self._put, require_key(key), body)

    async def get(self, key: str) -> bytes:
        """As `Objects.get`."""
        found: bytes | None = await self._in_thread(self._get, require_key(key))
        if found is None:
            raise absent()
        require_size(len(found))
        return found

    async def head(self, key: str) -> int | None:
        """As `Objects.head`."""
        return await self._in_thread(self._head, require_key(key))

    async def drop(self, key: str) -> None:
        """As `Objects.drop`."""
        await self._in_thread(self._drop, require_key(key))

    def _open(self) -> None:
        drafts = self._root / _DRAFTS
        drafts.mkdir(mode=0o700, parents=True, exist_ok=True)
        before = time.time() - _DRAFT_MAX_S  # noqa: TID251 - a file's own time is the machine's
        for left in drafts.iterdir():
            with contextlib.suppress(FileNotFoundError):
                if left.stat().st_mtime < before:
                    left.unlink()

    def _put(self, key: str, body: bytes) -> None:
        file = self._file(key)
        if not file.parent.is_dir():
            file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            sync_directory(file.parent.parent)
        draft = self._root / _DRAFTS / secrets.token_hex(12)
        draft.parent.mkdir(mode=0o700, exist_ok=True)
        try:
            with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb") as out:
                out.write(body)
                out.flush()
                os.fsync(out.fileno())
            draft.replace(file)
        finally:
            draft.unlink(missing_ok=True)
        sync_directory(file.parent)

    def _get(self, key: str) -> bytes | None:
        try:
            handle = os.open(self._file(key), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            if error.errno in _GONE:
                return None
            raise
        try:
            if not stat.S_ISREG(os.fstat(handle).st_mode):
                return None
            with os.fdopen(handle, "rb", closefd=False) as opened:
                return opened.read(OBJECT_BYTES_MAX + 1)
        finally:
            os.close(handle)

    def _head(self, key: str) -> int | None:
        try:
            found = self._file(key).lstat()
        except OSError as error:
            if error.errno in _GONE:
                return None
            raise
        return found.st_size if stat.S_ISREG(found.st_mode) else None

    def _drop(self, key: str) -> None:
        file = self._file(key)
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            if not stat.S_ISDIR(file.lstat().st_mode):
                file.unlink()

    def _file(self, key: str) -> Path:
        """Where a key's file is; a folder that somebody has replaced by a link to elsewhere is not followed."""
        file = self._root / key
        if not file.parent.resolve().is_relative_to(self._root.resolve()):
            raise NotConfigured(
                f"A folder in the directory of {self._setting} is a link that leads out of it.",
                next_step="Remove the link; to keep objects elsewhere, name the other directory in the setting.",
                details={"setting": self._setting},
            )
        return file

    async def _in_thread(self, function: Callable[..., Any], *arguments: object) -> Any:  # what the function gives
        try:
            return await asyncio.to_thread(function, *arguments)
        except OSError as error:
            raise self._told(error) from error

    def _told(self, error: OSError) -> BodyBrokerError:
        if error.errno in _REFUSED:
            return NotConfigured(
                f"The directory of {self._setting} refuses this hub's user.",
                next_step="Make it a directory that the user of this process may read and write.",
                details={"setting": self._setting},
            )
        if error.errno in _GONE | {errno.EEXIST, errno.EISDIR}:
            return NotConfigured(
                f"The directory of {self._setting} is not there, or a file is in the way.",
                next_step="Make it a directory that the user of this process may read and write.",
                details={"setting": self._setting},
            )
        full = error.errno in _FULL
        return Unavailable(
            f"The disk of {self._setting} is full." if full else f"The disk of {self._setting} does not answer.",
            next_step="Make room on it." if full else "Look after the disk; the log has the cause.",
            details={"component": "objects"},
        )
