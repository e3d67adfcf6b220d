"""Owns where the embedded stores keep what is theirs: data, logs, locks, and the private directory of their sockets."""

from __future__ import annotations

import hashlib
import os
import stat
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from body_broker.errors import StoreStartError

POSTGRES, VALKEY = "postgres", "valkey"
PORT = 5432  # part of the socket's name; nothing listens on it
POSTGRES_SOCKET = f".s.PGSQL.{PORT}"
VALKEY_SOCKET = "valkey.sock"
# The shortest sun_path there is (macOS: 104 bytes with the closing zero), less the longer of the two names.
_SOCKET_DIR_BYTES_MAX = 103 - len(f"/{POSTGRES_SOCKET}")
_LOG_BYTES_MAX = 1024 * 1024


@dataclass(frozen=True, slots=True)
class StoreUrls:
    """Where the embedded stores answer; a URL of a server that was not asked for leads nowhere."""

    database_url: str
    redis_url: str


class Layout:
    """The files of one data directory's stores; all of them lie in its folder `stores`."""

    def __init__(self, data_dir: Path) -> None:
        root = data_dir.expanduser().resolve() / "stores"
        self.root = root
        self.users_lock = root / "users.lock"  # shared by every user, exclusive for the keeper that stops
        self.start_lock = root / "start.lock"  # one starter at a time
        self.servers_lock = root / "servers.lock"  # held by a keeper and, inherited, by every process of its servers
        self.status = root / "keeper.json"
        self.postgres = root / "postgres"
        self.valkey = root / "valkey"
        self.sockets = self._sockets()

    def _sockets(self) -> Path:
        # PostgreSQL and asyncpg read a list at commas; a socket's address is short.
        near = self.root / "run"
        text = str(near)
        if len(os.fsencode(text)) <= _SOCKET_DIR_BYTES_MAX and text.isprintable() and not {",", '"'} & set(text):
            return near
        # A fixed place: every user of the data directory must find the same one, whatever its environment says.
        name = hashlib.sha256(os.fsencode(text)).hexdigest()[:20]
        return Path("/tmp") / f"body-broker-{os.geteuid()}-{name}"  # noqa: S108  # create() refuses one that is not ours

    @property
    def urls(self) -> StoreUrls:
        """The URLs by which both servers are reached."""
        return StoreUrls(
            f"postgresql://postgres@/postgres?host={quote(str(self.sockets), safe='')}&port={PORT}",
            f"unix://{quote(str(self.sockets / VALKEY_SOCKET))}",
        )

    def create(self) -> None:
        """Make the directories, closed to everybody else.

        Raises:
            StoreStartError: They cannot be made, or the sockets' directory is not ours alone.
        """
        try:
            self.root.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.root.mkdir(mode=0o700, exist_ok=True)
            with suppress(FileExistsError):
                self.sockets.mkdir(mode=0o700)
            found = self.sockets.lstat()
        except OSError as error:
            raise StoreStartError(
                "The data directory cannot be used.", next_step="Name one you can write to: --data-dir."
            ) from error
        if found.st_uid != os.geteuid():
            raise StoreStartError(
                "The embedded stores of this data directory belong to another user.",
                next_step="Start as that user, or name another directory: --data-dir.",
            )
        if not stat.S_ISDIR(found.st_mode) or stat.S_IMODE(found.st_mode) & 0o077:
            raise StoreStartError(
                "The directory of the embedded stores' sockets is open to other users.",
                next_step="Take their rights from it (chmod -R go= DIR), or name another data directory: --data-dir.",
            )

    def log(self, name: str) -> Path:
        """The log file of one process."""
        return self.root / f"{name}.log"

    def open_log(self, name: str) -> int:
        """A descriptor that appends to the log; one that has grown past 1 MiB is put aside as `NAME.log.1` first."""
        path = self.log(name)
        with suppress(FileNotFoundError):
            if path.stat().st_size > _LOG_BYTES_MAX:
                path.replace(path.with_name(f"{path.name}.1"))
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
