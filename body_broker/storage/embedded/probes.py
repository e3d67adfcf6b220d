"""Owns the question whether a server answers now: one exchange in its own protocol over its socket, stdlib only."""

from __future__ import annotations

import socket
import struct
from pathlib import Path

from body_broker.storage.embedded.layout import POSTGRES_SOCKET, VALKEY_SOCKET

_WAIT_S = 2.0
_STARTUP = b"user\0postgres\0database\0postgres\0\0"
_PROTOCOL = 3 << 16


def postgres_answers(sockets: Path) -> bool:
    """Whether PostgreSQL accepts a connection; one that starts, recovers or stops does not."""
    hello = struct.pack("!ii", 8 + len(_STARTUP), _PROTOCOL) + _STARTUP
    # "R": authentication; the terminating message spares the server a line about a lost client.
    return _exchange(sockets / POSTGRES_SOCKET, hello, b"R", farewell=b"X\0\0\0\4")


def valkey_answers(sockets: Path) -> bool:
    """Whether Valkey answers PING; one that still loads its file does not."""
    return _exchange(sockets / VALKEY_SOCKET, b"PING\r\n", b"+PONG")


def _exchange(path: Path, say: bytes, expect: bytes, farewell: bytes = b"") -> bool:
    with socket.socket(socket.AF_UNIX) as wire:
        wire.settimeout(_WAIT_S)
        try:
            wire.connect(str(path))
            wire.sendall(say)
            heard = wire.recv(len(expect))
            wire.sendall(farewell)
        except OSError:
            return False
    return heard == expect
