"""Owns the user's side of the embedded stores: a hold on them for as long as the process lives, and starting their keeper."""

from __future__ import annotations

import fcntl
import json
import os
import select
import subprocess
import sys
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from body_broker.errors import StoreStartError
from body_broker.storage.embedded.binaries import postgres_programs, valkey_program
from body_broker.storage.embedded.layout import POSTGRES, VALKEY, Layout, StoreUrls
from body_broker.storage.embedded.probes import postgres_answers, valkey_answers
from body_broker.storage.embedded.processes import read_status

_PACKAGES = Path(__file__).parents[3]
_KEEPER = "import sys; sys.path.append(sys.argv[1]); from body_broker.storage.embedded.keeper import main; main()"
_POLL_S = 0.01

_holds: dict[Path, list[int]] = {}
_holds_guard = threading.Lock()


class Deadline:
    """The moment at which a start has taken too long."""

    def __init__(self, timeout_s: float) -> None:
        self._at = time.monotonic() + timeout_s

    def left_s(self, what: str) -> float:
        """Seconds left.

        Raises:
            StoreStartError: None are; the message says what was waited for.
        """
        left = self._at - time.monotonic()
        if left <= 0:
            raise StoreStartError(
                f"The embedded stores were not ready in time: {what}.",
                next_step="Try again; the logs in the folder `stores` of the data directory have the reason if it stays so.",
            )
        return left


def start(data_dir: Path, timeout_s: float = 30, *, postgres: bool = True, valkey: bool = True) -> StoreUrls:
    """Use the embedded stores of a data directory, starting them where nobody has; blocks, so call it in a thread.

    This process is one of their users until it calls `release` as often as this, or ends, however it ends.

    Args:
        data_dir: Made where it is missing; everything lies in its folder `stores`.
        timeout_s: How long to wait until both servers answer.
        postgres: Whether PostgreSQL is wanted.
        valkey: Whether Valkey is wanted.

    Raises:
        StoreStartError: They did not start, and what to do about it.
    """
    layout = Layout(data_dir)
    deadline = Deadline(timeout_s)
    layout.create()
    with ExitStack() as undo:
        hold = _lock(layout.users_lock, fcntl.LOCK_SH, deadline, "an earlier keeper is still stopping")
        undo.callback(os.close, hold)
        gate = _lock(layout.start_lock, fcntl.LOCK_EX, deadline, "another process is starting them")
        try:
            _ensure(layout, deadline, postgres=postgres, valkey=valkey)
        finally:
            os.close(gate)
        undo.pop_all()
    with _holds_guard:
        _holds.setdefault(layout.root, []).append(hold)
    return layout.urls


def release(data_dir: Path) -> None:
    """Undo one `start` of this process; the last user's release stops the stores."""
    root = Layout(data_dir).root
    with _holds_guard:
        held = _holds.get(root)
        if not held:
            raise ValueError("not held")
        os.close(held.pop())


def _lock(path: Path, kind: int, deadline: Deadline, waiting_for: str) -> int:
    """An open file with the lock; closing it, or dying, gives it back."""
    with ExitStack() as undo:
        lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        undo.callback(os.close, lock)
        while True:
            try:
                fcntl.flock(lock, kind | fcntl.LOCK_NB)
            except BlockingIOError:
                pass
            except OSError as error:
                raise StoreStartError(
                    "The file system of the data directory has no locks.",
                    next_step="Name one on a local disk: --data-dir.",
                ) from error
            else:
                undo.pop_all()
                return lock
            time.sleep(min(_POLL_S, deadline.left_s(waiting_for)))


def _ensure(layout: Layout, deadline: Deadline, *, postgres: bool, valkey: bool) -> None:
    while True:
        found = read_status(layout)
        if found.keeper_pid is None:
            programs = str(postgres_programs()) if postgres else ""
            program = str(valkey_program()) if valkey else ""
            if _launch(layout, programs, program, deadline):
                return
        elif (postgres and POSTGRES not in found.serves) or (valkey and VALKEY not in found.serves):
            raise StoreStartError(
                "The embedded stores of this data directory were started for a hub that has one of them elsewhere.",
                next_step="Give every process of a data directory the same BODY_BROKER_DATABASE_URL and BODY_BROKER_REDIS_URL.",
            )
        elif (not postgres or postgres_answers(layout.sockets)) and (not valkey or valkey_answers(layout.sockets)):
            return
        time.sleep(min(_POLL_S, deadline.left_s("the servers do not answer")))


def _launch(layout: Layout, programs: str, program: str, deadline: Deadline) -> bool:
    """Start a keeper and hear how it went: True for ready, False where another was there first."""
    log = layout.open_log("keeper")
    command = [sys.executable, "-IS", "-c", _KEEPER, _PACKAGES, layout.root.parent, programs, program]
    with subprocess.Popen(  # noqa: S603  # this interpreter, a module of ours
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=log,
        start_new_session=True,
        env={},  # ours holds secrets that the servers have no business with, and names that change what they do
    ) as keeper:
        os.close(log)
        assert keeper.stdout
        said = b""
        while not said.endswith(b"\n"):
            ready, _, _ = select.select([keeper.stdout], [], [], deadline.left_s("the servers do not answer"))
            more = os.read(keeper.stdout.fileno(), 65536) if ready else b""
            if ready and not more:
                break
            said += more
    answer: dict[str, Any] = json.loads(said) if said else {}  # Any: a line of JSON that our own keeper wrote
    if message := answer.get("message"):
        raise StoreStartError(message, next_step=answer["next_step"])
    if not answer:
        raise StoreStartError(
            "The keeper of the embedded stores ended at once.",
            next_step="Read keeper.log in the folder `stores` of the data directory.",
        )
    return "ready" in answer
