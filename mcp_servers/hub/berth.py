"""Owns addresses on this machine: both that `localhost` means, and the one port that a data dir keeps for people's pages."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import socket

from body_broker.settings import Settings
from body_broker.telemetry import get_logger

log = get_logger(__name__)

_HOST, _TWIN = "127.0.0.1", "::1"
_FREE_TRIES = 20
_PORTS_MAX = 65535


class Berth:
    """The place of the listener in a data dir: a port that is kept, and a lock that one process holds.

    Args:
        settings: The data dir, and the database: hubs of two databases in one data dir have a place each.
    """

    def __init__(self, settings: Settings) -> None:
        url = settings.database_url
        which = f"-{hashlib.sha256(url.get_secret_value().encode()).hexdigest()[:12]}" if url else ""
        self._file = settings.data_dir / f"pages{which}.port"
        self._lock = settings.data_dir / f"pages{which}.lock"
        self._held: int | None = None

    def take(self) -> list[socket.socket] | None:
        """The bound listeners, where no other process has the place; blocking.

        Raises:
            OSError: The data dir cannot be written, or nothing can be bound.
        """
        self._lock.parent.mkdir(parents=True, exist_ok=True)
        held = os.open(self._lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            bound = _bind(self._kept())
            self._keep(bound[0].getsockname()[1])
        except BlockingIOError:
            os.close(held)
            return None
        except OSError:
            os.close(held)
            raise
        self._held = held
        return bound

    def leave(self) -> None:
        """Let another take the place."""
        if self._held is not None:
            os.close(self._held)
            self._held = None

    def url(self) -> str | None:
        """Where the listener is; None where no living hub has the place: its port may be a stranger's by now. Blocking."""
        port = self._kept() if self._is_taken() else 0
        return f"http://localhost:{port}" if port else None

    def _is_taken(self) -> bool:
        try:
            probe = os.open(self._lock, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            fcntl.flock(probe, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(probe)
        return False

    def _kept(self) -> int:
        try:
            text = self._file.read_text("ascii").strip()
        except (OSError, UnicodeDecodeError):
            return 0
        return int(text) if text.isdigit() and 0 < int(text) <= _PORTS_MAX else 0

    def _keep(self, port: int) -> None:
        draft = self._file.with_name(f"{self._file.name}.new")
        draft.write_text(f"{port}\n", "ascii")
        draft.replace(self._file)


def _bind(port: int) -> list[socket.socket]:
    """The listeners at this port; at another one where a stranger has it, or none was kept."""
    try:
        return bind_localhost(_HOST, port)
    except OSError:
        if port == 0:
            raise
        log.warning("pages_moved_to_another_port", port=port)
        return bind_localhost(_HOST, 0)


def bind_localhost(host: str, port: int) -> list[socket.socket]:
    """Listeners at this address and, with the same port, at the other one that `localhost` means.

    Browsers try [::1] before 127.0.0.1: whoever else had the port there would get the people who follow our links, and their cookies.

    Args:
        host: 127.0.0.1, ::1, or every address of IPv4.
        port: 0 takes one that is free at both.

    Raises:
        OSError: One of them cannot be listened on, though this machine has it.
    """
    twin = _HOST if ":" in host else _TWIN
    for left in range(_FREE_TRIES if port == 0 else 1, 0, -1):
        bound = listen_at(host, port)
        try:
            other = listen_at(twin, bound.getsockname()[1]) if _has(twin) else None
        except OSError:
            bound.close()
            if left == 1:
                raise
            continue
        return [bound] if other is None else [bound, other]
    raise AssertionError("the last try returns or raises")


def _has(host: str) -> bool:
    """Whether this machine has the address at all."""
    try:
        listen_at(host, 0).close()
    except OSError as error:
        if error.errno in {errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT}:
            return False
        raise
    return True


def listen_at(host: str, port: int) -> socket.socket:
    """A listener at this address alone.

    Raises:
        OSError: It cannot be.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    found = socket.socket(family, socket.SOCK_STREAM)
    try:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if host == _TWIN:
            found.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        found.bind((host, port))
    except OSError:
        found.close()
        raise
    found.set_inheritable(False)
    return found
