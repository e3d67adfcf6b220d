"""Owns one process in a box: a root file system of its own over this machine's, mounts, a user, nothing else in its environment.

    unshare --mount --propagation private python box.py < spec.json

What Docker does for compose.yaml's services, as far as the tests of this folder need it. Standard library only.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any


def main() -> None:
    spec: dict[str, Any] = json.loads(sys.stdin.readline())
    scratch = Path(spec["scratch"])
    # On a file system in memory: an overlay's upper half must not lie on an overlay.
    mount("-t", "tmpfs", "box", scratch)
    upper, work, root = (scratch / name for name in ("upper", "work", "root"))
    for folder in (upper, work, root):
        folder.mkdir()
    mount("-t", "overlay", "box", "-o", f"lowerdir=/,upperdir={upper},workdir={work}", root)
    open_up(root, spec["reads"])
    for name in ("dev", "proc", "sys"):
        mount("--rbind", f"/{name}", root / name)
    for target, uid in spec["folders"]:
        place = root / target.lstrip("/")
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.chown(place, uid, uid)
    for source, target in spec["binds"]:
        place = root / target.lstrip("/")
        if not place.exists():
            place.mkdir(parents=True)
        mount("--rbind", source, place)
    for target, text in spec["files"].items():
        (root / target.lstrip("/")).write_text(text)
    for target in spec["tmpfs"]:
        (root / target.lstrip("/")).mkdir(parents=True, exist_ok=True)
        mount("-t", "tmpfs", "-o", "mode=1777", "box", root / target.lstrip("/"))
    bring_back(root, spec)
    if spec["read_only"]:
        mount("-o", "remount,bind,ro", root)
    os.chroot(root)
    os.chdir(spec["workdir"])
    if spec["uid"] is not None:
        os.setgroups([])
        os.setgid(spec["uid"])
        os.setuid(spec["uid"])
    # After the change of user, which clears it.
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    os.execvpe(spec["argv"][0], spec["argv"], spec["env"])  # noqa: S606  # it is what the box is for


def bring_back(root: Path, spec: dict[str, Any]) -> None:
    """What the tests stand on may lie where compose.yaml puts an empty file system, as in a clone under /tmp."""
    for source in spec["keeps"]:
        if any(Path(source).is_relative_to(target) for target in spec["tmpfs"]):
            place = root / source.lstrip("/")
            place.mkdir(parents=True)
            mount("--rbind", source, place)


def mount(*words: str | Path) -> None:
    subprocess.run(["mount", *words], check=True)


def open_up(root: Path, paths: list[str]) -> None:
    """Let an ordinary user pass through the folders above what it runs; in the box's own upper half, nowhere else."""
    for path in paths:
        for parent in Path(path).parents:
            place = root / str(parent).lstrip("/")
            place.chmod(place.stat().st_mode | 0o011)


if __name__ == "__main__":
    main()
