"""Owns the two servers as the keeper runs them: their command lines, their first preparation, starting and ending one."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from body_broker.errors import StoreStartError
from body_broker.storage.embedded.binaries import POSTGRES_MAJOR
from body_broker.storage.embedded.children import before_exec
from body_broker.storage.embedded.layout import PORT, POSTGRES, POSTGRES_SOCKET, VALKEY, VALKEY_SOCKET, Layout
from body_broker.storage.embedded.probes import postgres_answers, valkey_answers

# What ends a server: politely, now, at any price. PostgreSQL's "fast" and "immediate" shutdown.
ENDINGS = {
    POSTGRES: (signal.SIGINT, signal.SIGQUIT, signal.SIGKILL),
    VALKEY: (signal.SIGTERM, signal.SIGKILL, signal.SIGKILL),
}
_PATIENCE_S = (30.0, 5.0, None)


class Server:
    """One server: a child of the keeper that is started, asked and ended; its data outlives it."""

    def __init__(
        self, name: str, command: Sequence[str | Path], log: int, lock: int, answers: Callable[[], bool]
    ) -> None:
        self.name = name
        self.answers = answers
        self.process: subprocess.Popen[bytes] | None = None
        self._command = command
        self._log = log
        self._lock = lock

    def start(self) -> None:
        """Begin; whether it answers is another question.

        Raises:
            StoreStartError: The system does not let it.
        """
        self.process = _spawn(self.name, self._command, self._log, self._lock)

    def died(self) -> bool:
        """Whether it was started and is no more."""
        return self.process is not None and self.process.poll() is not None

    def end(self) -> None:
        """Ask it to end and wait; what does not listen is killed."""
        for ending, patience_s in zip(ENDINGS[self.name], _PATIENCE_S, strict=True):
            if self.process is None:
                return
            self.process.send_signal(ending)
            try:
                self.process.wait(patience_s)
            except subprocess.TimeoutExpired:
                continue
            return


def prepare_postgres(layout: Layout, programs: Path, lock: int) -> Server:
    """PostgreSQL with its cluster, which is made on first use: whole, or not at all.

    Raises:
        StoreStartError: The cluster cannot be made, or another version of PostgreSQL made it.
    """
    log = layout.open_log(POSTGRES)
    data = layout.postgres
    if not data.exists():
        new = data.with_suffix(".new")
        if new.exists():
            shutil.rmtree(new)
        init = _spawn("initdb", _initdb(programs, new), log, lock)
        if init.wait() != 0:
            raise _see("PostgreSQL's cluster cannot be made", POSTGRES)
        new.rename(data)
    version = (data / "PG_VERSION").read_text("ascii").strip()
    if version != str(POSTGRES_MAJOR):
        raise StoreStartError(
            f"The data directory holds a cluster of PostgreSQL {version}; this program brings {POSTGRES_MAJOR}.",
            next_step="Dump it with the version of body-broker that made it, or name another directory: --data-dir.",
        )
    # The lock proves that no server of ours lives; what a killed one left could name a pid that is somebody else's today.
    for left in (data / "postmaster.pid", layout.sockets / POSTGRES_SOCKET, layout.sockets / f"{POSTGRES_SOCKET}.lock"):
        left.unlink(missing_ok=True)
    settings = {
        "listen_addresses": "",
        "unix_socket_directories": layout.sockets,
        "unix_socket_permissions": "0700",
        "port": str(PORT),
        "log_checkpoints": "off",
        "jit": "off",
        # Fewer idle processes: one user's machine needs no workers for I/O and no replication.
        "io_method": "sync",
        "max_logical_replication_workers": "0",
    }
    options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
    return Server(
        POSTGRES, [programs / "postgres", "-D", data, *options], log, lock, lambda: postgres_answers(layout.sockets)
    )


def prepare_valkey(layout: Layout, program: Path, lock: int) -> Server:
    """Valkey with an append-only file."""
    layout.valkey.mkdir(mode=0o700, exist_ok=True)
    (layout.sockets / VALKEY_SOCKET).unlink(missing_ok=True)
    settings = {
        "port": "0",
        "unixsocket": layout.sockets / VALKEY_SOCKET,
        "unixsocketperm": "700",
        "dir": layout.valkey,
        "appendonly": "yes",
        "appendfsync": "everysec",
        "save": "",
        "maxmemory": "256mb",
        "maxmemory-policy": "volatile-lru",
    }
    options = [part for name, value in settings.items() for part in (f"--{name}", value)]
    log = layout.open_log(VALKEY)
    return Server(VALKEY, [program, *options], log, lock, lambda: valkey_answers(layout.sockets))


def _initdb(programs: Path, data: Path) -> list[str | Path]:
    # Nobody but us reaches the socket's directory, so no password would keep anybody out.
    made_like = ["-U", "postgres", "--auth=trust", "--encoding=UTF8"]
    # PostgreSQL's own order of texts is the same everywhere; the system's locale only tells letters from signs.
    sorted_by = ["--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
    system = ["--locale=C.UTF-8", "--sync-method=syncfs"] if sys.platform == "linux" else ["--locale=en_US.UTF-8"]
    return [programs / "initdb", "-D", data, *made_like, *sorted_by, *system]


def _spawn(name: str, command: Sequence[str | Path], log: int, lock: int) -> subprocess.Popen[bytes]:
    ending = ENDINGS.get(name, (signal.SIGKILL,))[0]
    try:
        return subprocess.Popen(  # noqa: S603  # programs of our own wheels
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            pass_fds=(lock,),
            preexec_fn=before_exec(ending, leave_root=name != VALKEY),  # noqa: PLW1509  # imports nothing, takes no lock
        )
    except subprocess.SubprocessError as error:  # what before_exec raised
        raise StoreStartError(
            "PostgreSQL refuses to run as root, and this system refuses the user namespace that would hide it.",
            next_step="Start body-broker as an ordinary user, or set BODY_BROKER_DATABASE_URL.",
        ) from error
    except OSError as error:
        raise _see(f"{name} cannot be started", "keeper") from error


def _see(what: str, log: str) -> StoreStartError:
    return StoreStartError(f"{what}.", next_step=f"Read {log}.log in the folder `stores` of the data directory.")
