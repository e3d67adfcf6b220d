"""Owns running a scanner: without a shell, in bounds, with nothing of our environment, and its whole group dead when it is over."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from mcp_servers.cybersecurity import confine
from mcp_servers.cybersecurity.findings import Isolation

_OUTPUT_BYTES_MAX = 64 * 1024**2
_FILE_BYTES_MAX = 256 * 1024**2
_OPEN_FILES = 1024
_READ = 256 * 1024
_PROBE_S = 10
# What a program needs of the system that it does not bring.
_SYSTEM = ("/usr", "/bin", "/lib", "/lib64", "/etc/ssl", "/etc/pki", "/etc/ld.so.cache", "/etc/alternatives")


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """A scanner to run.

    Attributes:
        words: The program by its absolute path, and its arguments.
        source: What it may read.
        work: Where it runs, and may write.
        needs: Further folders it must see, such as its own.
        timeout_s: How long.
        memory_bytes: Address space; 0 for programs that reserve more than they use.
        environment: Beside PATH, HOME and LANG.
    """

    words: Sequence[str]
    source: Path
    work: Path
    needs: Sequence[Path] = ()
    timeout_s: float
    memory_bytes: int = 0
    environment: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Ended:
    """How a program ended.

    Attributes:
        code: Its exit code, negative for a signal.
        output: What it wrote to stdout, as far as it came.
        why: What was done to it, if anything.
        duration_ms: Wall-clock time.
    """

    code: int
    output: bytes
    why: str | None
    duration_ms: int


async def run(command: Command) -> Ended:
    """Run it to its end; cancelled, or past its time, its whole process group is killed first.

    Raises:
        OSError: It cannot be started.
    """
    confined = await asyncio.to_thread(_confined, command)
    began = time.monotonic()
    process = await asyncio.create_subprocess_exec(
        *confined,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,  # scanners quote code there
        cwd=command.work,
        env=_environment(command),
        start_new_session=True,
        close_fds=True,
    )
    chunks: list[bytes] = []
    why = None
    try:
        async with asyncio.timeout(command.timeout_s):
            if not await _read(process, chunks):
                why = "too much output"
    except TimeoutError:
        why = "timed out"
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        code = await asyncio.shield(process.wait())
    return Ended(code, b"".join(chunks), why, round((time.monotonic() - began) * 1000))


async def _read(process: asyncio.subprocess.Process, chunks: list[bytes]) -> bool:
    """Read stdout to its end and wait; false where there was more than we take."""
    assert process.stdout is not None
    size = 0
    while chunk := await process.stdout.read(_READ):
        size += len(chunk)
        if size > _OUTPUT_BYTES_MAX:
            return False
        chunks.append(chunk)
    await process.wait()
    return True


def isolation() -> Isolation:
    """What holds scanners on this machine: a box of bubblewrap's, or bounds alone. Blocks at its first call."""
    return "bwrap" if find_bwrap() else "rlimit"


@lru_cache(maxsize=1)
def find_bwrap() -> str | None:
    """bubblewrap, where it is and may make namespaces here. Blocks at its first call."""
    found = shutil.which("bwrap")
    if found is None:
        return None
    probe = [found, "--unshare-all", "--die-with-parent", "--ro-bind", "/", "/", "--", "/bin/true"]
    try:
        done = subprocess.run(probe, stdin=subprocess.DEVNULL, capture_output=True, timeout=_PROBE_S, check=False)  # noqa: S603 - fixed words
    except (OSError, subprocess.SubprocessError):
        return None
    return found if done.returncode == 0 else None


def _confined(command: Command) -> list[str]:
    bounds = {
        "parent": os.getpid(),
        "cpu_s": int(command.timeout_s) + 1,
        "file_bytes": _FILE_BYTES_MAX,
        "open_files": _OPEN_FILES,
        "memory_bytes": command.memory_bytes,
    }
    bwrap = find_bwrap()
    held = boxed(bwrap, command) if bwrap else []
    return [sys.executable, "-I", "-S", str(Path(confine.__file__)), json.dumps(bounds), *held, *command.words]


def boxed(bwrap: str, command: Command) -> list[str]:
    """A file system of only what is needed, no network, no other processes."""
    words = [bwrap, "--unshare-all", "--die-with-parent", "--cap-drop", "ALL", "--proc", "/proc", "--dev", "/dev"]
    words += ["--tmpfs", "/tmp"]  # noqa: S108 - the box's own
    for place in (*map(Path, _SYSTEM), *command.needs, command.source):
        words += _shown(place)
    return [*words, "--bind", str(command.work), str(command.work), "--chdir", str(command.work), "--"]


def _shown(place: Path) -> list[str]:
    """The words that show a place in the box; a link stays a link, for a program may find its libraries by where it lies."""
    if not place.is_symlink() or str(place) in _SYSTEM:
        return ["--ro-bind-try", str(place), str(place)]
    real = place.resolve()
    return ["--ro-bind-try", str(real.parent), str(real.parent), "--symlink", str(real), str(place)]


def _environment(command: Command) -> dict[str, str]:
    home = str(command.work)
    return {"PATH": os.defpath, "HOME": home, "TMPDIR": home, "LANG": "C.UTF-8", **dict(command.environment)}
