"""Owns the root key: where it comes from, and the keys derived from it for one purpose each."""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
from pathlib import Path

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from body_broker.errors import SettingsError
from body_broker.settings import Settings

_FILE = "root.key"
_BYTES = 32


class Secrets:
    """The root key, kept inside; only derived keys come out.

    Args:
        root: At least 32 bytes nobody can guess.
    """

    __slots__ = ("_root",)

    def __init__(self, root: bytes) -> None:
        assert len(root) >= _BYTES, "a root key has at least 32 bytes"
        self._root = root

    @classmethod
    def load(cls, settings: Settings) -> Secrets:
        """The secrets of this installation; blocking, so call it before the event loop or in a thread.

        The root is `secret_key`, else a file in the data dir that the first of several starting hubs creates.

        Raises:
            SettingsError: The file can be read by others, is not ours, is damaged or cannot be made; or hubs share a
                database and no `secret_key` is set.
        """
        if settings.secret_key is not None:
            return cls(settings.secret_key.get_secret_value().encode())
        if not settings.embedded:
            raise SettingsError(
                "BODY_BROKER_SECRET_KEY is missing: hubs that share a database must share it.",
                next_step="Set it to at least 32 random characters, the same for every hub and worker.",
            )
        try:
            return cls(_kept(settings.data_dir / "secrets"))
        except OSError as error:
            raise SettingsError(
                "The root key in the data dir cannot be read or made.",
                next_step="Make the data dir writable for this user, or set BODY_BROKER_SECRET_KEY.",
            ) from error

    def derive(self, purpose: str) -> bytes:
        """32 bytes for one purpose (`audit`, `cursors`, `signing-keys`), the same in every process with this root."""
        return HKDF(SHA256(), 32, salt=None, info=b"body-broker " + purpose.encode()).derive(self._root)


def _kept(folder: Path) -> bytes:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    file = folder / _FILE
    if not file.exists():
        _create(file)
    return _read(file)


def _create(file: Path) -> None:
    # Written whole under another name, then linked: of several hubs starting at once exactly one link succeeds, and nobody
    # ever reads half a key.
    draft = file.with_name(f"{file.name}.{secrets.token_hex(8)}")
    handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(handle, "wb") as out:
            out.write(secrets.token_bytes(_BYTES).hex().encode())
            out.flush()
            os.fsync(out.fileno())
        with contextlib.suppress(FileExistsError):
            os.link(draft, file)
    finally:
        draft.unlink()


def _read(file: Path) -> bytes:
    handle = os.open(file, os.O_RDONLY | os.O_NOFOLLOW)
    with os.fdopen(handle, "rb") as opened:
        found = os.fstat(opened.fileno())
        if not stat.S_ISREG(found.st_mode) or found.st_mode & 0o077 or found.st_uid != os.geteuid():
            raise SettingsError(
                f"The root key (secrets/{file.name} in the data dir) can be read by others.",
                next_step="Make it a file of this user with `chmod 600`; if others may have read it, remove it and issue tokens anew.",
            )
        text = opened.read(2 * _BYTES + 1)
    try:
        root = bytes.fromhex(text.decode("ascii"))
    except ValueError as error:
        raise _damaged(file) from error
    if len(root) != _BYTES:
        raise _damaged(file)
    return root


def _damaged(file: Path) -> SettingsError:
    return SettingsError(
        f"The root key (secrets/{file.name} in the data dir) is damaged.",
        next_step="Restore it from a backup; without it signing keys and the audit chain cannot be checked.",
    )
