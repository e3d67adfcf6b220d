"""Notices wake the jobs that they are about, and nothing else comes of them."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from typing import Any

import pytest
from asyncpg import InterfaceError

from body_broker.work import queue
from tests.tiers.bronze.sagemaker.studio import OUTPUT, Studio
from tests.waiting import wait_until
from tiers.bronze.sagemaker.backend import key_of
from tiers.bronze.sagemaker.client import Received
from tiers.bronze.sagemaker.notices import SageMakerNotices, notice_of
from tiers.bronze.sagemaker.places import Asking
from tiers.faults import EngineFault

PATIENT_S = 600.0
"""So rarely is an answer looked for that only a notice can have woken the job."""


@pytest.fixture
def noticed(experts: Studio) -> Studio:
    experts.endpoint = replace(experts.endpoint, poll_s=PATIENT_S)
    return experts


def notices(experts: Studio, **more: Any) -> SageMakerNotices:
    return SageMakerNotices(experts.client, experts.queue_url, experts.pool, wait_s=1, **more)


async def test_an_answer_is_taken_as_soon_as_its_notice_comes(noticed: Studio) -> None:
    noticed.model.gate.clear()
    async with noticed.worker(), notices(noticed).listening():
        job = await noticed.submit()
        await noticed.parks(job, "invoked")
        noticed.model.gate.set()
        found = await noticed.ends(job)
    assert found["text"] == "Kaya stands at the well."
    assert await noticed.queued() == 0


async def test_a_failure_s_notice_wakes_by_our_own_name_for_the_question(noticed: Studio) -> None:
    noticed.model.gate.clear()
    noticed.model.status = 500
    async with noticed.worker(), notices(noticed).listening():
        job = await noticed.submit()
        await noticed.parks(job, "invoked")
        noticed.model.gate.set()
        assert await noticed.ends(job) == {"fault": "failed"}


async def test_a_notice_that_comes_twice_costs_a_look_and_nothing_else(noticed: Studio) -> None:
    noticed.sagemaker.tricks.append("twice")
    noticed.model.gate.clear()
    async with noticed.worker(), notices(noticed).listening():
        job = await noticed.submit()
        await noticed.parks(job, "invoked")
        noticed.model.gate.set()
        await noticed.ends(job)

        async def read() -> bool:
            return await noticed.queued() == 0

        await wait_until(read, "both are deleted")
    assert noticed.sagemaker.seen == 1
    assert [row.state for row in await noticed.rows(job)] == ["answered"]


async def test_a_notice_before_its_time_wakes_a_job_that_parks_again(noticed: Studio) -> None:
    noticed.model.gate.clear()
    async with noticed.worker():
        job = await noticed.submit()
        await noticed.parks(job, "invoked")
        asked = await noticed.taken()
        await noticed.send({"responseParameters": {"outputLocation": asked.output}})  # raw message delivery
        before = await noticed.pool.fetchval("SELECT token FROM work WHERE id = $1", job)
        assert await notices(noticed).take() == 1

        async def looked() -> bool:
            token: int = await noticed.pool.fetchval("SELECT token FROM work WHERE id = $1", job)
            return token > before

        await wait_until(looked, "it looked")
        await noticed.parks(job, "invoked")
    assert noticed.sagemaker.seen == 1


async def test_notices_of_nothing_of_ours_are_dropped_and_deleted(noticed: Studio) -> None:
    strange: list[Any] = [
        {"responseParameters": {"outputLocation": f"{OUTPUT}/jobs/{'f' * 32}"}, "inferenceId": "job_nobody-1-1"},
        {"inferenceId": "11111111-2222-3333-4444-555555555555"},
        {"Type": "Notification", "Message": "[1, 2]"},
        {"Type": "Notification", "Message": json.dumps({"inferenceId": "job_x-1-99999"})},
        {"inferenceId": "job_\u0000-1-1"},
        {"responseParameters": {"outputLocation": "s3://x/\u0000"}, "inferenceId": 7},
        {"responseParameters": ["outputLocation"]},
        "no JSON at all",
        "[]",
    ]
    for each in strange:
        await noticed.send(each)
    listener = notices(noticed)
    while await noticed.queued():
        assert await listener.take() == 0


async def test_a_queue_that_cannot_be_read_is_tried_again_less_and_less_often(noticed: Studio) -> None:
    pauses: list[float] = []
    enough = asyncio.Event()

    async def pause(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 8:
            enough.set()
            await asyncio.Event().wait()

    listener = SageMakerNotices(noticed.client, f"{noticed.queue_url}-nobody", noticed.pool, wait_s=1, pause=pause)
    async with listener.listening():
        await enough.wait()
    assert pauses == [1, 2, 4, 8, 16, 32, 60, 60]


async def test_messages_stay_where_the_database_is_away(noticed: Studio) -> None:
    await noticed.send({"inferenceId": "job_x-1-1"})
    await noticed.pool.close()
    with pytest.raises(InterfaceError):
        await notices(noticed).take()
    assert await noticed.queued() == 1


async def test_without_credentials_the_queue_is_not_read(noticed: Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    with pytest.raises(EngineFault) as fault:
        await notices(noticed).take()
    assert fault.value.reason == "unauthorised"


async def test_a_wake_is_by_the_key_that_jobs_park_under(noticed: Studio) -> None:
    noticed.model.gate.clear()
    async with noticed.worker():
        job = await noticed.submit()
        await noticed.parks(job, "invoked")
        assert await noticed.pool.fetchval("SELECT waits_for FROM work WHERE id = $1", job) == key_of(job)
        assert await queue.wake(noticed.pool, key_of(job)) == 1


def test_a_message_says_where_the_answer_is_and_whose_it_is() -> None:
    message = {"inferenceId": "job_a-2-3", "responseParameters": {"outputLocation": "s3://b/outputs/x"}}
    for body in (message, {"Type": "Notification", "Message": json.dumps(message)}):
        found = notice_of(Received(json.dumps(body), "r").body)
        assert found is not None
        assert (found.output, found.asking) == ("s3://b/outputs/x", Asking("job_a", 2, 3))
