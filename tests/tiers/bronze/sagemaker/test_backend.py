"""Questions to an asynchronous endpoint, over the real work floor: one invocation at a time, whatever breaks; late answers are taken."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from body_broker.work import queue
from tests.counterparts.sagemaker import EXPIRED, Endpoint, Trick, said
from tests.tiers.bronze.sagemaker.studio import FAILURES, INPUT, NAME, OUTPUT, PAID, Studio
from tests.waiting import wait_until
from tiers.bronze.sagemaker.backend import MARGIN_S
from tiers.bronze.sagemaker.client import BEGUN_WITHIN_S, INLINE_BYTES_MAX, SENT_WITHIN_S
from tiers.bronze.sagemaker.faults import AwsFault
from tiers.bronze.sagemaker.messages import question_of
from tiers.bronze.sagemaker.places import Asking, Place
from tiers.model import Message
from tiers.wire.base import Ask

KAYA = {"text": "Kaya stands at the well.", "finish": "stop", "completion": 7}


async def test_a_job_waits_for_its_answer_without_a_worker_and_takes_it(experts: Studio) -> None:
    experts.model.gate.clear()
    async with experts.worker():
        job = await experts.submit()
        (row,) = await experts.parks(job, "invoked")
        asked = await experts.taken()
        experts.model.gate.set()
        assert await experts.ends(job) == KAYA
    asking = Asking(job, 1, 1)
    assert (row.output, row.failure) == (asked.output, asked.failure)
    assert row.output == f"{OUTPUT}/jobs/{asking.filename}"
    assert asked.inference_id == f"{job}-1-1"
    assert (asked.ttl_s, asked.timeout_s, asked.content_type) == (3_600, 900, "application/json")
    assert asked.connection.lower() == "close"
    assert round(row.left_s + row.age_s) == round(3_600 + 900 + BEGUN_WITHIN_S + SENT_WITHIN_S + MARGIN_S)
    body: dict[str, Any] = json.loads(asked.body or b"")
    assert (body["stream"], body["messages"]) == (False, [{"role": "user", "content": "Who is Kaya?"}])
    (row,) = await experts.rows(job)
    assert (row.state, row.prompt_tokens, row.completion_tokens, row.cost) == ("answered", 12, 7, 0)
    assert not row.maybe_spent
    item = await queue.get(experts.pool, job, owner=None)
    assert item.attempts == 1
    assert dict(experts.sagemaker.runs) == {asked.output: 1}


async def test_the_job_says_whom_it_waits_for_and_until_when(experts: Studio) -> None:
    experts.model.gate.clear()
    async with experts.worker():
        job = await experts.submit()
        (row,) = await experts.parks(job, "invoked")
        item = await queue.get(experts.pool, job, owner=None)
    assert item.progress is not None
    assert f"The endpoint {NAME} is asked; an answer can come until {row.due_at:%H:%M} UTC." in item.progress["message"]


async def test_its_answer_is_looked_for_once_more_before_the_job_s_time_is_over(experts: Studio) -> None:
    experts.endpoint = replace(experts.endpoint, poll_s=60.0)
    experts.model.gate.clear()
    job = await experts.submit()
    await experts.pool.execute("UPDATE work SET expires_at = clock_timestamp() + interval '40 s' WHERE id = $1", job)
    async with experts.worker():
        await experts.parks(job, "invoked")
    assert await experts.pool.fetchval("SELECT wake_at < expires_at FROM work WHERE id = $1", job)
    experts.model.gate.set()


@pytest.mark.parametrize("trick", ["vanishes", "swallowed", "breaks"])
async def test_where_nobody_knows_whether_it_was_taken_it_is_not_asked_again_until_nothing_can_come(
    experts: Studio, trick: Trick
) -> None:
    experts.sagemaker.tricks.append(trick)
    experts.model.gate.clear()
    async with experts.worker():
        job = await experts.submit(askings=2)
        await experts.parks(job, "invoking")
        item = await queue.get(experts.pool, job, owner=None)
        assert item.progress is not None
        assert "Whether the endpoint took the question is not known." in item.progress["message"]
        seen = experts.sagemaker.seen
        await looked_again(experts, job)
        assert experts.sagemaker.seen == seen == 1
        if trick != "vanishes":  # it was, and its answer is found at the place that was written down before
            experts.model.gate.set()
            assert await experts.ends(job) == KAYA
            assert len(experts.sagemaker.ledger) == 1
            return
        await experts.pass_due(job)
        await experts.taken()
        experts.model.gate.set()
        assert await experts.ends(job) == KAYA
    first, second = await experts.rows(job)
    assert (first.state, first.reason, first.maybe_spent, first.cost) == ("lost", "silent", True, None)
    assert (second.state, second.attempt) == ("answered", 2)
    assert first.output != second.output


async def test_a_worker_that_ends_while_it_asks_leaves_what_the_next_one_finds(experts: Studio) -> None:
    experts.sagemaker.tricks.append("hangs")
    async with experts.worker():
        job = await experts.submit()
        await wait_until(lambda: experts.sagemaker.seen, "the question has left")
        (row,) = await experts.rows(job)
        assert row.state == "invoking"
    async with experts.worker():
        await experts.parks(job, "invoking")
        await looked_again(experts, job)
        assert experts.sagemaker.seen == 1
        await experts.pass_due(job)
        assert await experts.ends(job) == {"fault": "silent"}
    assert experts.sagemaker.ledger == []


async def test_a_worker_that_ends_after_it_asked_asks_once(experts: Studio) -> None:
    experts.model.gate.clear()
    async with experts.worker():
        job = await experts.submit()
        await experts.parks(job, "invoked")
    experts.model.gate.set()
    await (await experts.taken()).ended.wait()
    async with experts.worker():
        assert await experts.ends(job) == KAYA
    assert experts.sagemaker.seen == 1


async def test_a_lost_answer_is_given_up_when_nothing_can_come_and_may_have_cost(experts: Studio) -> None:
    experts.spec = PAID
    experts.sagemaker.tricks.append("lost")
    async with experts.worker():
        job = await experts.submit()
        await experts.parks(job, "invoked")
        reserved, spent = await experts.spent()
        assert (reserved > Decimal("0.1"), spent) == (True, 0)
        await experts.pass_due(job)
        assert await experts.ends(job) == {"fault": "silent"}
    (row,) = await experts.rows(job)
    assert (row.state, row.maybe_spent, row.cost) == ("lost", True, None)
    assert await experts.spent() == (0, reserved)


async def test_a_late_answer_is_taken_although_it_was_given_up_and_asked_again(experts: Studio) -> None:
    experts.sagemaker.tricks.extend(["late", "late"])
    experts.model.answers.append(said("Late, but here."))
    async with experts.worker():
        job = await experts.submit(askings=2)
        first = await experts.taken()
        await experts.pass_due(job)
        await experts.taken(2)
        await experts.sagemaker.release(first)
        found = await experts.ends(job)
    assert found["text"] == "Late, but here."
    one, two = await experts.rows(job)
    assert (one.state, one.reason, one.maybe_spent) == ("answered", None, False)
    assert (two.state, two.reason, two.maybe_spent) == ("lost", "silent", True)


async def test_a_failure_s_object_ends_it_where_aws_said_that_it_would_be(experts: Studio) -> None:
    experts.spec = PAID
    experts.model.status = 500
    async with experts.worker():
        job = await experts.submit()
        assert await experts.ends(job) == {"fault": "failed"}
    (row,) = await experts.rows(job)
    assert row.failure == f"{FAILURES}/jobs/{Asking(job, 1, 1).filename}-error.out"
    assert (row.state, row.reason, row.maybe_spent) == ("failed", "failed", True)


async def test_what_the_container_refuses_costs_nothing(experts: Studio) -> None:
    experts.spec = PAID
    experts.model.status = 400
    experts.model.answers.append({"error": {"message": "This model's maximum context length is 4096 tokens."}})
    async with experts.worker():
        job = await experts.submit()
        assert await experts.ends(job) == {"fault": "too_long"}
    (row,) = await experts.rows(job)
    assert (row.state, row.maybe_spent, row.cost) == ("failed", False, 0)
    assert await experts.spent() == (0, 0)


async def test_a_question_whose_time_in_the_queue_is_over_is_never_run(experts: Studio) -> None:
    experts.sagemaker.tricks.append("late")
    async with experts.worker():
        job = await experts.submit()
        await experts.parks(job, "invoked")
        await experts.sagemaker.expire(await experts.taken())
        assert await experts.ends(job) == {"fault": "failed"}
    assert not experts.sagemaker.runs


async def test_without_a_place_for_failures_it_is_given_up_when_nothing_can_come(experts: Studio) -> None:
    experts.endpoint = replace(experts.endpoint, failures=None)
    experts.sagemaker.endpoints[NAME].failures = None
    experts.model.status = 500
    async with experts.worker():
        job = await experts.submit()
        await (await experts.taken()).ended.wait()
        await looked_again(experts, job)
        (row,) = await experts.parks(job, "invoked")
        assert row.failure is None
        await experts.pass_due(job)
        assert await experts.ends(job) == {"fault": "silent"}


@pytest.mark.parametrize("body", ["<html>nothing of a model's</html>", "[]", '{"choices": [{"message": {'])
async def test_an_object_that_is_no_answer_is_no_answer(experts: Studio, body: str) -> None:
    experts.spec = PAID
    experts.model.answers.append(body)
    async with experts.worker():
        job = await experts.submit()
        assert await experts.ends(job) == {"fault": "malformed"}
    (row,) = await experts.rows(job)
    assert (row.state, row.reason, row.maybe_spent) == ("failed", "malformed", True)


async def test_an_answer_elsewhere_than_the_settings_say_is_found_where_aws_says(experts: Studio) -> None:
    experts.sagemaker.tricks.append("elsewhere")
    async with experts.worker():
        job = await experts.submit()
        assert await experts.ends(job) == KAYA
    (row,) = await experts.rows(job)
    assert row.output == f"{OUTPUT}/elsewhere/{Asking(job, 1, 1).filename}.out"


@pytest.mark.parametrize(("trick", "reason"), [("throttled", "rate_limited"), ("unavailable", "overloaded")])
async def test_what_aws_refuses_for_now_is_refused_at_once_and_costs_nothing(
    experts: Studio, trick: Trick, reason: str
) -> None:
    experts.spec = PAID
    experts.sagemaker.tricks.append(trick)
    async with experts.worker():
        job = await experts.submit()
        assert await experts.ends(job) == {"fault": reason}
    (row,) = await experts.rows(job)
    assert (row.state, row.reason, row.maybe_spent, row.cost) == ("failed", reason, False, 0)
    assert experts.sagemaker.seen == 1, "boto3's own retry would be a second invocation"
    assert await experts.spent() == (0, 0)


async def test_a_refusal_may_be_asked_again_at_once(experts: Studio) -> None:
    experts.sagemaker.tricks.append("throttled")
    async with experts.worker():
        job = await experts.submit(askings=2)
        assert await experts.ends(job) == KAYA
    assert [row.state for row in await experts.rows(job)] == ["failed", "answered"]


async def test_an_unknown_endpoint_is_refused(experts: Studio) -> None:
    experts.endpoint = replace(experts.endpoint, name="nobody")
    async with experts.worker():
        job = await experts.submit()
        assert await experts.ends(job) == {"fault": "rejected"}
    (row,) = await experts.rows(job)
    assert (row.state, row.maybe_spent) == ("failed", False)


async def test_expired_credentials_are_refused_and_nothing_was_asked(
    experts: Studio, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", EXPIRED)
    async with experts.worker():
        job = await experts.submit()
        assert await experts.ends(job) == {"fault": "unauthorised"}
    (row,) = await experts.rows(job)
    assert (row.state, row.reason, row.maybe_spent) == ("failed", "unauthorised", False)
    assert experts.sagemaker.ledger == []


async def test_credentials_that_were_renewed_in_their_file_are_found(
    experts: Studio, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    file = tmp_path / ".aws" / "credentials"  # the fixture's HOME
    file.parent.mkdir()
    file.write_text(f"[default]\naws_access_key_id = {EXPIRED}\naws_secret_access_key = old\n")
    async with experts.worker():
        assert await experts.ends(await experts.submit()) == {"fault": "unauthorised"}
        key, secret = experts.cloud.root
        file.write_text(f"[default]\naws_access_key_id = {key}\naws_secret_access_key = {secret}\n")
        assert await experts.ends(await experts.submit()) == KAYA


async def test_without_credentials_nothing_is_asked_and_later_ones_are_found(
    experts: Studio, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, secret = experts.cloud.root
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    async with experts.worker():
        job = await experts.submit()
        assert await experts.ends(job) == {"fault": "unauthorised"}
        assert await experts.rows(job) == []
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", key)
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", secret)
        assert await experts.ends(await experts.submit()) == KAYA


async def test_where_answers_cannot_be_read_nothing_is_asked(experts: Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", experts.cloud.hub[0])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", experts.cloud.hub[1])
    await asyncio.to_thread(experts.cloud.enforce)
    async with experts.worker():
        job = await experts.submit()
        assert await experts.ends(job) == {"fault": "unauthorised"}
    assert experts.sagemaker.seen == 0


async def test_an_answer_that_cannot_be_looked_for_is_waited_for_and_taken_when_it_can(
    experts: Studio, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", experts.cloud.hub[0])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", experts.cloud.hub[1])
    experts.model.gate.clear()
    async with experts.worker():
        job = await experts.submit()
        await experts.parks(job, "invoked")
        await asyncio.to_thread(experts.cloud.enforce)

        async def told() -> bool:
            item = await queue.get(experts.pool, job, owner=None)
            return "cannot be looked for now: it does not take our key" in str(item.progress)

        await wait_until(told, "people are told")
        experts.model.gate.set()
        await (await experts.taken()).ended.wait()
        await asyncio.to_thread(experts.cloud.relax)
        assert await experts.ends(job) == KAYA


async def test_an_answer_that_could_never_be_looked_for_is_lost_with_the_reason(
    experts: Studio, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", experts.cloud.hub[0])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", experts.cloud.hub[1])
    experts.model.gate.clear()
    async with experts.worker():
        job = await experts.submit()
        await experts.parks(job, "invoked")
        await asyncio.to_thread(experts.cloud.enforce)
        await experts.pass_due(job)
        assert await experts.ends(job) == {"fault": "unauthorised"}
    (row,) = await experts.rows(job)
    assert (row.state, row.reason, row.maybe_spent) == ("lost", "unauthorised", True)


async def test_a_question_of_exactly_the_most_goes_inline_and_a_longer_one_by_s3(experts: Studio) -> None:
    empty = len(question_of(Ask(model="expert", messages=(Message(role="user", content=""),), max_tokens=50)))
    most = "x" * (INLINE_BYTES_MAX - empty)
    async with experts.worker():
        await experts.ends(await experts.submit(most))
        await experts.ends(longer := await experts.submit(most + "x"))
    inline, by_s3 = experts.sagemaker.ledger
    assert (len(inline.body or b""), inline.input) == (128_000, None)
    assert (by_s3.body, by_s3.input) == (None, f"{INPUT}/jobs/{Asking(longer, 1, 1).filename}.json")
    assert [len(asked["messages"][0]["content"]) for asked in experts.model.asked] == [len(most), len(most) + 1]


async def test_without_a_place_for_long_questions_they_are_too_long(experts: Studio) -> None:
    experts.endpoint = replace(experts.endpoint, input=None)
    async with experts.worker():
        job = await experts.submit("x" * INLINE_BYTES_MAX)
        assert await experts.ends(job) == {"fault": "too_long"}
    assert (await experts.rows(job), experts.sagemaker.seen) == ([], 0)


async def test_a_long_question_that_cannot_be_put_is_not_asked(experts: Studio) -> None:
    experts.endpoint = replace(experts.endpoint, input=Place("no-such-bucket", "questions"))
    async with experts.worker():
        job = await experts.submit("x" * INLINE_BYTES_MAX)
        assert await experts.ends(job) == {"fault": "rejected"}
    assert (await experts.rows(job), experts.sagemaker.seen) == ([], 0)


async def test_without_the_bucket_of_its_answers_nothing_is_asked(experts: Studio) -> None:
    experts.endpoint = replace(experts.endpoint, output=Place("no-such-bucket", "outputs"))
    async with experts.worker():
        job = await experts.submit()
        assert await experts.ends(job) == {"fault": "rejected"}
    assert (await experts.rows(job), experts.sagemaker.seen) == ([], 0)


async def test_what_lay_at_the_place_before_is_never_taken_for_the_answer(experts: Studio) -> None:
    experts.model.gate.clear()
    job = await experts.submit()
    await experts.put(f"{OUTPUT}/jobs/{Asking(job, 1, 1).filename}", json.dumps(said("Of another life.")).encode())
    async with experts.worker():
        (row,) = await experts.parks(job, "invoked")
        assert row.attempt == 2
        experts.model.gate.set()
        assert await experts.ends(job) == KAYA


async def test_the_endpoint_is_not_let_work_for_longer_than_the_job_has(experts: Studio) -> None:
    experts.hours = 0.1
    async with experts.worker():
        await experts.ends(await experts.submit())
        (asked,) = experts.sagemaker.ledger
        assert 350 <= asked.ttl_s <= 360
        assert 350 <= asked.timeout_s <= 360
        experts.hours = 0.0
        assert await experts.ends(await experts.submit()) == {"fault": "deadline"}
    assert len(experts.sagemaker.ledger) == 1


async def test_an_invocation_that_was_held_up_is_not_sent_any_more(experts: Studio) -> None:
    """Whoever took the job over waits no longer than until the row is due; a worker that was paused must not ask after that."""
    with pytest.raises(AwsFault) as fault:
        await experts.client.invoke(
            NAME,
            Asking("job_x", 1, 1),
            b"{}",
            ttl_s=60,
            timeout_s=60,
            begun_at=time.monotonic() - BEGUN_WITHIN_S - 1,
        )
    assert (fault.value.reason, fault.value.certain, experts.sagemaker.seen) == ("too_slow", True, 0)


async def test_money_that_is_not_there_is_not_spent(experts: Studio) -> None:
    experts.spec = replace(PAID, price=replace(PAID.price, prompt=Decimal(10**6)) if PAID.price else None)
    async with experts.worker():
        job = await experts.submit("x" * 2_000)
        assert await experts.ends(job) == {"fault": "budget"}
    assert (await experts.rows(job), experts.sagemaker.seen) == ([], 0)


async def test_many_jobs_wait_at_one_worker_and_each_is_run_once(experts: Studio) -> None:
    experts.sagemaker.add(NAME, Endpoint(experts.model.url, str(OUTPUT), str(FAILURES), concurrency=8))
    async with experts.worker():
        jobs = [await experts.submit(f"Who is number {number}?") for number in range(12)]
        for job in jobs:
            assert await experts.ends(job) == KAYA
    assert Counter(experts.sagemaker.runs.values()) == {1: 12}
    assert {asked.inference_id for asked in experts.sagemaker.ledger} == {f"{job}-1-1" for job in jobs}


async def looked_again(experts: Studio, job: str) -> None:
    """Wait until it was woken twice more, and parked again: a whole look lies between."""

    async def token() -> int:
        found: int = await experts.pool.fetchval("SELECT token FROM work WHERE id = $1", job)
        return found

    before = await token()

    async def moved() -> bool:
        return await token() >= before + 2

    await wait_until(moved, f"{job} looks twice more")
