"""Owns the proof of what a worker leaves behind: it finishes, hands back, or says that it does not know."""

from __future__ import annotations

import asyncio

import pytest

from body_broker.calls import Json
from body_broker.work.run import Run
from tests.body_broker.work.bench import ASLEEP_S, Bench
from tests.waiting import wait_until


async def test_a_stopping_worker_lets_runs_end_within_its_grace(bench: Bench) -> None:
    async with bench.worker(grace_s=60.0) as worker:
        work = await bench.add("blocks", {"gate": "open"})
        await bench.saw(work, "B", "start")
        worker.stop()
        await bench.open_gate("open")
        assert (await bench.reaches(work, "succeeded", "queued")).state == "succeeded"


async def test_a_stopped_worker_claims_nothing(bench: Bench) -> None:
    async with bench.worker() as worker:
        worker.stop()
        work = await bench.add("echoes")
        await bench.tasks["B"]
    assert (await bench.item(work)).state == "queued"


async def test_a_stopping_worker_hands_back_what_it_cannot_finish_without_burning_an_attempt(bench: Bench) -> None:
    async with bench.worker("A", grace_s=0.0):
        work = await bench.add("blocks", {"gate": "open"}, attempts_max=1)
        await bench.saw(work, "A", "start")
    handed_back = await bench.item(work)
    assert (handed_back.state, handed_back.attempts, handed_back.error) == ("queued", 0, None)

    async with bench.worker("B"):
        await bench.saw(work, "B", "start")
        await bench.open_gate("open")
        assert (await bench.reaches(work, "succeeded", "failed")).attempts == 1


async def test_what_is_handed_back_wakes_another_worker(bench: Bench) -> None:
    async with bench.worker("B", poll_s=ASLEEP_S, concurrency=1) as other:
        await bench.is_past("B")
        busy = await bench.add("blocks", {"gate": "busy"})
        await bench.saw(busy, "B", "start")
        async with bench.worker("A", grace_s=0.0, lease_s=ASLEEP_S):
            work = await bench.add("blocks", {"gate": "open"})
            await bench.saw(work, "A", "start")
            await bench.open_gate("busy")
            await bench.is_past("B")
            await bench.falls_asleep(other)
        await bench.saw(work, "B", "start")
        await bench.open_gate("open")
        await bench.reaches(work, "succeeded")


async def test_a_stopping_worker_brings_a_once_effect_to_its_end_before_it_hands_back(bench: Bench) -> None:
    async def is_inside_once(run: Run) -> Json:
        async def effect() -> Json:
            begun.append(run)
            await wait_until(lambda: run.interrupted == "stopping", "the worker stops the run")
            return "done"

        return await run.once("send", effect)

    begun: list[Run] = []
    handlers = {"is_inside_once": is_inside_once}
    async with bench.worker("A", handlers=handlers, grace_s=0.0):
        work = await bench.add("is_inside_once")
        await wait_until(lambda: begun, "the effect has begun")
    item = await bench.item(work)
    assert (item.state, item.attempts) == ("queued", 0)
    assert (await bench.row(work))["steps"] == ["send"]
    async with bench.worker("B", handlers=handlers):
        assert (await bench.reaches(work, "succeeded", "unknown")).result == "done"


@pytest.mark.parametrize(("kind", "state"), [("blocks", "queued"), ("onces", "unknown")])
async def test_a_worker_that_is_cancelled_leaves_the_truth_behind(bench: Bench, kind: str, state: str) -> None:
    async with bench.worker("A"):
        work = await bench.add(kind, {"gate": "never", "gate_inside": "never"})
        await bench.saw(work, "A", "effect" if kind == "onces" else "start")
        bench.tasks["A"].cancel()
        await asyncio.wait({bench.tasks["A"]})
        item = await bench.item(work)
    assert (item.state, item.attempts) == (state, 0 if state == "queued" else 1)
