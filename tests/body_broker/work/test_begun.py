"""Owns the proof that a repeatable effect which has begun is brought to its end: neither cancelled nor failed while nobody knows."""

from __future__ import annotations

import asyncio
from typing import cast

import pytest

from body_broker.calls import Json
from body_broker.errors import BadInput, Unavailable
from body_broker.storage.postgres import Connection
from body_broker.work import lease, queue
from body_broker.work.ending import Backoff, perform
from body_broker.work.run import Handler, Interruption, Run
from tests.body_broker.work.bench import ANNA, Bench


async def claimed(bench: Bench) -> Run:
    async with bench.pool.acquire() as connection:
        run = await lease.claim(connection, bench.pool, ["sends"], "A", 30.0)
    assert run is not None
    return run


async def begun(bench: Bench, **options: int) -> Run:
    """A run whose repeatable effect `send` has begun."""
    await bench.add("sends", **options)
    run = await claimed(bench)
    await bench.pool.execute("UPDATE work SET begun = 'send' WHERE id = $1", run.id)
    return run


async def ended(bench: Bench, run: Run, handler: Handler) -> str:
    await run.begin(perform(run, handler, Backoff(60.0, 60.0)))
    return (await bench.item(run.id)).state


def raising(error: Exception) -> Handler:
    async def handler(_run: Run) -> Json:
        raise error

    return handler


async def test_what_has_begun_is_not_cancelled(bench: Bench) -> None:
    run = await begun(bench)
    assert await queue.cancel(bench.pool, run.id, owner=ANNA.asker) == "running"
    assert await ended(bench, run, raising(Unavailable("Away."))) == "queued"
    assert await queue.cancel(bench.pool, run.id, owner=ANNA.asker) == "queued"
    assert not (await bench.item(run.id)).cancel_requested


@pytest.mark.parametrize("why", ["cancelled", "stopping"])
async def test_a_run_that_is_stopped_in_it_leaves_it_to_the_next(bench: Bench, why: str) -> None:
    run = await begun(bench)
    await bench.pool.execute("UPDATE work SET cancel_requested = true WHERE id = $1", run.id)

    async def handler(run: Run) -> Json:
        run.interrupt(cast("Interruption", why))
        await asyncio.Event().wait()

    assert await ended(bench, run, handler) == "queued"
    assert (await claimed(bench)).work.begun == "send"


async def test_what_has_begun_has_not_failed_unless_its_outcome_is_recorded(bench: Bench) -> None:
    run = await begun(bench)
    assert await ended(bench, run, raising(BadInput("No."))) == "unknown"
    assert (await bench.item(run.id)).open_effect == "send"

    run = await begun(bench)

    async def refused() -> Json:
        return "refused"

    async def handler(run: Run) -> Json:
        await run.step("send", refused)
        raise BadInput("It was refused.")

    assert await ended(bench, run, handler) == "failed"


async def test_a_run_that_is_lost_in_it_is_repeated_and_then_unknown(bench: Bench) -> None:
    run = await begun(bench, attempts_max=2)
    lapse = "UPDATE work SET cancel_requested = true, lease_until = now() - interval '1 second' WHERE id = $1"
    await bench.pool.execute(lapse, run.id)
    async with bench.pool.acquire() as connection:
        await lease.sweep(connection)
    assert (await bench.item(run.id)).state == "queued"
    await claimed(bench)
    await bench.pool.execute(lapse, run.id)
    async with bench.pool.acquire() as connection:
        await lease.sweep(connection)
    item = await bench.item(run.id)
    assert (item.state, item.open_effect, item.error["code"], item.error["effect"]) == (
        "unknown",
        "send",
        "outcome_unknown",
        "send",
    )


async def test_what_is_recorded_is_in_no_doubt_where_its_last_attempt_is_lost(bench: Bench) -> None:
    run = await begun(bench, attempts_max=1)
    work, lapse = run.id, "UPDATE work SET lease_until = now() - interval '1 second' WHERE id = $1"

    async def sent() -> Json:
        return "sent"

    async def handler(run: Run) -> Json:
        return await run.step("send", sent)

    await run.step("send", sent)
    for state in ("queued", "unknown"):  # a worker that is lost each time comes to an end too
        await bench.pool.execute(lapse, work)
        async with bench.pool.acquire() as connection:
            await lease.sweep(connection)
        assert (await bench.item(work)).state == state
        if state == "queued":
            run = await claimed(bench)
    await queue.settle(bench.pool, work, by="person:boris", verdict="again", note="It is on record.")
    assert await ended(bench, await claimed(bench), handler) == "succeeded"


async def test_what_a_person_found_not_done_is_told_with_their_note(bench: Bench) -> None:
    run = await begun(bench)
    await ended(bench, run, raising(BadInput("No.")))
    await queue.settle(bench.pool, run.id, by="person:boris", verdict="failed", note="Nothing came.")
    item = await bench.item(run.id)
    assert (item.state, item.error["code"], item.error["settled_by"]) == ("failed", "conflict", "person:boris")
    assert item.error["message"].endswith("They say: Nothing came.")


async def test_attempts_count_anew_once_it_has_got_on(bench: Bench) -> None:
    async def stumbles(run: Run) -> Json:
        async def step(connection: Connection) -> Json:
            await run.gets_on(connection)
            return {}

        if run.work.attempt == 2 and len(run.work.steps) < 2:
            await run.commit(f"step {len(run.work.steps)}", step)
        raise Unavailable("Away.")

    await bench.add("sends", attempts_max=2)
    attempts: list[int] = []
    state = "queued"
    while state == "queued":
        await bench.pool.execute("UPDATE work SET run_at = clock_timestamp()")
        run = await claimed(bench)
        attempts.append(run.work.attempt)
        state = await ended(bench, run, stumbles)

    assert (state, attempts) == ("failed", [1, 2, 2, 2]), "each step gives one more try, and no more"
