"""Owns the environments of the scanners that attack our hub: each its own, made once for its exact pins, kept in the user's cache.

`python -m tests.attacks.install` makes both. They pin other versions than the product, so they share nothing with it.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.tools.project import uv_command

SCANNERS = ("mcpsafe", "cisco")
_TIMEOUT_S = 600
_COMMAND = "python -m tests.attacks.install"


class NotInstalled(Exception):
    """It could not be installed; its message says why."""


def python(scanner: str) -> Path | None:
    """The interpreter of a scanner's environment, where it is installed."""
    found = _kept(scanner) / "bin" / "python"
    return found if found.exists() else None


def absence() -> str | None:
    """Why the scanners are not here, and what makes them; None where both are."""
    return None if all(python(each) for each in SCANNERS) else f"`{_COMMAND}` makes them (240 MB)"


def install(scanner: str) -> Path:
    """The interpreter of a scanner's environment, made if nobody did; whoever asks meanwhile waits for the first.

    Raises:
        NotInstalled: There is no uv, or it failed.
    """
    command = uv_command()
    if command is None:
        raise NotInstalled("pip install uv")
    kept = _kept(scanner)
    kept.parent.mkdir(parents=True, exist_ok=True)
    with (kept.parent / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not kept.exists():
            _make(kept, command, _wanted(scanner))
    return kept / "bin" / "python"


def _make(kept: Path, command: list[str], wanted: Path) -> None:
    """Beside the place, then into the place: an install that was killed half way leaves nothing that looks whole."""
    for old in kept.parent.iterdir():
        if old.is_dir():
            shutil.rmtree(old, ignore_errors=True)
    draft = Path(tempfile.mkdtemp(prefix="draft-", dir=kept.parent))
    into = ["--python", str(draft / "bin" / "python"), "--no-deps", "--requirements", str(wanted)]
    try:
        _uv(command, draft, "venv", "--clear", "--relocatable", "--python", sys.executable, str(draft))
        _uv(command, draft, "pip", "install", *into)
        draft.rename(kept)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _uv(command: list[str], cwd: Path, *arguments: str) -> None:
    # Not in the project's folder: its pins are not theirs.
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


def _wanted(scanner: str) -> Path:
    return Path(__file__).with_name(f"{scanner}.txt")


def _kept(scanner: str) -> Path:
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"  # noqa: TID251  # tests' own
    wanted = hashlib.sha256(_wanted(scanner).read_bytes() + sys.version.encode())
    return Path(cache) / "body-broker-tests" / f"attacks-{scanner}" / wanted.hexdigest()[:16]


if __name__ == "__main__":
    for each in SCANNERS:
        try:
            print(install(each))
        except NotInstalled as error:
            raise SystemExit(f"no {each}: {error}") from error
