"""Owns the arithmetic of a chain: which bytes a MAC covers, where a chain begins, how it grows. No store, no clock."""

from __future__ import annotations

import hashlib
import hmac
from functools import lru_cache

KEY_BYTES = 32


def key_id(key: bytes) -> str:
    """The first 8 hex digits of the key's SHA-256: enough to say which key, nothing about it."""
    return hashlib.sha256(key).hexdigest()[:8]


def genesis(key: bytes, name: str, number: int) -> bytes:
    """What the first record of a chain is linked to: binds the chain to its name, its number and the key's epoch."""
    return hmac.digest(
        key, b"body-broker audit 1\0%b\0%d\0%b" % (name.encode(), number, key_id(key).encode()), "sha256"
    )


def link(key: bytes, name: str, previous: bytes, sequence: int, body: bytes) -> bytes:
    """The MAC of one record: HMAC-SHA256 over the MAC before it, its sequence number, its chain's name and its body.

    The first two have a fixed length and a name holds no NUL, so no two records give the same bytes.
    """
    mac = _keyed(key).copy()
    mac.update(b"".join((previous, sequence.to_bytes(8, "big"), name.encode(), b"\0", body)))
    return mac.digest()


@lru_cache(maxsize=4)
def _keyed(key: bytes) -> hmac.HMAC:
    # Preparing the key is a third of the cost of a MAC, and a process has one.
    return hmac.new(key, digestmod="sha256")


class Chain:
    """A growing chain; whoever holds it is its only writer.

    Args:
        key: 32 bytes.
        name: The chain's name, without NUL.
        number: The chain's number in the registry.
    """

    __slots__ = ("_key", "mac", "name", "number", "sequence")

    def __init__(self, key: bytes, name: str, number: int) -> None:
        assert len(key) == KEY_BYTES, "the audit key has 32 bytes"
        self._key = key
        self.name = name
        self.number = number
        self.sequence = 0
        self.mac = genesis(key, name, number)

    def extend(self, body: bytes) -> bytes:
        """Append one record and return its MAC."""
        self.sequence += 1
        self.mac = link(self._key, self.name, self.mac, self.sequence, body)
        return self.mac
