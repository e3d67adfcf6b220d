"""Scans as durable work: handed over where they take long, one at a time for a repository, stopped, and begun again after a kill."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import pytest

from tests.kill.harness import Program
from tests.mcp_servers.cybersecurity.conftest import Guarded, OpenGuarded
from tests.mcp_servers.cybersecurity.repositories import BIND
from tests.mcp_servers.hub.conftest import SECRET, error_of
from tests.waiting import wait_until

pytestmark = [pytest.mark.requires("semgrep"), pytest.mark.requires("gitleaks")]


def pids(cue: Path) -> list[int]:
    file = cue.with_name(f"{cue.name}.pids")
    return [int(line) for line in file.read_text().split()] if file.exists() else []


def give(cue: Path) -> None:
    """Let the scans that wait go on."""
    cue.touch()


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


async def job(guarded: Guarded, job_id: str) -> Any:
    return await guarded.tell("get_job", {"id": job_id})


async def finished(guarded: Guarded, job_id: str) -> Any:
    async def ended() -> Any:
        found = await job(guarded, job_id)
        return found if found["finished_at"] else None

    return await wait_until(ended, "the job ends", timeout_s=120)


async def test_a_scan_that_takes_longer_answers_with_a_job_that_has_the_report(
    guarded_hub: OpenGuarded, waiting_gitleaks: Path, cue: Path
) -> None:
    async with guarded_hub(gitleaks=waiting_gitleaks) as guarded:
        await guarded.register("game")
        started = await guarded.tell("scan_codebase", {"repo_path": "game", "wait_s": 0.2})
        assert (started["status"], started["verdict"], started["scan_id"]) == ("running", None, None)
        assert f"get_job(id={started['job_id']})" in started["summary"]
        await wait_until(lambda: pids(cue), "the scanner waits")
        running = await job(guarded, started["job_id"])
        assert (running["state"], running["progress"]["message"]) == ("running", "gitleaks over 4 files")
        give(cue)

        done = await finished(guarded, started["job_id"])

        assert (done["state"], done["kind"]) == ("succeeded", "scan")
        assert (done["result"]["status"], done["result"]["verdict"]) == ("done", "findings")
        assert done["result"] == await guarded.tell("get_scan", {"scan_id": "game"})
        others = error_of(await guarded.call("get_job", {"id": started["job_id"]}, "person:eve", "security"))
        assert others["code"] == "not_found"


async def test_no_call_waits_longer_than_the_hub_says(guarded_hub: OpenGuarded) -> None:
    async with guarded_hub(works=False, scan_wait_s=0.2) as guarded:
        await guarded.register("game")
        started = await guarded.tell("scan_codebase", {"repo_path": "game", "wait_s": 600})
        assert started["status"] == "running"
        assert started["summary"].startswith("The scan waits for its turn and a worker as a job: get_job(id=")
        assert (await job(guarded, started["job_id"]))["state"] == "queued"


async def test_scans_run_one_at_a_time_and_wait_in_the_queue(
    guarded_hub: OpenGuarded, waiting_gitleaks: Path, cue: Path
) -> None:
    async with guarded_hub(gitleaks=waiting_gitleaks) as guarded:
        for name in ("game", "web"):
            await guarded.register(name)
        asked = ("game", "game/app", "web")
        jobs = [(await guarded.tell("scan_codebase", {"repo_path": each, "wait_s": 0}))["job_id"] for each in asked]
        await wait_until(lambda: pids(cue), "the first scans")
        assert [(await job(guarded, each))["state"] for each in jobs] == ["running", "queued", "queued"]
        give(cue)

        done = [await finished(guarded, each) for each in jobs]

        assert [each["state"] for each in done] == ["succeeded"] * 3
        assert [each["result"]["new"] for each in done] == [5, 2, 5]


async def test_the_same_again_is_the_job_that_is_open_and_too_many_are_refused(guarded_hub: OpenGuarded) -> None:
    async with guarded_hub(works=False, scan_wait_s=0.01) as guarded:
        for name in "abcdef":
            await guarded.register(name)

        async def ask(name: str, who: str = "person:sam", **more: Any) -> Any:
            return await guarded.tell("scan_codebase", {"repo_path": name, **more}, who)

        twice = await asyncio.gather(*(ask("a") for _ in range(4)))
        assert len({each["job_id"] for each in twice}) == 1
        others = [await ask("a", scanners=["semgrep"]), await ask("b"), await ask("c")]
        assert (await ask("a", scanners=["semgrep"]))["job_id"] == others[0]["job_id"]
        error = error_of(await guarded.call("scan_codebase", {"repo_path": "d"}))
        assert (error["code"], error["retry_after_s"]) == ("rate_limited", 30)
        late = (await ask("d", "person:ann"))["job_id"]
        order = await guarded.pool.fetch("SELECT id FROM work WHERE kind = 'scan' ORDER BY priority DESC, ordinal")
        assert [row["id"] for row in order][:2] == [twice[0]["job_id"], late], "who has fewer open comes first"
        await guarded.tell("cancel_job", {"id": others[0]["job_id"]})
        assert (await ask("d"))["status"] == "running"


async def test_callers_at_once_each_get_their_own_report(guarded: Guarded) -> None:
    for name in ("a", "b"):
        await guarded.register(name, {f"{name}.py": BIND})
    who = [(f"person:p{number}", "ab"[number % 2]) for number in range(6)]

    reports = await asyncio.gather(
        *(guarded.tell("scan_codebase", {"repo_path": name}, person) for person, name in who)
    )

    assert [r["repository"] for r in reports] == [name for _, name in who]
    assert len({r["scan_id"] for r in reports}) == 6


async def test_a_cancelled_scan_kills_its_scanner_and_keeps_nothing(
    guarded_hub: OpenGuarded, waiting_gitleaks: Path, cue: Path, tmp_path: Path
) -> None:
    async with guarded_hub(gitleaks=waiting_gitleaks) as guarded:
        await guarded.register("game")
        started = await guarded.tell("scan_codebase", {"repo_path": "game", "wait_s": 0})
        await wait_until(lambda: pids(cue), "the scanner waits")
        (pid,) = pids(cue)
        assert alive(pid)

        await guarded.tell("cancel_job", {"id": started["job_id"]})

        assert (await finished(guarded, started["job_id"]))["state"] == "cancelled"
        assert not alive(pid)
        assert list((tmp_path / "staging").glob("scan-*")) == []
        assert await guarded.pool.fetchval("SELECT count(*) FROM scan") == 0


async def test_whoever_waits_is_told_that_the_scan_was_cancelled(
    guarded_hub: OpenGuarded, waiting_gitleaks: Path, cue: Path
) -> None:
    async with guarded_hub(gitleaks=waiting_gitleaks) as guarded:
        await guarded.register("game")
        waiting = asyncio.create_task(guarded.call("scan_codebase", {"repo_path": "game"}))
        await wait_until(lambda: pids(cue), "the scanner waits")
        (listed,) = (await guarded.tell("list_jobs", {"state": "running"}))["items"]
        await guarded.tell("cancel_job", {"id": listed["id"]})
        assert error_of(await waiting)["code"] == "conflict"


async def test_a_repository_that_is_removed_meanwhile_is_not_found(guarded_hub: OpenGuarded) -> None:
    async with guarded_hub(works=False, scan_wait_s=0.1) as guarded:
        await guarded.register("game")
        started = await guarded.tell("scan_codebase", {"repo_path": "game"})
        await guarded.pool.execute("DELETE FROM repository")
    async with guarded_hub() as guarded:
        done = await finished(guarded, started["job_id"])
        assert (done["state"], done["error"]["code"]) == ("failed", "not_found")


async def test_a_scanner_past_its_time_is_said_and_the_scan_is_inconclusive(guarded_hub: OpenGuarded) -> None:
    async with guarded_hub(scan_timeout_s=0.01) as guarded:
        await guarded.register("quiet", {"a.py": "x = 1\n"})
        report = await guarded.tell("scan_codebase", {"repo_path": "quiet"})
    assert (report["verdict"], report["complete"]) == ("inconclusive", False)
    assert {s["name"]: s["status"] for s in report["scanners"]}["semgrep"] == "timed_out"
    assert report["summary"].startswith("Inconclusive: nothing was found, but not everything was looked at.")


@pytest.fixture
def worker_settings(database_url: str, redis_url: str, tmp_path: Path, waiting_gitleaks: Path) -> dict[str, str]:
    """Of a worker in a process of its own, beside the hub of the test."""
    return {
        "BODY_BROKER_DATABASE_URL": database_url,
        "BODY_BROKER_REDIS_URL": redis_url,
        "BODY_BROKER_SECRET_KEY": SECRET,
        "BODY_BROKER_DATA_DIR": str(tmp_path),
        "BODY_BROKER_EMBEDDINGS": "off",
        "BODY_BROKER_GITLEAKS": str(waiting_gitleaks),
        "BODY_BROKER_SCAN_RULES_DIR": str(tmp_path / "rules"),
        "BODY_BROKER_WORKER_LEASE_S": "1",
    }


async def test_a_scan_whose_worker_is_killed_is_begun_again_and_kept_once(
    guarded_hub: OpenGuarded, worker_settings: dict[str, str], cue: Path, tmp_path: Path
) -> None:
    async with guarded_hub(works=False) as guarded:
        await guarded.register("game")
        started = await guarded.tell("scan_codebase", {"repo_path": "game", "wait_s": 0})
        first = Program(["worker"], tmp_path / "first.log", worker_settings)
        await wait_until(lambda: pids(cue), "the first worker's scanner waits", timeout_s=120)
        (pid,) = pids(cue)
        first.process.kill()
        await first.ended()
        await wait_until(lambda: not alive(pid), "its scanner died with it")
        assert len(list((tmp_path / "staging").glob("scan-*"))) == 1, "a killed process removes nothing"
        second = Program(["worker"], tmp_path / "second.log", worker_settings)
        await wait_until(lambda: len(pids(cue)) == 2, "the second worker scans", timeout_s=120)
        assert len(list((tmp_path / "staging").glob("scan-*"))) == 1, "the first one's copy was swept"
        give(cue)

        done = await finished(guarded, started["job_id"])

        assert done["state"] == "succeeded"
        assert await guarded.pool.fetchval("SELECT count(*) FROM scan") == 1
        assert await guarded.pool.fetchval("SELECT count(*) FROM finding") == 5
        await second.stop()
    assert list((tmp_path / "staging").glob("scan-*")) == []
