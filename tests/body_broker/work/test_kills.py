"""Owns the proof at exact places: a worker is killed or paused before, inside and just after each effect; one effect remains."""

from __future__ import annotations

import signal

import pytest

from tests.body_broker.work.bench import Bench

KINDS = ("commits", "steps", "onces")


@pytest.mark.parametrize("place", ["inside", "after"])
@pytest.mark.parametrize("kind", KINDS)
async def test_a_worker_killed_in_an_effect_leaves_one_effect_and_the_right_state(
    bench: Bench, kind: str, place: str
) -> None:
    bench.process("A")
    work = await bench.add(kind, {"hit": [place, "SIGKILL"]})
    await bench.saw(work, "A", f"hit {place}")

    async with bench.worker("B"):
        item = await bench.reaches(work, "succeeded", "unknown", "failed")

    assert await bench.effects(work) == 1
    if (kind, place) == ("onces", "inside"):
        assert (item.state, item.open_effect, item.attempts) == ("unknown", "send", 1)
        assert item.error["code"] == "outcome_unknown"
        assert item.error["effect"] == "send"
    else:
        recorded_by = "A" if place == "after" else "B"
        assert (item.state, item.result) == ("succeeded", {"by": "B", "outcome": [recorded_by]})
        assert item.attempts == 2


@pytest.mark.parametrize("place", ["before", "inside", "after"])
@pytest.mark.parametrize("kind", KINDS)
async def test_a_paused_worker_that_wakes_after_it_was_replaced_changes_nothing(
    bench: Bench, kind: str, place: str
) -> None:
    paused = bench.process("A")
    work = await bench.add(kind, {"hit": [place, "SIGSTOP"], "gate": "open"})
    await bench.saw(work, "A", f"hit {place}")

    async with bench.worker("B"):
        unknown = (kind, place) == ("onces", "inside")
        if unknown:
            await bench.reaches(work, "unknown")
        else:
            await bench.saw(work, "B", "start")
        before = await bench.row(work)
        paused.send_signal(signal.SIGCONT)
        await bench.is_past("A")
        after = await bench.row(work)
        assert after == before
        assert after["worker"] == ("A" if unknown else "B")

        await bench.open_gate("open")
        if not unknown:
            item = await bench.reaches(work, "succeeded", "failed", "unknown")
            assert (item.state, item.result["by"], item.attempts) == ("succeeded", "B", 2)
    assert await bench.effects(work) == 1


async def test_a_killed_workers_run_is_taken_over_and_its_steps_are_kept(bench: Bench) -> None:
    killed = bench.process("A")
    work = await bench.add("blocks", {"gate": "open"})
    await bench.saw(work, "A", "start")
    killed.kill()

    async with bench.worker("B"):
        await bench.saw(work, "B", "start")
        await bench.open_gate("open")
        item = await bench.reaches(work, "succeeded")

    assert item.result == {"by": "B"}
    assert item.attempts == 2


async def test_a_worker_that_wakes_inside_its_handler_is_interrupted_while_the_other_goes_on(bench: Bench) -> None:
    paused = bench.process("A")
    work = await bench.add("blocks", {"gate": "open"})
    await bench.waits(work)
    paused.send_signal(signal.SIGSTOP)

    async with bench.worker("B"):
        await bench.saw(work, "B", "start")
        paused.send_signal(signal.SIGCONT)
        await bench.saw(work, "A", "interrupted")
        await bench.is_past("A")
        assert (await bench.row(work))["worker"] == "B"
        await bench.open_gate("open")
        assert (await bench.reaches(work, "succeeded", "cancelled")).result == {"by": "B"}


async def test_a_terminated_worker_process_lets_its_run_end_within_the_grace(bench: Bench) -> None:
    stopped = bench.process("A")
    work = await bench.add("onces", {"gate_inside": "open"})
    await bench.saw(work, "A", "effect")
    stopped.send_signal(signal.SIGTERM)
    await bench.open_gate("open")

    item = await bench.reaches(work, "succeeded", "queued")
    assert item.state == "succeeded"
    assert await bench.effects(work) == 1
