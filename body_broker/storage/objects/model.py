"""Owns the words of objects: what a store of them does, which keys there are, and how large one may be."""

from __future__ import annotations

import re
import secrets
from typing import Protocol

from body_broker.errors import InternalError, NotFound, TooLarge

OBJECT_BYTES_MAX = 16 * 1024 * 1024
"""No more is put, and none larger is read: whatever lies there was then not put by us."""
JSON_TYPE = "application/json"

_KEY = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*(/[A-Za-z0-9_][A-Za-z0-9_.-]*)*")
_KEY_CHARACTERS_MAX = 512


class Objects(Protocol):
    """Bytes under keys such as `narrative/job_1.json`. Each call is whole or nothing, and may be repeated.

    A key is one or more names between slashes; a name has letters, digits, `_`, `-` and `.`, and begins with a letter, a digit or
    `_`. What no key can be is an error of ours.
    """

    async def put(self, key: str, body: bytes, *, content_type: str = JSON_TYPE) -> None:
        """Have these bytes under the key, whatever was there before; readers see the old ones or the new ones, whole.

        Raises:
            TooLarge: They are more than 16 MiB.
            NotConfigured: The place is not there, or this hub may not write to it, or has no credentials that hold.
            Unavailable: It cannot be reached, is too slow, or is full.
        """
        ...

    async def get(self, key: str) -> bytes:
        """The bytes under the key.

        Raises:
            NotFound: There are none.
            TooLarge: They are more than 16 MiB.
            NotConfigured: The place is not there, or this hub may not read it, or has no credentials that hold.
            Unavailable: It cannot be reached, or is too slow.
        """
        ...

    async def head(self, key: str) -> int | None:
        """How many bytes there are under the key; None where there are none.

        Raises:
            NotConfigured: As with `get`.
            Unavailable: As with `get`.
        """
        ...

    async def drop(self, key: str) -> None:
        """Have nothing under the key.

        Raises:
            NotConfigured: The place is not there, or this hub may not delete in it.
            Unavailable: It cannot be reached, or is too slow.
        """
        ...


async def check(objects: Objects) -> None:
    """Put, look at, read and drop an object under a key of its own: whether a place can be used as it is set up.

    Raises:
        NotConfigured: It cannot; the message says why, and what to do.
        Unavailable: It cannot be reached.
        InternalError: It gives back something else than it was given.
    """
    key, written = f"check/{secrets.token_hex(8)}.json", b'{"check": "body-broker"}'
    await objects.put(key, written)
    if await objects.head(key) != len(written) or await objects.get(key) != written:
        raise InternalError(
            "The place for objects gives back something else than it was given.",
            next_step="Use a directory of this machine, Amazon S3, or another server that keeps to its interface.",
        )
    await objects.drop(key)


def require_key(key: str) -> str:
    """The key, where it is one.

    Raises:
        InternalError: It is none.
    """
    if len(key) > _KEY_CHARACTERS_MAX or not _KEY.fullmatch(key):
        raise InternalError("That is no key of an object.")
    return key


def require_size(size: int) -> None:
    """Nothing, where so many bytes may be an object.

    Raises:
        TooLarge: They may not.
    """
    if size > OBJECT_BYTES_MAX:
        raise TooLarge(f"The object has {size} bytes; {OBJECT_BYTES_MAX} are the limit.")


def absent() -> NotFound:
    """What is said where nothing is under a key."""
    return NotFound("There is no object by that key.")
