"""Running a scanner: its bounds, its environment, and that nothing of it lives on."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mcp_servers.cybersecurity import programs
from mcp_servers.cybersecurity.programs import Command, run
from tests.tiers.clock import Clock, clock
from tests.waiting import wait_until, wait_until_sync

__all__ = ["clock"]  # a fixture

FORKS = """
import os, sys, time
child = os.fork()
with open(sys.argv[1], "a") as pids:
    pids.write(f"{os.getpid()}\\n")
time.sleep(600)
"""


def python(work: Path, code: str, *words: str, timeout_s: float = 60) -> Command:
    return Command(words=[sys.executable, "-I", "-c", code, *words], source=work, work=work, timeout_s=timeout_s)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in {"Z", "X"}
    except OSError:
        return False


def contents(folder: Path) -> list[Path]:
    return list(folder.iterdir())


def pids(file: Path) -> list[int]:
    return [int(line) for line in file.read_text().split()] if file.exists() else []


async def test_a_program_gets_none_of_our_environment_no_input_and_a_group_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "ours")
    monkeypatch.setenv("BODY_BROKER_SECRET_KEY", "ours")
    code = "import json, os, sys; print(json.dumps([dict(os.environ), sys.stdin.read(), os.getcwd(), os.getpgid(0) == os.getpid()]))"

    ended = await run(python(tmp_path, code))

    environment, read, folder, leads = json.loads(ended.output)
    assert set(environment) - {"LC_CTYPE"} == {"PATH", "HOME", "TMPDIR", "LANG"}
    assert (read, folder, leads) == ("", str(tmp_path), True)
    assert (ended.code, ended.why) == (0, None)


async def test_a_program_runs_within_its_bounds(tmp_path: Path) -> None:
    code = """
import json, resource as r
print(json.dumps([r.getrlimit(x)[1] for x in (r.RLIMIT_CORE, r.RLIMIT_CPU, r.RLIMIT_NOFILE, r.RLIMIT_FSIZE)]))
"""
    ended = await run(python(tmp_path, code, timeout_s=30))
    assert json.loads(ended.output) == [0, 31, 1024, 256 * 1024**2]


async def test_words_of_a_command_reach_no_shell(tmp_path: Path) -> None:
    nasty = ["$(touch x)", "; touch x", "`touch x`", "-v", "a\nb"]
    ended = await run(python(tmp_path, "import json, sys; print(json.dumps(sys.argv[1:]))", *nasty))
    assert json.loads(ended.output) == nasty
    assert not contents(tmp_path)


async def test_past_its_time_the_whole_group_is_killed_and_what_it_said_is_kept(tmp_path: Path, clock: Clock) -> None:
    said = "print('found one', flush=True)\n"
    running = asyncio.create_task(run(python(tmp_path, said + FORKS, str(tmp_path / "pids"))))
    await wait_until(lambda: len(pids(tmp_path / "pids")) == 2, "both processes run")
    clock.move(61)
    ended = await running
    assert (ended.why, ended.output.strip()[:9], ended.code) == ("timed out", b"found one", -signal.SIGKILL)
    both = pids(tmp_path / "pids")
    assert len(both) == 2
    await wait_until(lambda: not any(map(alive, both)), "both processes are gone")


async def test_cancelled_the_whole_group_is_killed(tmp_path: Path) -> None:
    task = asyncio.create_task(run(python(tmp_path, FORKS, str(tmp_path / "pids"))))
    await wait_until(lambda: len(pids(tmp_path / "pids")) == 2, "both processes run")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await wait_until(lambda: not any(map(alive, pids(tmp_path / "pids"))), "both processes are gone")


async def test_a_program_that_says_too_much_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(programs, "_OUTPUT_BYTES_MAX", 100_000)
    ended = await run(python(tmp_path, "import sys\nwhile True: sys.stdout.write('x' * 1000)"))
    assert (ended.why, ended.code) == ("too much output", -signal.SIGKILL)
    assert len(ended.output) <= 100_000


async def test_a_program_that_is_not_there_ends_with_an_error_code(tmp_path: Path) -> None:
    ended = await run(Command(words=["/no/such/program"], source=tmp_path, work=tmp_path, timeout_s=10))
    assert ended.code != 0
    assert ended.output == b""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a child of its parent's death")
def test_a_program_dies_with_the_process_that_runs_it(tmp_path: Path) -> None:
    holds = f"""
import asyncio, sys
from pathlib import Path
from mcp_servers.cybersecurity.programs import Command, run
work = Path({str(tmp_path)!r})
code = "import os, sys, time; open(sys.argv[1], 'w').write(str(os.getpid())); time.sleep(600)"
words = [sys.executable, "-I", "-c", code, str(work / "pids")]
asyncio.run(run(Command(words=words, source=work, work=work, timeout_s=600)))
"""
    hub = subprocess.Popen([sys.executable, "-c", holds], env={"PATH": os.defpath})
    wait_until_sync(lambda: pids(tmp_path / "pids"), "the program runs")
    hub.send_signal(signal.SIGKILL)
    hub.wait()
    wait_until_sync(lambda: not alive(pids(tmp_path / "pids")[0]), "it died too")


def test_a_bwrap_that_makes_no_box_here_is_not_used() -> None:
    assert shutil.which("bwrap") is not None, "the fixture's is there and does not work"
    assert programs.isolation() == "rlimit"


def test_a_box_shows_what_is_needed_and_lets_only_the_work_folder_be_written(tmp_path: Path) -> None:
    engine = tmp_path / "real" / "engine"
    engine.parent.mkdir()
    engine.write_text("")
    (tmp_path / "link").symlink_to(engine)
    command = Command(
        words=["x"], source=tmp_path / "source", work=tmp_path / "work", needs=[tmp_path / "link"], timeout_s=1
    )

    words = programs.boxed("bwrap", command)

    assert {"--unshare-all", "--die-with-parent"} <= set(words)
    pairs = {(word, words[n + 1]) for n, word in enumerate(words) if word.startswith("--") and n + 1 < len(words)}
    assert {place for option, place in pairs if option == "--bind"} == {str(tmp_path / "work")}
    shown = {place for option, place in pairs if option == "--ro-bind-try"}
    assert {str(tmp_path / "source"), str(engine.parent)} <= shown
    assert not {"/", "/home", "/root", "/etc", str(tmp_path)} & shown
    at = words.index("--symlink")
    assert words[at + 1 : at + 3] == [str(engine), str(tmp_path / "link")]
