"""Owns what happens in a server's process between fork and exec: it dies with its keeper, and PostgreSQL is not root."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

_CLONE_NEWUSER = 0x10000000
_PR_SET_PDEATHSIG = 1
_NOBODY_SPECIAL = 1000  # any id but 0; files stay ours outside


def before_exec(death_signal: int, *, leave_root: bool) -> Callable[[], None]:
    """What a child runs before its program.

    Args:
        death_signal: What the kernel sends the child when the keeper dies, however it dies. Linux only: elsewhere the next
            keeper ends what a killed one left behind.
        leave_root: Put a child of root into a user namespace where it is not root.
    """
    if sys.platform != "linux":
        return _unblock_signals
    keeper = os.getpid()
    libc = ctypes.CDLL(None, use_errno=True)  # before the fork: the child of a process with threads must not import

    def prepare() -> None:
        _unblock_signals()
        if leave_root and os.geteuid() == 0:
            _enter_user_namespace(libc)
        # After the namespace: a change of credentials clears it.
        _checked(libc.prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(death_signal), 0, 0, 0))
        if os.getppid() != keeper:  # it died before the line above
            os.kill(os.getpid(), signal.SIGKILL)

    return prepare


def _unblock_signals() -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def _enter_user_namespace(libc: ctypes.CDLL) -> None:
    uid, gid = os.geteuid(), os.getegid()  # inside, before the maps, both read as nobody
    _checked(libc.unshare(_CLONE_NEWUSER))
    Path("/proc/self/setgroups").write_text("deny", "ascii")
    Path("/proc/self/uid_map").write_text(f"{_NOBODY_SPECIAL} {uid} 1", "ascii")
    Path("/proc/self/gid_map").write_text(f"{_NOBODY_SPECIAL} {gid} 1", "ascii")


def _checked(result: int) -> None:
    if result:
        raise OSError(ctypes.get_errno(), "refused by the kernel")
