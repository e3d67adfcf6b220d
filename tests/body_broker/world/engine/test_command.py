"""`body-broker engine check` and `engine wire` as a person types them."""

from __future__ import annotations

import asyncio
import os
import shlex
import sys
from pathlib import Path

from body_broker.storage.redis import Redis
from body_broker.world.engine.messages import READ_KEY
from tests.body_broker.world.engine.outside import COUNTERPART
from tests.kill.harness import PROGRAM
from tests.waiting import wait_until_sync


async def run(*arguments: str) -> tuple[int | None, str]:
    process = await asyncio.create_subprocess_exec(
        PROGRAM, "engine", *arguments, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    out, _ = await process.communicate()
    return process.returncode, out.decode()


async def test_an_engine_that_keeps_its_promises_passes_with_exit_code_0() -> None:
    code, said = await run(
        "check", "--command", f"exec {shlex.join([PROGRAM, 'engine', 'wire', '--redis'])} {{redis_url}}"
    )

    assert code == 0, said
    assert said.rstrip().endswith(" passed, 0 failed")
    assert "FAIL" not in said


async def test_an_engine_that_breaks_one_fails_with_exit_code_1_and_the_reason(tmp_path: Path) -> None:
    # It knows no heal.
    broken = COUNTERPART.read_text("utf-8").replace('"heal": Game.heal, ', "")
    assert broken != COUNTERPART.read_text("utf-8")
    program = tmp_path / "engine.py"
    program.write_text(broken, "utf-8")
    code, said = await run(
        "check", "--patience", "1", "--command", f"exec {shlex.join([sys.executable, str(program)])} {{redis_url}}"
    )

    assert code == 1
    assert "FAIL  applies            it was rejected by unknown_operation, not applied" in said
    assert said.rstrip().endswith("23 passed, 1 failed")


async def test_an_engine_that_does_not_come_is_told_at_once() -> None:
    code, said = await run("check", "--start", "0.2", "--command", "exit 3")

    assert code == 1
    assert "FAIL  hello              waited 0.2 s for hello" in said
    assert "exit code 3" in said
    assert "23 not played" in said


async def test_what_the_command_left_in_the_background_is_ended_too(tmp_path: Path) -> None:
    noted = tmp_path / "pid"
    await run("check", "--start", "0.2", "--command", f"sleep 600 & echo $! > {shlex.quote(str(noted))}; exit 0")
    pid = int(await asyncio.to_thread(noted.read_text))

    def is_gone() -> bool:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        return Path(f"/proc/{pid}/stat").read_text("utf-8").rpartition(")")[2].split()[0] == "Z"

    await asyncio.to_thread(wait_until_sync, is_gone, "the engine in the background is gone")


async def test_a_redis_that_a_hub_uses_is_left_alone(redis: Redis, redis_url: str) -> None:
    await redis.set(READ_KEY, b"[]")

    code, said = await run("check", "--redis", redis_url, "--start", "0.2")

    assert code == 1
    assert said.startswith("A hub keeps its world in this Redis")
    assert not await redis.exists("state-change")


async def test_a_redis_that_is_not_there_is_told_by_the_option_s_name() -> None:
    for command in ("check", "wire"):
        code, said = await run(command, "--redis", "redis://127.0.0.1:1")

        assert (code, "--redis" in said) == (1, True)
