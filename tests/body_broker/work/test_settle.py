"""Owns the proof that an unknown effect is settled by a named person, with what they found on record."""

from __future__ import annotations

import pytest

from body_broker.errors import BadInput, Conflict, NotFound
from body_broker.work import queue
from tests.body_broker.work.bench import ANNA, Bench


async def test_a_person_settles_what_is_unknown(bench: Bench) -> None:
    async with bench.worker():
        happened, did_not, again = [await bench.add("breaks_inside_once", {"n": n}) for n in range(3)]
        for work in (happened, did_not, again):
            item = await bench.reaches(work, "unknown", "failed")
            assert (item.state, item.open_effect, item.finished_at) == ("unknown", "send", None)
            assert item.error["code"] == "outcome_unknown"

        settled = {"by": "person:boris", "note": "seen in the far side's log"}
        await queue.settle(bench.pool, happened, verdict="succeeded", result={"sent": 1}, **settled)
        await queue.settle(bench.pool, did_not, verdict="failed", **settled)
        assert await queue.settle(bench.pool, again, verdict="again", **settled) == "queued"
        repeated = await bench.reaches(again, "succeeded", "failed", "unknown")

    item = await bench.item(happened)
    assert (item.state, item.result, item.error, item.open_effect) == ("succeeded", {"sent": 1}, None, None)
    assert item.verdicts == [settled | {"verdict": "succeeded", "effect": "send", "at": item.verdicts[0]["at"]}]
    assert (await bench.item(did_not)).state == "failed"
    assert (repeated.state, repeated.attempts, await bench.effects(again)) == ("succeeded", 2, 2)
    assert [v["verdict"] for v in repeated.verdicts] == ["again"]
    assert await bench.effects(happened) == await bench.effects(did_not) == 1


async def test_only_a_named_person_settles_only_the_unknown_and_says_why(bench: Bench) -> None:
    work = await bench.add("nobody's")
    with pytest.raises(Conflict):
        await queue.settle(bench.pool, work, by="person:boris", verdict="failed", note="why")
    with pytest.raises(NotFound):
        await queue.settle(bench.pool, "job_unknown", by="person:boris", verdict="failed", note="why")
    for by in ("tier:silver", "service:game", "boris", ""):
        with pytest.raises(BadInput):
            await queue.settle(bench.pool, work, by=by, verdict="failed", note="why")
    with pytest.raises(BadInput):
        await queue.settle(bench.pool, work, by="person:boris", verdict="failed", note=" \x00")
    assert (await bench.item(work)).owner == ANNA.asker
