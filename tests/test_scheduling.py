"""Tests of one file run in one process, and so do those of all files that need the same costly program."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.scheduling import group_of
from tests.tools.project import ROOT

_TEST = """
import os, pathlib, pytest
{mark}
@pytest.mark.parametrize("number", range(6))
def test_it(number):
    with pathlib.Path(__file__).with_suffix(".ran").open("a") as ran:
        ran.write(os.environ["PYTEST_XDIST_WORKER"] + "\\n")
"""
_HANGS = """
import contextlib, time
def test_that_hangs():
    while True:
        with contextlib.suppress(BaseException):
            time.sleep(60)
def test_after_it():
    pass
"""
_FAILS_AND_HANGS = """
import contextlib, pytest, time
@pytest.fixture
def hanging():
    yield
    while True:
        with contextlib.suppress(BaseException):
            time.sleep(60)
def test_that_fails(hanging):
    assert False
def test_after_it():
    pass
"""
_COSTLY = 'pytestmark = pytest.mark.requires("java", "opensearch")'


@pytest.mark.parametrize(
    ("file", "group"),
    [
        ("tests/deploy/test_stack.py", "tests/deploy/test_stack.py"),
        ("tests/tiers/vllm/test_npc.py", "vllm"),
        ("tests/tiers/vllm/test_engine.py", "vllm"),
        ("tests/clients/test_every_client.py", "npm"),
        ("tests/kill/test_opensearch_rounds.py", "opensearch"),
        ("tests/body_broker/lore/contract/test_services.py", "opensearch"),
        ("tests/body_broker/lore/contract/test_words.py", "opensearch"),
    ],
)
def test_a_file_goes_with_those_that_need_its_program(file: str, group: str) -> None:
    assert group_of(ROOT, file) == group


def test_each_group_runs_in_one_process(tmp_path: Path) -> None:
    for name, mark in {"a": "", "b": "", "c": _COSTLY, "d": _COSTLY}.items():
        (tmp_path / f"test_{name}.py").write_text(_TEST.format(mark=mark))

    done = _run_on_two_processes(tmp_path)

    assert done.returncode == 0, done.stdout + done.stderr
    ran = {name: (tmp_path / f"test_{name}.ran").read_text().split() for name in "abcd"}
    assert [len(set(ran[name])) for name in "ab"] == [1, 1]
    assert len({*ran["c"], *ran["d"]}) == 1
    assert len({worker for each in ran.values() for worker in each}) == 2


@pytest.mark.parametrize(
    ("test", "limits", "named", "failed"),
    [
        (_HANGS, ("timeout=1", "watchdog_grace_s=1"), "test_that_hangs", "1 failed, 7 passed"),
        (_FAILS_AND_HANGS, ("timeout=300", "watchdog_clean_up_s=1"), "hanging", "2 failed, 7 passed"),
    ],
)
def test_a_test_that_does_not_end_ends_one_process_which_says_where_and_the_others_run(
    tmp_path: Path, test: str, limits: tuple[str, ...], named: str, failed: str
) -> None:
    (tmp_path / "test_a.py").write_text(test)
    (tmp_path / "test_b.py").write_text(_TEST.format(mark=""))

    done = _run_on_two_processes(tmp_path, *(part for limit in limits for part in ("-o", limit)))

    assert done.returncode == 1, done.stdout + done.stderr
    assert "crashed while running 'test_a.py::test_that_" in done.stdout, done.stdout
    assert f"in {named}" in done.stderr, done.stderr
    assert failed in done.stdout, done.stdout


def _run_on_two_processes(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    (folder / "conftest.py").write_text("from tests.scheduling import *\nfrom tests.watchdog import *\n")
    (folder / "pytest.ini").write_text("[pytest]\nmarkers = requires\ntimeout = 300\n")
    command = [sys.executable, "-m", "pytest", "-q", "-n", "2", "--dist", "loadgroup", "-p", "no:cacheprovider"]
    return subprocess.run(
        [*command, *options, str(folder)],
        cwd=folder,
        env={"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
