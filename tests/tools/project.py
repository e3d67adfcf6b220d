"""Owns where the repository's files are and how uv is called; what the tools and the project tests share."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("approvals", "body_broker", "mcp_servers", "policies", "tiers")


def pyproject() -> dict[str, Any]:  # TOML: any JSON-like value
    """What pyproject.toml says."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))


def uv_command() -> list[str] | None:
    """How uv is started here, or None: it is not needed to use the project, only to pin and to build it."""
    found = shutil.which("uv")
    if found:
        return [found]
    return [sys.executable, "-m", "uv"] if importlib.util.find_spec("uv") else None


def uv(*arguments: str | Path, cwd: Path = ROOT, timeout_s: float = 300) -> str:
    """What uv printed.

    Raises:
        SystemExit: It is not installed, or failed; its own words are in the message.
    """
    command = uv_command()
    if command is None:
        raise SystemExit("uv is needed for this: pip install uv")
    done = subprocess.run(
        [*command, *arguments], cwd=cwd, capture_output=True, text=True, timeout=timeout_s, check=False
    )
    if done.returncode:
        raise SystemExit(f"uv {arguments[0]} failed:\n{done.stderr.strip()}")
    return done.stdout


def tracked_files() -> list[Path]:
    """Every file of the repository that git tracks or would track."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    paths = (ROOT / name.decode() for name in listed.stdout.split(b"\0") if name)
    return sorted(p for p in paths if p.is_file())
