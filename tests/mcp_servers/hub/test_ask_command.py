"""`ask` as a person meets it: with an engine, without one, at a terminal and in a pipe, and what it says when it is wrong."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import AsyncGenerator, Iterator
from pathlib import Path

import pytest

from body_broker.storage import embedded
from tests.components import scratch_dir
from tests.counterparts.faultwall.wall import MODEL, FaultWall, Reply, Tool, fault_wall
from tests.mcp_servers.hub.terminal import at_terminal
from tests.mcp_servers.hub.test_clients import HUB, run
from tests.waiting import wait_until, wait_until_sync

SAID = "The Tallyman's office."
PATIENT = "patient.toml"


@pytest.fixture
async def wall() -> AsyncGenerator[FaultWall]:
    async with fault_wall("vllm") as found:
        yield found


@pytest.fixture(scope="module")
def data_dir() -> Iterator[Path]:
    """A data dir whose stores stay up between the commands of this file."""
    folder = Path(tempfile.mkdtemp(prefix="body-broker-ask-", dir=scratch_dir()))
    embedded.start(folder)
    (folder / PATIENT).write_text("[engines.silver]\nttft_s = 60\nstall_s = 60\n", encoding="utf-8")
    yield folder
    embedded.release(folder)
    wait_until_sync(lambda: embedded.status(folder).keeper_pid is None, "the keeper ends")
    shutil.rmtree(folder)


async def ask(*command: str, data_dir: Path, **env: str) -> tuple[int, str, str]:
    return await run(HUB, "ask", *command, "--data-dir", str(data_dir), **patient(data_dir), **env)


def patient(data_dir: Path) -> dict[str, str]:
    """The setting by which no engine is given up because this machine is busy."""
    return {"BODY_BROKER_MODELS": str(data_dir / PATIENT)}


async def test_a_pipe_gets_the_answer_and_a_person_how_it_came_about(data_dir: Path, wall: FaultWall) -> None:
    wall.say("vllm", Reply(calls=(Tool("whoami"),)), Reply(text=SAID, usage=(40, 6, 0)))
    code, out, err = await ask(
        *("Who audits the cemetery?", "--tools", "whoami", "--persona", "support"),
        data_dir=data_dir,
        BODY_BROKER_SILVER_URL=wall.url["vllm"],
    )
    assert (code, out) == (0, f"{SAID}\n"), err
    lines = err.splitlines()
    assert lines[:2] == ["· goes to silver: interactive, with tools", "· calls whoami"]
    facts = dict(line.split(maxsplit=1) for line in lines if not line.startswith("·"))
    assert facts["from"] == f"model, by silver ({MODEL}) of silver"
    assert "tier" not in facts, "it was said before"
    assert facts["tool"].startswith("whoami: ok, ")
    assert "first words after" in facts["time"]
    assert facts["cost"].startswith("$0 for ")
    roles = [message["role"] for message in wall.asked("vllm")[0].body["messages"]]
    assert roles == ["system", "user"], "the persona stands before the question"


async def test_a_collector_that_is_down_is_told_in_one_line(data_dir: Path, wall: FaultWall) -> None:
    wall.say("vllm", Reply(text=SAID))
    code, out, err = await ask(
        "Who?",
        data_dir=data_dir,
        BODY_BROKER_SILVER_URL=wall.url["vllm"],
        BODY_BROKER_OTLP_URL="http://127.0.0.1:1",
        BODY_BROKER_SILVER_MODEL="",
    )
    assert (code, out) == (0, f"{SAID}\n"), err
    assert err.count("traces_not_sent") == 1, err
    for theirs in ("opentelemetry", "ransient", "Connection", "Traceback"):
        assert theirs not in err


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (("--budget-ms", "-1"), "The question does not fit: --budget-ms: Input should be greater than 0."),
        (("--max-tokens", "0"), "The question does not fit: --max-tokens: Input should be greater"),
        (("--model", "gpt-2"), "Use one of: auto, gold, silver."),
        (("--npc", "mara", "--budget-ms", "0"), "The question does not fit: --budget-ms: "),
    ],
)
async def test_what_is_wrong_is_told_in_the_command_s_own_options(
    data_dir: Path, given: tuple[str, ...], told: str
) -> None:
    code, out, err = await ask("Who?", *given, data_dir=data_dir, BODY_BROKER_SILVER_URL="http://127.0.0.1:1")
    assert (code, out) == (1, "")
    assert told in err
    for theirs in ("latency_budget_ms", "max_tokens", "generate", "Value error"):
        assert theirs not in err


async def test_a_terminal_sees_the_words_as_they_come(data_dir: Path, wall: FaultWall) -> None:
    wall.say("vllm", Reply(pieces=("The Tally", "man", "'s", " o", "ff", "ic", "e", "."), gap_s=0.4))
    command = ("ask", "Who?", "--data-dir", str(data_dir))
    async with at_terminal(*command, BODY_BROKER_SILVER_URL=wall.url["vllm"], **patient(data_dir)) as terminal:
        await terminal.sees("The Tally")
        assert wall.inside["vllm"] == 1, "it is still being said"
        assert await terminal.ends() == 0
    assert terminal.said.count(SAID) == 1


async def test_a_terminal_sees_that_words_are_taken_back(data_dir: Path, wall: FaultWall) -> None:
    wall.say("vllm", Reply(text=SAID, fault="cut"))
    command = ("ask", "Who?", "--data-dir", str(data_dir))
    async with at_terminal(*command, BODY_BROKER_SILVER_URL=wall.url["vllm"], **patient(data_dir)) as terminal:
        await terminal.sees("· what it said so far is taken back")
        assert await terminal.ends() == 2
    assert terminal.said.index("taken back") < terminal.said.index("This text was not written by one.")


async def test_who_interrupts_it_frees_the_engine(data_dir: Path, wall: FaultWall) -> None:
    wall.always["vllm"] = Reply(pieces=("drip ",) * 1_000, gap_s=0.05)
    command = ("ask", "Who?", "--budget-ms", "60000", "--data-dir", str(data_dir))
    async with at_terminal(*command, BODY_BROKER_SILVER_URL=wall.url["vllm"], **patient(data_dir)) as terminal:
        await terminal.sees("drip")
        terminal.interrupts()
        assert await terminal.ends() == 130
    assert "Traceback" not in terminal.said
    await wait_until(lambda: wall.left["vllm"] == 1, "the engine sees that nobody waits")


async def test_without_an_engine_it_shows_every_step_down_to_the_fixed_text(data_dir: Path) -> None:
    code, out, err = await ask("Who audits the cemetery?", data_dir=data_dir)
    assert code == 2, "a script can tell it from an answer"
    assert out == "No model could answer. This text was not written by one.\n"
    steps = [line for line in err.splitlines() if line.startswith("step")]
    assert len(steps) == 1
    assert steps[0].startswith("step   without an address: silver, silver-small, openai, ")
    assert steps[0].endswith(", anthropic, anthropic-large")
    assert "from   template, by no model" in err
    assert "BODY_BROKER_SILVER_URL" in err
    assert "Nothing goes on with it." in err


async def test_a_question_for_experts_is_answered_with_its_job_and_how_to_see_it(
    data_dir: Path, wall: FaultWall
) -> None:
    issued = ("token", "issue", "--person", "dora", "--role", "designer", "--data-dir", str(data_dir))
    assert (await run(HUB, *issued))[0] == 0
    env = {"BODY_BROKER_BRONZE_URL": wall.url["vllm"]}
    code, out, err = await ask("Draft it.", "--sla", "async", "--as", "person:dora", data_dir=data_dir, **env)
    assert code == 0, err
    told, shown = err.splitlines()
    assert told == "· goes to bronze: async"
    assert shown.startswith("job    body-broker jobs wait job_")
    assert shown.endswith(" --as person:dora")
    assert shown.split()[4] in out
    code, out, err = await run(HUB, *shown.split()[2:], "--for", "0", "--data-dir", str(data_dir), **env)
    assert (code, out.split()[0]) == (2, shown.split()[4]), err


async def test_who_may_have_no_jobs_is_told_who_may(data_dir: Path, wall: FaultWall) -> None:
    code, out, err = await ask(
        "Draft it.", "--sla", "async", data_dir=data_dir, BODY_BROKER_BRONZE_URL=wall.url["vllm"]
    )
    assert (code, out) == (1, "")
    routed, message, step = err.splitlines()
    assert routed == "· goes to bronze: async"
    assert "long-running-forbidden" in message
    assert "--as person:NAME" in step


async def test_a_step_down_is_said_once_and_in_words(data_dir: Path, wall: FaultWall) -> None:
    wall.say("vllm", Reply(text=SAID, fault="cut"))
    code, out, err = await ask("Who?", data_dir=data_dir, BODY_BROKER_SILVER_URL=wall.url["vllm"])
    assert code == 2
    assert out == "No model could answer. This text was not written by one.\n"
    steps = [line for line in err.splitlines() if not line.startswith("note")]
    assert steps[:2] == ["· goes to silver: interactive", "· not silver: its answer broke off"]
    assert sum("not silver:" in line for line in steps) == 1
    assert steps[2].startswith("step   without an address: silver-small, openai"), "what was never asked comes last"
    assert "again" not in err
    assert "silver: its answer broke off." in err


async def test_a_program_gets_one_object(data_dir: Path, wall: FaultWall) -> None:
    wall.say("vllm", Reply(text=SAID), Reply(fault="failed"))
    env = {"BODY_BROKER_SILVER_URL": wall.url["vllm"]}
    code, out, err = await ask("Who?", "--json", data_dir=data_dir, **env)
    found = json.loads(out)
    assert (code, err) == (0, "")
    assert (found["content"], found["tier"], found["engine"], found["source"]) == (SAID, "silver", "silver", "model")
    code, out, _ = await ask("Who?", "--json", data_dir=data_dir, **env)
    assert code == 2
    assert {"engine": "silver", "reason": "failed"} in json.loads(out)["fallbacks"]


async def test_gold_without_an_engine_shows_every_step_down_too_and_how_to_set_one_up(data_dir: Path) -> None:
    code, out, err = await ask("hello", "--sla", "real-time", "--max-tokens", "8", data_dir=data_dir)
    assert (code, out) == (1, "")
    lines = err.splitlines()
    assert lines[0].startswith("· goes to gold: real-time")
    assert lines[1].startswith("step   without an address: gold, gold-small, silver, ")
    assert "No engine is configured" in err
    assert "again" not in err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("--npc osric_vane --model gold", "--model: not with --npc"),
        ("--player anna", "--player: only with --npc"),
        ("--npc nobody_at_all", "There is no npc"),
        ("--npc nobody_at_all", "`body-broker world load`"),
        ("--max-tokens -1", "--max-tokens: Input should be"),
        ("--as person:anna", "default-deny:draft"),
    ],
)
async def test_what_it_cannot_do_is_said_in_two_lines(data_dir: Path, options: str, said: str) -> None:
    code, out, err = await ask("Hello?", *options.split(), data_dir=data_dir)
    assert (code, out) == (1, "")
    assert said in err
    assert len(err.splitlines()) == 2
