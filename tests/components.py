"""Owns what a test may need that is not on every machine: where each is, and whether its absence skips or fails."""

from __future__ import annotations

import importlib.util
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest

PROJECT = Path(__file__).parents[1]
_SCRATCH_BYTES_MIN = 2 * 1024**3


def data_dir() -> Path:
    """Where the test collections and novels are (BODY_BROKER_TEST_DATA)."""
    return Path(os.environ.get("BODY_BROKER_TEST_DATA") or PROJECT.parent / "shared" / "data")  # noqa: TID251  # tests' own


def scratch_dir() -> Path:
    """Where stores of tests lie: in memory where there is room."""
    # A database of its own for every test is 300 new files: 10 ms in memory, 300 ms on some disks.
    memory = Path("/dev/shm")  # noqa: S108  # mkdtemp makes it ours
    roomy = memory.is_dir() and shutil.disk_usage(memory).free > _SCRATCH_BYTES_MIN
    return memory if roomy else Path(tempfile.gettempdir())


def _data() -> str | None:
    return None if data_dir().is_dir() else f"no test data at {data_dir()} (BODY_BROKER_TEST_DATA)"


def _seeds() -> str | None:
    return None if (data_dir().parent / "seeds").is_dir() else f"no source documents beside {data_dir()}"


def _uv() -> str | None:
    return None if shutil.which("uv") or importlib.util.find_spec("uv") else "pip install uv"


def _semgrep() -> str | None:
    return None if importlib.util.find_spec("semgrep") else "uv sync installs it, in the group scanners"


# Each says why it is absent, or None where it is there.
COMPONENTS: dict[str, Callable[[], str | None]] = {"data": _data, "seeds": _seeds, "uv": _uv, "semgrep": _semgrep}


def missing(component: str, reason: str) -> NoReturn:
    """Skip the test with its reason; fail it where BODY_BROKER_REQUIRE names the component, or `all`."""
    required = {name.strip() for name in os.environ.get("BODY_BROKER_REQUIRE", "").split(",")}  # noqa: TID251  # tests' own
    if required & {component, "all"}:
        pytest.fail(f"{component} is required here: {reason}", pytrace=False)
    pytest.skip(f"{component}: {reason}")


def need(component: str) -> None:
    """Go on only where the component is there."""
    if component not in COMPONENTS:
        pytest.fail(f"{component} is no component; tests/components.py knows {sorted(COMPONENTS)}", pytrace=False)
    if reason := COMPONENTS[component]():
        missing(component, reason)
