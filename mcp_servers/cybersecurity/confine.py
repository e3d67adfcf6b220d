"""Owns the moment before a scanner begins: it gets its bounds and dies with the hub, then becomes the scanner. Run as a program."""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import sys
from contextlib import suppress
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_PROCESSES_MORE = 512
"""How many processes and threads beyond what the account has now; root is not held by it."""


def main() -> None:
    """Set the bounds of argv[1] (JSON), then run the rest."""
    bounds: dict[str, int] = json.loads(sys.argv[1])
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGKILL), 0, 0, 0)
        if os.getppid() != bounds["parent"]:  # it died before the line above
            os.kill(os.getpid(), signal.SIGKILL)
        if os.geteuid() != 0:
            _limit(resource.RLIMIT_NPROC, _own_threads() + _PROCESSES_MORE)
    _limit(resource.RLIMIT_CORE, 0)  # a core would hold what was scanned
    _limit(resource.RLIMIT_CPU, bounds["cpu_s"])
    _limit(resource.RLIMIT_FSIZE, bounds["file_bytes"])
    _limit(resource.RLIMIT_NOFILE, bounds["open_files"])
    if bounds["memory_bytes"]:
        _limit(resource.RLIMIT_AS, bounds["memory_bytes"])
    os.umask(0o077)
    os.execv(sys.argv[2], sys.argv[2:])  # noqa: S606 - the scanner, without a shell


def _limit(what: int, value: int) -> None:
    _, hard = resource.getrlimit(what)
    if hard != resource.RLIM_INFINITY:
        value = min(value, hard)
    resource.setrlimit(what, (value, value))


def _own_threads() -> int:
    found = 0
    for status in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it ended
            if status.stat().st_uid == os.getuid():
                found += sum(1 for _ in (status / "task").iterdir())
    return found


if __name__ == "__main__":
    main()
