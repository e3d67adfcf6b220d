"""Owns ports that are chosen before they are bound, for programs that must be told one."""

from __future__ import annotations

import secrets
import socket
from contextlib import suppress

_FIRST, _BEYOND = 10_000, 32_000
"""Below what systems give to connections (32768 and more on Linux): however long it takes, no connection gets it meanwhile."""


def free_port() -> int:
    """A port of 127.0.0.1 that nobody has."""
    while True:
        port = _FIRST + secrets.randbelow(_BEYOND - _FIRST)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
