"""Owns the keeper: the process that is parent of the embedded servers and stops them when their last user is gone.

Users hold a shared lock on `users.lock`; the keeper waits for the exclusive one, so the kernel counts the users, however
they end. It runs with the standard library alone (`python -IS`) and ends only by the lock, a signal, or servers that
cannot be kept alive.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import sys
import threading
import time
import traceback
from contextlib import suppress
from pathlib import Path
from types import FrameType

from body_broker.errors import StoreStartError
from body_broker.storage.embedded.layout import POSTGRES, VALKEY, Layout
from body_broker.storage.embedded.processes import read_status, write_status
from body_broker.storage.embedded.servers import ENDINGS, Server, prepare_postgres, prepare_valkey

_LAST_USER_GONE = signal.SIGUSR1
_STOP = {_LAST_USER_GONE, signal.SIGTERM, signal.SIGINT, signal.SIGHUP}
_POLL_S = 0.01
_ORPHANS_POLITE_S = 3.0
_ORPHANS_MAX_S = 20.0
_DEATHS_MAX = 10
_DEATHS_WITHIN_S = 60.0
_REVIVE_WAIT_MAX_S = 0.5


class Busy(Exception):  # not an error: the place is taken
    """Another keeper lives here."""


class Stopped(Exception):  # not an error: it was told to
    """The keeper was told to stop before its servers answered."""


class Keeper:
    """Servers that are kept alive while anybody uses them."""

    def __init__(self, layout: Layout, servers: list[Server]) -> None:
        self._layout = layout
        self._servers = servers
        self._deaths: dict[str, list[float]] = {server.name: [] for server in servers}

    def start(self) -> None:
        """Start every server and wait until all answer.

        Raises:
            StoreStartError: One ended instead.
            Stopped: The last user left, or a signal came.
        """
        threading.Thread(target=self._await_last_user, daemon=True).start()
        for server in self._servers:
            server.start()
        self._publish()
        waiting = list(self._servers)
        while waiting := [server for server in waiting if not server.answers()]:
            if _STOP & signal.sigpending():
                raise Stopped
            for server in waiting:
                if server.died():
                    raise StoreStartError(
                        f"The embedded {server.name} ended while starting.",
                        next_step=f"Read {server.name}.log in the folder `stores` of the data directory.",
                    )
            time.sleep(_POLL_S)

    def serve(self) -> None:
        """Keep the servers until told to stop; one that dies is started again, within reason.

        Raises:
            StoreStartError: One died too often.
        """
        while signal.sigwait({signal.SIGCHLD, *_STOP}) not in _STOP:
            for server in self._servers:
                if server.died():
                    self._revive(server)

    def end(self) -> None:
        """End every server."""
        for server in self._servers:
            server.end()

    def _revive(self, server: Server) -> None:
        deaths = self._deaths[server.name]
        deaths.append(time.monotonic())
        recent = sum(at > deaths[-1] - _DEATHS_WITHIN_S for at in deaths)
        if recent > _DEATHS_MAX:
            raise StoreStartError(f"The embedded {server.name} died {recent} times in a minute; the keeper gives up.")
        _log(f"{server.name} died and is started again ({recent} of {_DEATHS_MAX} in a minute)")
        # Processes of the dead one may still hold its memory for a moment; the first time costs no wait.
        time.sleep(min(0.05 * (2 ** (recent - 1) - 1), _REVIVE_WAIT_MAX_S))
        server.start()
        self._publish()

    def _publish(self) -> None:
        pids = {server.name: server.process.pid if server.process else None for server in self._servers}
        write_status(self._layout, {"keeper": os.getpid(), **pids})

    def _await_last_user(self) -> None:
        users = os.open(self._layout.users_lock, os.O_RDWR | os.O_CREAT, 0o600)
        fcntl.flock(users, fcntl.LOCK_EX)  # and holds it to the end: who comes now waits until all is over
        os.kill(os.getpid(), _LAST_USER_GONE)


def main() -> None:
    """The keeper's whole life. Arguments: the package's root, the data directory, PostgreSQL's programs, Valkey's program;
    an empty one means that server is not wanted. Says on stdout, in one line of JSON, how the start went.
    """
    if os.fork():
        os._exit(0)  # the starter waits for this one; the keeper is nobody's child
    # Blocked, so that each waits its turn for sigwait; a handler, because some systems drop what is ignored by default.
    signal.signal(signal.SIGCHLD, _noted)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD, *_STOP})
    os.umask(0o077)
    os.chdir("/")
    data_dir, programs, program = sys.argv[2:5]
    try:
        _keep(Layout(Path(data_dir)), programs, program)
    except Busy:
        _tell({"busy": True})
    except Stopped:
        _log("stopped before the servers answered")
    except StoreStartError as error:
        traceback.print_exc()
        _tell({"message": error.message, "next_step": error.next_step})
        sys.exit(1)


def _keep(layout: Layout, programs: str, program: str) -> None:
    lock = _own_servers(layout)
    wanted = {name: None for name, given in ((POSTGRES, programs), (VALKEY, program)) if given}
    write_status(layout, {"keeper": os.getpid(), **wanted})
    servers: list[Server] = []
    if program:
        servers.append(prepare_valkey(layout, Path(program), lock))
    if programs:
        servers.append(prepare_postgres(layout, Path(programs), lock))
    keeper = Keeper(layout, servers)
    try:
        keeper.start()
        _tell({"ready": True})
        keeper.serve()
    finally:
        keeper.end()


def _own_servers(layout: Layout) -> int:
    """The lock that every process of the servers inherits: having it proves that none of an earlier keeper is left."""
    lock = os.open(layout.servers_lock, os.O_RDWR | os.O_CREAT, 0o600)
    began = time.monotonic()
    rung = -1
    while True:
        with suppress(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return lock
        if read_status(layout).keeper_pid:
            raise Busy
        waited_s = time.monotonic() - began
        if waited_s > _ORPHANS_MAX_S:
            raise StoreStartError(
                "Servers of a keeper that was killed are still running and do not end.",
                next_step="End the processes that have `servers.lock` of the data directory open (fuser, lsof).",
            )
        if (now := int(waited_s / _ORPHANS_POLITE_S)) > rung:
            rung = now
            _end_orphans(layout, rung)
        time.sleep(_POLL_S)


def _end_orphans(layout: Layout, rung: int) -> None:
    left = read_status(layout)
    for name, pid in ((POSTGRES, left.postgres_pid), (VALKEY, left.valkey_pid)):
        if pid:
            with suppress(ProcessLookupError):
                os.kill(pid, ENDINGS[name][min(rung, 2)])


def _tell(what: dict[str, object]) -> None:
    # The starter may be dead by now; then nobody needs to know.
    with suppress(BrokenPipeError):
        os.write(1, json.dumps(what).encode() + b"\n")
    os.dup2(2, 1)


def _noted(_number: int, _frame: FrameType | None) -> None:
    """Nothing: sigwait has it."""


def _log(line: str) -> None:
    os.write(2, f"{time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())} {line}\n".encode())
