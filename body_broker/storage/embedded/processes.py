"""Owns who the embedded stores' processes are: the status file, and whether a process is still the one written there."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from body_broker.storage.embedded.layout import POSTGRES, VALKEY, Layout


@dataclass(frozen=True, slots=True)
class EmbeddedStatus:
    """The living processes of one data directory's stores; None where one is not kept or not alive.

    Attributes:
        serves: The names of the servers that the last keeper was asked for: postgres, valkey.
    """

    keeper_pid: int | None = None
    postgres_pid: int | None = None
    valkey_pid: int | None = None
    serves: frozenset[str] = frozenset()


def status(data_dir: Path) -> EmbeddedStatus:
    """Which processes serve this data directory now; starts nothing, and a recycled pid is not mistaken for one of ours."""
    return read_status(Layout(data_dir))


def read_status(layout: Layout) -> EmbeddedStatus:
    """The same of a layout."""
    try:
        written: dict[str, tuple[int, str] | None] = json.loads(layout.status.read_bytes())
    except (FileNotFoundError, ValueError):  # none yet; or emptied by a crash of the machine
        return EmbeddedStatus()
    living = {name: entry[0] for name, entry in written.items() if entry and birth(entry[0]) == entry[1]}
    return EmbeddedStatus(
        living.get("keeper"), living.get(POSTGRES), living.get(VALKEY), frozenset(written) - {"keeper"}
    )


def write_status(layout: Layout, pids: Mapping[str, int | None]) -> None:
    """Put the processes down, at once or not at all; a server that is about to be started has None."""
    entries = {name: (pid, birth(pid)) if pid else None for name, pid in pids.items()}
    new = layout.status.with_suffix(".new")
    new.write_text(json.dumps(entries), "utf-8")
    new.replace(layout.status)


def birth(pid: int) -> str | None:
    """When the process began, as the kernel writes it: with the pid, an identity. None where it does not live (a zombie)."""
    if sys.platform != "linux":
        told = subprocess.run(  # noqa: S603  # no input but a number of ours
            ["/bin/ps", "-o", "stat=,lstart=", "-p", str(pid)], capture_output=True, text=True, check=False
        ).stdout.strip()
        state, _, began = told.partition(" ")
        return began.strip() if told and not state.startswith("Z") else None
    try:
        # The command's name, in brackets, may hold anything; the fields count from behind it.
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return None
    return None if fields[0] in {b"Z", b"X"} else fields[19].decode()
