"""Who is asked in which order: whoever may be at work on it first, who failed least next; endpoints that answer later are waited for."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from decimal import Decimal

import pytest

from body_broker.work.parking import Park
from body_broker.work.run import Run
from tests.counterparts.faultwall.wall import Reply
from tests.mcp_servers.hub.conftest import settings_for
from tests.tiers.asking import MOOD
from tests.tiers.bronze.office import ANNA, PRICE, Office, office
from tests.tiers.bronze.test_runner import failed_once
from tests.waiting import wait_until
from tiers.bronze.asking import MONEY
from tiers.bronze.calls import CallStore
from tiers.bronze.model import Budget, Question
from tiers.catalogue import EngineSpec
from tiers.faults import EngineFault
from tiers.model import Usage
from tiers.wire.base import Ask, Completion

__all__ = ["office", "settings_for"]

_BLOCKED = """
SELECT pid FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE 'SELECT true FROM work%' AND datname = current_database()
"""


@dataclass
class Later:
    """An endpoint that answers later: what it was asked, and what it says when it is looked at again."""

    calls: CallStore
    says: list[Completion | EngineFault] = field(default_factory=list[Completion | EngineFault])
    asked: list[Ask] = field(default_factory=list[Ask])

    async def answer(self, run: Run, question: Question, spec: EngineSpec, ask: Ask) -> Completion:
        rows = await self.calls.rows_of(question.job, question.turn)
        mine = [row for row in rows if row.engine == spec.name and row.open]
        key = f"expert:{question.job}"
        if not mine:
            self.asked.append(ask)
            async with run.fenced() as connection:
                await self.calls.begin(
                    connection,
                    question.job,
                    question.turn,
                    len(rows) + 1,
                    engine=spec.name,
                    model=None,
                    due_in_s=60,
                    output="s3://bucket/key",
                )
            raise Park(key, wake_in_s=600, message="It is asked.")
        if not self.says:
            raise Park(key, wake_in_s=600)
        said = self.says.pop(0)
        async with run.fenced() as connection:
            if isinstance(said, EngineFault):
                await self.calls.failed(connection, mine[0], said.reason)
            else:
                await self.calls.answered(connection, mine[0], said.usage, spec.price)
        if isinstance(said, EngineFault):
            raise said
        return said


@pytest.fixture
def later(office: Office) -> Later:
    """The endpoint of models.toml, before the local engine."""
    found = Later(CallStore(office.pool))
    engines = dict(office.catalogue.engines)
    engines["sagemaker"] = replace(engines["sagemaker"], url="sagemaker://experts")
    office.catalogue = replace(office.catalogue, engines=engines)
    office.endpoint = found
    return found


def whole(text: str) -> Completion:
    return Completion(text, "stop", usage=Usage(9, 3))


async def lies(office: Office, job: str) -> None:
    """The job is run until it lies down."""
    async with office.process("A"):
        await office.ends(job, "waiting")


async def woken(office: Office, job: str) -> None:
    await office.pool.execute("SELECT work_wake($1)", f"expert:{job}")


async def test_an_endpoint_is_asked_first_and_holds_no_worker_while_it_thinks(office: Office, later: Later) -> None:
    job = await office.submit()
    await lies(office, job)
    item = await office.item(job)
    assert (item.waits_for, item.attempts, item.progress["message"]) == (f"expert:{job}", 0, "It is asked.")

    later.says.append(whole("Orm."))
    await woken(office, job)
    found = await office.done(job)

    assert found["answers"] == ["Orm."]
    assert (found["made"]["engines"], found["made"]["prompt_tokens"]) == (["sagemaker"], 9)
    assert len(later.asked) == 1
    assert office.wall.asked("vllm") == []
    assert later.asked[0].model == "", "the container takes its own"


async def test_woken_for_nothing_it_is_not_asked_again_and_nobody_else_is(office: Office, later: Later) -> None:
    job = await office.submit()
    for _ in range(3):
        await lies(office, job)
        await woken(office, job)
    await lies(office, job)

    assert len(later.asked) == 1
    assert office.wall.asked("vllm") == []


async def test_an_endpoint_that_failed_is_not_asked_again_before_the_others(office: Office, later: Later) -> None:
    job = await office.submit(follow_ups=("More.",))
    await lies(office, job)
    later.says.append(EngineFault("failed"))
    await woken(office, job)

    # The worker dies while the next engine is asked: whoever takes over does not begin with the endpoint again.
    office.wall.fault("vllm", "silent")
    async with office.process("A") as process:
        await wait_until(lambda: office.wall.inside["vllm"], "the next is asked")
        process.kill()
        await wait_until(process.task.done, "the worker is dead")
    office.wall.fault("vllm", None)
    office.wall.say("vllm", Reply(text="Orm."))
    await office.lapse(job)
    await lies(office, job)

    rows = [(row.engine, row.state) for row in await office.rows(job, 1)]
    assert rows == [("sagemaker", "failed"), ("bronze", "lost"), ("bronze", "answered")]
    assert [row.engine for row in await office.rows(job, 2)] == ["sagemaker"], "the next question begins anew"
    later.says.append(whole("More of it."))
    await woken(office, job)

    found = await office.done(job)

    assert found["answers"] == ["Orm.", "More of it."]
    assert [(f["engine"], f["reason"]) for f in found["made"]["fallbacks"]] == [
        ("sagemaker", "failed"),
        ("bronze", "reset"),
    ]


async def test_a_late_answer_that_does_not_hold_is_followed_by_the_next_engine(office: Office, later: Later) -> None:
    job = await office.submit(schema=MOOD)
    await lies(office, job)
    later.says.append(whole("no json"))
    await woken(office, job)

    found = await office.done(job)

    assert found["made"]["engines"] == ["bronze"]
    first, _ = await office.rows(job)
    assert (first.state, first.reason, first.prompt_tokens) == ("failed", "schema", 9)


@pytest.mark.parametrize(
    ("model", "asked"), [("bronze-backup", "bronze-backup"), ("bronze", "bronze"), ("auto", "bronze")]
)
async def test_an_engine_that_is_named_is_the_only_one_and_a_tier_s_name_stands_for_all(
    office: Office, model: str, asked: str
) -> None:
    office.sets("bronze", "bronze-backup")

    assert (await office.done(await office.submit(model=model)))["made"]["engines"] == [asked]


async def test_a_named_engine_that_fails_is_followed_by_nobody(office: Office) -> None:
    office.sets("bronze", "bronze-backup")
    office.wall.fault("trtllm", "failed")
    job = await office.submit(model="bronze-backup", attempts_max=1)
    async with office.process():
        item = await office.ends(job, "failed")

    assert item.error["engines"] == ["bronze-backup: failed"]
    assert office.wall.asked("vllm") == []


async def test_what_an_answer_in_vain_has_cost_is_no_more_there_for_the_next_engine(office: Office) -> None:
    priced(office, "bronze", "bronze-backup")
    office.wall.say("vllm", Reply(text="no JSON", usage=(1_200, 60, 0)))
    job = await office.submit(schema=MOOD, budget=Budget(usd=2.0))
    async with office.process():
        await wait_until(lambda: failed_once(office, job), "nobody answered")

    assert office.wall.asked("trtllm") == [], "$1.32 of $2 were spent, and it may cost more than the rest"
    assert len(office.wall.asked("vllm")) == 1


async def test_a_budget_that_an_answer_in_vain_used_up_ends_the_job_and_is_told_as_one(office: Office) -> None:
    office.sets("openai-large")
    office.wall.say("openai", Reply(text="no JSON", usage=(1_200, 60, 0)))
    job = await office.submit(schema=MOOD, budget=Budget(usd=2.0))
    async with office.process():
        await wait_until(lambda: failed_once(office, job), "nobody answered")
        await office.now(job)
        item = await office.ends(job, "failed")

    assert (item.attempts, item.error["budget"]) == (2, "usd")
    assert len(office.wall.asked("openai")) == 1


async def test_without_money_a_job_waits_whatever_failed_before(office: Office) -> None:
    office.sets("openai-large")
    office.wall.fault("openai", "failed")
    job = await office.submit()
    async with office.process():
        await wait_until(lambda: failed_once(office, job), "nobody answered")
    poor = replace(office.catalogue.caps, askers={ANNA: Decimal("0.01")})
    office.catalogue = replace(office.catalogue, caps=poor)
    await office.now(job)
    async with office.process("poor"):
        item = await office.ends(job, "waiting")

    assert item.waits_for == MONEY


def priced(office: Office, *names: str) -> None:
    """These engines have an address, and their tokens a price."""
    office.sets(*names)
    engines = office.catalogue.engines
    costly = {name: replace(engines[name], price=PRICE) for name in names}
    office.catalogue = replace(office.catalogue, engines={**engines, **costly})


async def test_where_no_expert_has_an_address_the_job_says_what_to_set(office: Office) -> None:
    office.sets()
    job = await office.submit()
    async with office.process():
        item = await office.ends(job, "failed")

    assert (item.error["code"], item.error["retryable"]) == ("not_configured", False)
    assert "BODY_BROKER_BRONZE_URL" in item.error["next_step"]


async def test_an_answer_whose_recording_is_cut_is_recorded_again_and_not_asked_for_again(office: Office) -> None:
    job = await office.submit()
    office.wall.say("vllm", Reply(text="Orm.", first_after_s=1.0))
    async with office.process("A"):
        await wait_until(lambda: office.wall.inside["vllm"], "it is asked")
        async with office.pool.acquire() as connection, connection.transaction():
            await connection.execute("SELECT FROM work WHERE id = $1 FOR UPDATE", job)

            async def blocked() -> int | None:
                return await office.pool.fetchval(_BLOCKED)

            pid = await wait_until(blocked, "the recording waits for the job's row")
            await connection.execute("SELECT pg_terminate_backend($1::integer)", pid)
        item = await office.ends(job)

    assert item.result["answers"] == ["Orm."]
    assert len(office.wall.asked("vllm")) == 1
    assert [row.state for row in await office.rows(job)] == ["answered"]
