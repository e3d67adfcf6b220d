"""A question to an asynchronous endpoint is paid for once: what a worker leaves between two steps is found, and nothing else is booked."""

from __future__ import annotations

import asyncio
from decimal import Decimal

import pytest

from body_broker.work import queue
from tests.kill.holding import holding
from tests.tiers.bronze.sagemaker.studio import PAID, Studio

KAYA = {"text": "Kaya stands at the well.", "finish": "stop", "completion": 7}


async def test_an_answer_that_was_booked_and_not_recorded_is_read_again_and_booked_once(experts: Studio) -> None:
    experts.spec = PAID
    async with experts.worker():
        job = await experts.submit()
        await experts.ends(job)
    spent = await experts.spent()
    # As a crash between the two leaves it.
    await experts.pool.execute("DELETE FROM work_step WHERE work = $1", job)
    await experts.pool.execute("UPDATE work SET state = 'queued', finished_at = NULL, result = NULL WHERE id = $1", job)
    async with experts.worker():
        assert await experts.ends(job) == KAYA
    assert experts.sagemaker.seen == 1
    assert await experts.spent() == spent == (0, Decimal("0.026"))


async def test_an_answer_that_was_booked_and_cannot_be_read_now_is_not_asked_for_again(
    experts: Studio, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", experts.cloud.hub[0])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", experts.cloud.hub[1])
    async with experts.worker():
        job = await experts.submit()
        await experts.ends(job)
    # As a crash between the two leaves it.
    await experts.pool.execute("DELETE FROM work_step WHERE work = $1", job)
    await experts.pool.execute("UPDATE work SET state = 'queued', finished_at = NULL, result = NULL WHERE id = $1", job)
    await asyncio.to_thread(experts.cloud.enforce)
    async with experts.worker():
        await experts.parks(job, "answered")
        item = await queue.get(experts.pool, job, owner=None)
        assert "has answered. It cannot be looked for now: it does not take our key" in str(item.progress)
        await asyncio.to_thread(experts.cloud.relax)
        assert await experts.ends(job) == KAYA
    assert experts.sagemaker.seen == 1


async def test_money_set_aside_for_what_was_not_begun_is_given_back(experts: Studio) -> None:
    experts.spec = PAID
    async with holding(experts.database_url, "LOCK TABLE expert_call IN SHARE MODE") as held:
        async with experts.worker():
            job = await experts.submit()
            await held.has_stopped_one()
        assert await experts.rows(job) == []
    assert await experts.spent() == (0, 0)
