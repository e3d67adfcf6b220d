"""`jobs` as a person meets it: asked for, listed, shown, stopped and waited for, and what it says when it is wrong."""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import AsyncGenerator, Iterator
from pathlib import Path

import pytest

from body_broker.storage import embedded
from tests.components import scratch_dir
from tests.counterparts.faultwall.wall import FaultWall, Reply, fault_wall
from tests.mcp_servers.hub.test_clients import HUB, run
from tests.waiting import wait_until_sync

NOWHERE = "http://127.0.0.1:9"
SAID = "The quay is flooded, and nobody comes."


@pytest.fixture
async def wall() -> AsyncGenerator[FaultWall]:
    async with fault_wall("vllm") as found:
        yield found


@pytest.fixture(scope="module")
def data_dir() -> Iterator[Path]:
    """A data dir whose stores stay up between the commands of this file."""
    folder = Path(tempfile.mkdtemp(prefix="body-broker-jobs-", dir=scratch_dir()))
    embedded.start(folder)
    yield folder
    embedded.release(folder)
    wait_until_sync(lambda: embedded.status(folder).keeper_pid is None, "the keeper ends")
    shutil.rmtree(folder)


async def jobs(*command: str, data_dir: Path, who: str = "bronze", url: str = NOWHERE) -> tuple[int, str, str]:
    given = ("--as", who, "--data-dir", str(data_dir))
    return await run(HUB, "jobs", *command, *given, BODY_BROKER_BRONZE_URL=url)


async def submitted(data_dir: Path, *more: str) -> str:
    code, out, err = await jobs("submit", "Write of the flood.", *more, data_dir=data_dir)
    assert code == 0, err
    return out.split()[0]


async def test_a_job_is_asked_for_listed_shown_and_stopped(data_dir: Path) -> None:
    code, out, err = await jobs("list", data_dir=data_dir, who="person:nobody")
    assert (code, out, err) == (0, "person:nobody has no jobs.\n", "")

    code, out, err = await jobs("submit", "Write of\nthe flood.", "--priority", "high", data_dir=data_dir)
    job_id = out.split()[0]
    assert (code, out) == (0, f"{job_id}  queued, the next to begin\n")
    assert err == f"· A hub that is up does it; where none is: body-broker jobs wait {job_id} --as tier:bronze\n"
    code, out, _ = await jobs("submit", "Another.", "--title", "Later", "--json", data_dir=data_dir)
    later = json.loads(out)
    assert (code, later["status"], later["queue_position"]) == (0, "queued", 1)

    _, out, _ = await jobs("list", "--state", "queued", data_dir=data_dir)
    lines = [re.sub(r"\d{4}-\d\d-\d\d \d\d:\d\d", "THEN", line) for line in out.splitlines()]
    assert lines == [f"{later['job_id']}  queued     THEN  Later", f"{job_id}  queued     THEN  Write of the flood."]

    _, out, _ = await jobs("show", later["job_id"], data_dir=data_dir)
    assert out.splitlines()[1:] == ["now    queued, 1 before it", "cost   $0"]
    code, out, _ = await jobs("cancel", job_id, data_dir=data_dir)
    assert code == 0
    assert out.splitlines()[0].split()[:2] == [job_id, "cancelled"]
    _, out, _ = await jobs("show", job_id, "--json", data_dir=data_dir)
    assert json.loads(out)["state"] == "cancelled"
    code, out, _ = await jobs("wait", job_id, data_dir=data_dir)
    assert code == 1, "it has ended, and nothing came of it"
    await jobs("cancel", later["job_id"], data_dir=data_dir)


async def test_who_waits_gets_what_came_of_it(data_dir: Path, wall: FaultWall) -> None:
    wall.say("vllm", Reply(text=SAID, usage=(40, 9, 0)))
    code, out, err = await jobs("submit", "Write of the flood.", "--wait", data_dir=data_dir, url=wall.url["vllm"])
    assert code == 0, (out, err)
    job_id = err.splitlines()[0].removeprefix("· ")
    lines = out.splitlines()
    assert lines[0].split()[:2] == [job_id, "succeeded"]
    assert lines[-1] == SAID
    assert any(line.startswith("by     bronze (") for line in lines)
    assert "tokens 40 tokens read, 9 written" in lines

    code, out, _ = await jobs("wait", job_id, "--json", data_dir=data_dir)
    assert (code, json.loads(out)["result"]["content"]) == (0, SAID)


async def test_who_waits_no_longer_is_told_how_it_stands(data_dir: Path) -> None:
    job_id = await submitted(data_dir)
    code, out, _ = await jobs("wait", job_id, "--for", "0", data_dir=data_dir)
    assert code == 2
    assert "now    " in out
    await jobs("cancel", job_id, data_dir=data_dir)


async def test_who_waits_is_told_first_that_results_have_no_place(data_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    code, out, err = await run(
        *(HUB, "jobs", "submit", "x", "--wait", "--as", "bronze", "--data-dir", str(data_dir)),
        BODY_BROKER_BRONZE_URL=NOWHERE,
        BODY_BROKER_RESULTS=str(tmp_path / "file"),
    )
    assert (code, out) == (1, "")
    assert err.startswith("The directory of BODY_BROKER_RESULTS is not there, or a file is in the way.\n"), err


async def test_the_same_key_is_the_same_job_at_the_terminal_too(data_dir: Path) -> None:
    job_id = await submitted(data_dir, "--key", "k", "--budget-usd", "0.5")
    assert await submitted(data_dir, "--key", "k", "--budget-usd", "0.5") == job_id
    code, _, err = await jobs("submit", "Something else.", "--key", "k", data_dir=data_dir)
    assert code == 1
    assert err.startswith("This --key stands for what was asked for in other words.\n")
    await jobs("cancel", job_id, data_dir=data_dir)


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (("submit", "x", "--budget-tokens", "0"), "The job does not fit: --budget-tokens: Input should be greater"),
        (("submit", "x", "--max-tokens", "200000"), "The job does not fit: --max-tokens: Input should be less"),
        (("submit", "x", "--role", "bard"), "There is no role of that name here.\nUse one of: deepseek-v3-"),
        (("submit", "x", "--model", "bard"), "There is no model of that name here.\nUse one of: bronze."),
        (("wait", "apr_of_nobody"), "This is a request to people, not a job."),
    ],
)
async def test_what_is_wrong_is_said_in_the_command_s_own_words(
    data_dir: Path, command: tuple[str, ...], words: str
) -> None:
    code, out, err = await jobs(*command, data_dir=data_dir)
    assert (code, out) == (1, "")
    assert err.startswith(words), err


async def test_somebody_else_s_job_is_told_as_one_that_there_never_was(data_dir: Path) -> None:
    job_id = await submitted(data_dir)
    for verb in ("show", "cancel", "wait"):
        theirs = await jobs(verb, job_id, data_dir=data_dir, who="person:boris")
        assert theirs == await jobs(verb, "job_of_nobody", data_dir=data_dir, who="person:boris")
        assert (theirs[0], theirs[2].splitlines()[0]) == (1, "You have no work by that id.")
    await jobs("cancel", job_id, data_dir=data_dir)


async def test_without_an_expert_it_says_which_setting_names_one(data_dir: Path) -> None:
    code, _, err = await run(HUB, "jobs", "submit", "x", "--as", "bronze", "--data-dir", str(data_dir))
    assert code == 1
    assert "BODY_BROKER_BRONZE_URL" in err
