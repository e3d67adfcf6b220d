"""Workers die at exact places of a job: no question is asked again whose answer is recorded, and nothing that must not be is done twice."""

from __future__ import annotations

from typing import Any

import pytest

from tests.counterparts.faultwall.wall import Reply, Seen, Tool
from tests.mcp_servers.hub.conftest import settings_for
from tests.tiers.bronze.office import LONG_S, Office, Process, office
from tests.waiting import wait_until
from tiers.bronze.model import Finished, Shaped
from tiers.bronze.model import Unfit as Useless
from tiers.cost import CostLedger
from tiers.counts import Counts

__all__ = ["office", "settings_for"]

ECHO, DRAFT = Tool("fx_echo", {"text": "the mill"}), Tool("fx_draft", {"text": "x"})


def dies_when_asked(office: Office, process: Process, *, time: int) -> None:
    """The worker dies while an engine has its question; the engine never answers that one."""
    counted: list[Seen] = []

    def answer(seen: Seen) -> Reply:
        counted.append(seen)
        if len(counted) == time:
            process.kill()
            return Reply(fault="silent")
        return Reply(text=f"Answer {len(counted)}.")

    office.wall.answers["vllm"] = office.wall.answers["openai"] = answer


async def test_killed_while_asked_it_is_asked_again_and_the_lost_asking_is_on_record(office: Office) -> None:
    job = await office.submit()
    async with office.process("A") as process:
        dies_when_asked(office, process, time=1)
        await wait_until(process.task.done, "the worker is dead")
    assert [row.state for row in await office.rows(job)] == ["invoking"]
    await office.lapse(job)

    found = await office.done(job)

    assert found["answers"] == ["Answer 2."]
    lost, answered = await office.rows(job)
    assert (lost.state, lost.reason, lost.maybe_spent, lost.cost) == ("lost", "reset", False, 0)
    assert (answered.state, answered.attempt) == ("answered", 2)
    assert found["made"]["fallbacks"] == [{"engine": "bronze", "reason": "reset"}]


async def test_what_a_killed_worker_asked_for_money_is_booked_as_spent_and_told_as_maybe(office: Office) -> None:
    office.sets("openai-large")
    job = await office.submit()
    async with office.process("A") as process:
        dies_when_asked(office, process, time=1)
        await wait_until(process.task.done, "the worker is dead")
    [row] = await office.rows(job)
    [reserved] = await office.pool.fetch("SELECT id, amount, expires_at - created_at AS lives FROM spend_reservation")
    assert row.reservation == reserved["id"]
    assert reserved["lives"].total_seconds() > (row.due_at - row.begun_at).total_seconds(), "it outlives the answer"
    await office.lapse(job)

    made = (await office.done(job))["made"]

    assert (made["cost_usd"], made["maybe_spent"]) == (None, True)
    assert await office.pool.fetchval("SELECT count(*) FROM spend_reservation") == 0
    everybody = await office.pool.fetchrow("SELECT reserved, spent, requests FROM spend_day WHERE asker = '*'")
    answered = (await office.rows(job))[1]
    assert everybody is not None
    assert answered.cost is not None
    assert (everybody["reserved"], everybody["spent"], everybody["requests"]) == (
        0,
        reserved["amount"] + answered.cost,
        2,
    )


async def test_killed_before_its_second_question_it_does_not_ask_the_first_again(office: Office) -> None:
    job = await office.submit(follow_ups=("More.",))
    async with office.process("A") as process:
        dies_when_asked(office, process, time=2)
        await wait_until(process.task.done, "the worker is dead")
    await office.lapse(job)

    found = await office.done(job)

    assert found["answers"] == ["Answer 1.", "Answer 3."]
    assert [m["content"] for m in office.sent()][1:] == ["Who built the mill?", "Answer 1.", "More."]


@pytest.mark.parametrize("tool", ["fx_wait", "fx_wait_effect"])
async def test_killed_in_a_call_that_may_be_repeated_it_makes_that_again_and_asks_nothing_again(
    office: Office, tool: str
) -> None:
    office.wall.say("vllm", Reply(calls=(ECHO, Tool(tool, {"text": "w"}))))
    office.wall.answers["vllm"] = lambda _: Reply(text="Done.")
    job = await office.submit(tools=("fx_echo", tool))
    async with office.process("A") as process:
        await wait_until(office.seen.started.is_set, "the tool is at it")
        process.kill()
        await wait_until(process.task.done, "the worker is dead")
    office.seen.release.set()
    await office.lapse(job)

    found = await office.done(job)

    assert found["made"]["tools"] == [{"name": "fx_echo", "outcome": "ok"}, {"name": tool, "outcome": "ok"}]
    assert office.seen.calls == ["fx_echo"], "the call before it was recorded"
    assert len(office.wall.asked("vllm")) == 2, "its answer was recorded before any tool was called"
    assert found["answers"] == ["Done."]


async def test_killed_in_a_call_that_must_not_be_repeated_a_person_settles_it(office: Office) -> None:
    office.wall.say("vllm", Reply(calls=(DRAFT,)))
    office.wall.answers["vllm"] = lambda _: Reply(text="Done.")
    job = await office.submit(tools=("fx_draft",))
    async with office.process("A") as process:
        dying = Dying(office, process)
        await wait_until(process.task.done, "the worker is dead")
        dying.stop()
    await office.lapse(job)
    async with office.process("B"):
        item = await office.ends(job, "unknown")

    assert item.open_effect == "tool 1.1"
    assert office.seen.calls == ["fx_draft"], "done once"
    assert len(office.wall.asked("vllm")) == 1


class Dying:
    """A worker dies at the very moment at which the fixture room's tool has done what it does."""

    def __init__(self, office: Office, process: Process) -> None:
        self._process, self._seen = process, office.seen
        seen_by = self

        class Calls(list[str]):
            def append(self, name: str, /) -> None:
                super().append(name)
                seen_by.kill(name)

        office.seen.calls = Calls()

    def kill(self, name: str) -> None:
        if name == "fx_draft":
            self._process.kill()

    def stop(self) -> None:
        self._seen.calls = list(self._seen.calls)


async def test_after_a_call_that_must_not_be_repeated_is_recorded_it_is_not_made_again(office: Office) -> None:
    office.wall.say("vllm", Reply(calls=(DRAFT,)))
    job = await office.submit(tools=("fx_draft",))
    async with office.process("A") as process:
        dies_when_asked(office, process, time=1)
        await wait_until(process.task.done, "the worker is dead")
    assert {"answer 1", "read 1", "tool 1.1"} == await office.steps(job)
    await office.lapse(job)

    found = await office.done(job)

    assert office.seen.calls == ["fx_draft"]
    assert found["made"]["tools"] == [{"name": "fx_draft", "outcome": "ok"}]
    assert found["answers"] == ["Answer 2."]


async def test_taint_from_a_tool_stands_after_a_restart(office: Office) -> None:
    office.wall.say("vllm", Reply(calls=(Tool("fx_outside", {"text": "seen"}),)))
    job = await office.submit(tools=("fx_outside",))
    async with office.process("A") as process:
        dies_when_asked(office, process, time=1)
        await wait_until(process.task.done, "the worker is dead")
    await office.lapse(job)

    assert (await office.done(job))["made"]["outside"] is True


async def test_killed_while_the_result_is_made_everything_before_it_stands(office: Office) -> None:
    made: list[Finished] = []

    async def shape(finished: Finished) -> Shaped:
        made.append(finished)
        if len(made) == 1:
            raise Useless("Too short.")
        if len(made) == 2:
            processes[0].kill()
        return Shaped(body={"answers": list(finished.answers)}, text="")

    processes: list[Process] = []
    office.shape = shape
    office.wall.say("vllm", Reply(text="A."), Reply(text="A longer one."))
    job = await office.submit()
    async with office.process("A") as process:
        processes.append(process)
        await wait_until(process.task.done, "the worker is dead")
    assert {"answer 1", "unfit 1", "answer 2"} == await office.steps(job)
    await office.lapse(job)

    found = await office.done(job)

    assert found["answers"] == ["A longer one."]
    assert len(office.wall.asked("vllm")) == 2
    assert made[1].answers == made[2].answers


async def test_a_worker_that_comes_back_after_it_was_replaced_writes_nothing_of_the_job(office: Office) -> None:
    job = await office.submit()
    office.wall.say("vllm", Reply(text="Late.", first_after_s=0.0), Reply(text="In time."))
    held: dict[str, Any] = {}

    def answer(_seen: Seen) -> Reply:
        return Reply(text="In time.") if held else held.setdefault("first", Reply(fault="silent"))

    office.wall.answers["vllm"] = answer
    office.wall._script.clear()  # pyright: ignore[reportPrivateUsage]
    async with office.process("A", lease_s=LONG_S, poll_s=LONG_S):
        await wait_until(lambda: office.wall.inside["vllm"], "A has asked")
        await office.lapse(job)
        async with office.process("B"):
            item = await office.ends(job)
        rows = await office.rows(job)

    assert item.result["answers"] == ["In time."]
    assert [row.state for row in rows] == ["lost", "answered"]
    assert await office.rows(job) == rows or [row.state for row in await office.rows(job)] == ["lost", "answered"]
    assert (await office.item(job)).result == item.result


async def test_money_of_a_stopped_worker_s_question_is_not_left_set_aside(office: Office) -> None:
    office.sets("openai-large")
    office.wall.fault("openai", "silent")
    job = await office.submit()
    async with office.process("A"):
        await wait_until(lambda: office.wall.inside["openai"], "it is asked")
    assert [row.state for row in await office.rows(job)] == ["lost"], "a worker that stops says what it leaves"
    item = await office.item(job)
    assert (item.state, item.attempts) == ("queued", 0)

    ledger = CostLedger(office.pool, office.catalogue.caps, Counts())
    assert all(figure.reserved_usd == 0 for figure in await ledger.figures())
