"""Owns the environment of the real vLLM of the tests: made once for these requirements and this Python, kept in the user's cache.

`python -m tests.vllm.install` makes it. vLLM pins other versions than the product, so it never shares its environment.
"""

from __future__ import annotations

import ctypes
import fcntl
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.tools.project import uv_command

_WANTED = Path(__file__).with_name("requirements.txt")
_TORCH = "torch==2.13.0"
"""With its own dependencies: a machine with a CPU build at hand (PIP_FIND_LINKS) takes that, any other the registry's for CUDA."""
_TIMEOUT_S = 1_200
_COMMAND = "python -m tests.vllm.install"


class NotInstalled(Exception):
    """It could not be installed; its message says why."""


def python() -> Path | None:
    """The interpreter of vLLM's environment, where it is installed."""
    found = _kept(_home()) / "bin" / "python"
    return found if found.exists() else None


def absence() -> str | None:
    """Why there is no vLLM here, and what makes it; None where there is one."""
    if (reason := _unfit()) or python() is not None:
        return reason
    return f"`{_COMMAND}` makes it (1.5 GB; 5.3 GB where no CPU build of torch is at hand)"


def _unfit() -> str | None:
    if (sys.platform, platform.machine()) != ("linux", "x86_64"):
        return "vLLM for CPUs is pinned for Linux on x86_64"
    try:
        ctypes.CDLL("libnuma.so.1")
    except OSError:
        return "apt-get install libnuma1"
    return None if uv_command() else "pip install uv"


def install() -> Path:
    """The interpreter of vLLM's environment, made if nobody did.

    Raises:
        NotInstalled: This machine is not one for it, or uv failed.
    """
    command = uv_command()
    if (reason := _unfit()) or command is None:
        raise NotInstalled(reason)
    return install_in(_home(), command)


def install_in(home: Path, command: list[str]) -> Path:
    """The same in a folder of one's own; whoever asks meanwhile waits for the first."""
    kept = _kept(home)
    home.mkdir(parents=True, exist_ok=True)
    with (home / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not kept.exists():
            _make(kept, command)
    return kept / "bin" / "python"


def _make(kept: Path, command: list[str]) -> None:
    """Beside the place, then into the place: an install that was killed half way leaves nothing that looks whole."""
    for old in kept.parent.iterdir():
        if old.is_dir():
            shutil.rmtree(old, ignore_errors=True)
    draft = Path(tempfile.mkdtemp(prefix="draft-", dir=kept.parent))
    links = os.environ.get("PIP_FIND_LINKS")  # noqa: TID251  # uv does not read pip's
    into = ["--python", str(draft / "bin" / "python"), *(["--find-links", links] if links else [])]
    try:
        _uv(command, draft, "venv", "--clear", "--relocatable", "--python", sys.executable, str(draft))
        _uv(command, draft, "pip", "install", *into, "--constraints", str(_WANTED), _TORCH)
        _uv(command, draft, "pip", "install", *into, "--no-deps", "--requirements", str(_WANTED))
        draft.rename(kept)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _uv(command: list[str], cwd: Path, *arguments: str) -> None:
    # Not in the project's folder: its pins are not vLLM's.
    done = subprocess.run(
        [*command, "--quiet", *arguments],
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=_TIMEOUT_S,
        check=False,
    )
    if done.returncode:
        raise NotInstalled(f"uv {' '.join(arguments[:2])} failed: {done.stderr.decode(errors='replace')[-400:]}")


def _home() -> Path:
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"  # noqa: TID251  # tests' own
    return Path(cache) / "body-broker-tests" / "vllm"


def _kept(home: Path) -> Path:
    wanted = hashlib.sha256(_WANTED.read_bytes() + f"{_TORCH} {sys.version}".encode())
    return home / wanted.hexdigest()[:16]


if __name__ == "__main__":
    try:
        print(install())
    except NotInstalled as error:
        raise SystemExit(f"no vLLM: {error}") from error
