"""Asking for experts' jobs: how many one asker may have open, once under a key, all or none, and how one stands."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import orjson
import pytest

from body_broker.errors import BadInput, BodyBrokerError, Conflict, NotFound, RateLimited, TooLarge
from body_broker.storage.postgres import Pool
from body_broker.work import queue
from body_broker.work.lease import sweep
from body_broker.work.model import JSON_BYTES_MAX, Origin
from tiers.bronze.jobs import ATTEMPTS_MAX, LIMIT_KEY, MANY_MAX, Jobs
from tiers.bronze.model import Assignment, Budget
from tiers.model import Message

ANNA = Origin(chain=("person:anna", "tier:silver"), session="s")
BORIS = Origin(chain=("person:boris",), session="s")
ARC = Assignment(
    kind="expert", title="An arc", messages=(Message(role="user", content="Three parts about the flood."),)
)


@pytest.fixture
def jobs(pool: Pool) -> Jobs:
    return Jobs(pool, open_max=3, concurrency=2)


def named(title: str) -> Assignment:
    return replace(ARC, title=title)


async def count(pool: Pool) -> int:
    return await pool.fetchval("SELECT count(*) FROM work")


async def end(pool: Pool, job_id: str) -> None:
    await pool.execute(
        "UPDATE work SET state = 'succeeded', finished_at = clock_timestamp(), result = '{}' WHERE id = $1", job_id
    )


async def test_a_job_is_work_of_its_kind_bounded_in_time_in_runs_and_beside_others(jobs: Jobs, pool: Pool) -> None:
    given = replace(ARC, kind="audit", budget=Budget(seconds=60), about={"scan": "scn_1"})
    job_id = await jobs.submit(given, ANNA, priority="high")

    item = await queue.get(pool, job_id, owner="person:anna")
    assert (item.kind, item.state, item.priority, item.attempts_max) == ("audit", "queued", 10, ATTEMPTS_MAX)
    assert Assignment.parse(item.input) == given
    assert item.origin.chain == ANNA.chain
    assert item.expires_at is not None
    assert 50 < (item.expires_at - item.created_at).total_seconds() < 70
    limits = await pool.fetchrow("SELECT limit_key, limit_max FROM work WHERE id = $1", job_id)
    assert limits is not None
    assert tuple(limits) == (LIMIT_KEY, 2)


async def test_one_asker_has_so_many_open_and_others_have_theirs(jobs: Jobs, pool: Pool) -> None:
    first = await jobs.submit(ARC, ANNA)
    for _ in range(2):
        await jobs.submit(ARC, ANNA)
    with pytest.raises(RateLimited, match=r"You have 3 jobs open, and may have 3\.") as refused:
        await jobs.submit(ARC, replace(ANNA, chain=("person:anna",)))  # the asker is who it counts for, not the chain
    assert refused.value.retry_after_s
    await jobs.submit(ARC, BORIS)

    await end(pool, first)
    await jobs.submit(ARC, ANNA)


async def test_those_who_ask_at_the_same_moment_get_no_more_than_there_is_room_for(jobs: Jobs, pool: Pool) -> None:
    found = await asyncio.gather(*(jobs.submit(ARC, ANNA) for _ in range(12)), return_exceptions=True)
    assert sum(isinstance(each, str) for each in found) == 3
    assert {type(each) for each in found} == {str, RateLimited}
    assert await count(pool) == 3


async def test_work_of_other_kinds_takes_no_room(jobs: Jobs, pool: Pool) -> None:
    for _ in range(5):
        await queue.enqueue(pool, "scan", {}, origin=ANNA, limit_key="scan")
        await queue.enqueue(pool, "lore_import", {}, origin=ANNA)
    await jobs.submit(ARC, ANNA)


async def test_a_repeated_key_is_the_same_job_whatever_has_become_of_it(jobs: Jobs, pool: Pool) -> None:
    job_id = await jobs.submit(ARC, ANNA, idempotency_key="k")
    await jobs.submit(named("second"), ANNA)
    await jobs.submit(named("third"), ANNA)
    assert await jobs.submit(ARC, ANNA, idempotency_key="k") == job_id  # where there is room for no other
    await end(pool, job_id)
    assert await jobs.submit(ARC, ANNA, priority="high", idempotency_key="k") == job_id

    with pytest.raises(Conflict, match="This idempotency_key stands for what was asked for in other words"):
        await jobs.submit(named("other"), ANNA, idempotency_key="k")
    assert await jobs.submit(ARC, BORIS, idempotency_key="k") != job_id


async def test_a_key_of_one_owner_s_other_work_is_another_key(jobs: Jobs, pool: Pool) -> None:
    other = await queue.enqueue(pool, "scan", {}, origin=ANNA, unique_key="k")
    assert await jobs.submit(ARC, ANNA, idempotency_key="k") != other


async def test_the_same_key_at_the_same_moment_is_one_job(pool: Pool) -> None:
    jobs = Jobs(pool, open_max=1, concurrency=1)
    found = await asyncio.gather(*(jobs.submit(ARC, ANNA, idempotency_key="k") for _ in range(8)))
    assert len(set(found)) == await count(pool) == 1


@pytest.mark.parametrize("idempotency_key", [None, "k"])
async def test_a_call_repeated_under_its_key_asks_for_nothing_more(
    jobs: Jobs, pool: Pool, idempotency_key: str | None
) -> None:
    about: dict[str, Any] = {"key": "apr_1", "idempotency_key": idempotency_key}
    job_id = await jobs.submit(ARC, ANNA, **about)
    assert await jobs.submit(ARC, ANNA, **about) == job_id
    many = await jobs.submit_many([ARC, ARC], ANNA, key="apr_2")
    assert await jobs.submit_many([ARC, ARC], ANNA, key="apr_2") == many
    assert await count(pool) == 3


async def test_several_are_asked_for_in_their_order(jobs: Jobs, pool: Pool) -> None:
    found = await jobs.submit_many([named("a"), named("b"), named("c")], ANNA)
    assert [(await queue.get(pool, each, owner="person:anna")).input["title"] for each in found] == ["a", "b", "c"]
    assert await jobs.titles(found[1:]) == {found[1]: "b", found[2]: "c"}
    assert await jobs.titles([]) == {}


@pytest.mark.parametrize(
    ("assignments", "error"),
    [
        ([], BadInput),
        ([ARC] * (MANY_MAX + 1), BadInput),
        ([ARC] * 4, RateLimited),
        ([ARC, named("a\0b")], BadInput),
        ([ARC, named("x" * JSON_BYTES_MAX)], TooLarge),
    ],
)
async def test_of_several_all_are_asked_for_or_none(
    jobs: Jobs, pool: Pool, assignments: list[Assignment], error: type[BodyBrokerError]
) -> None:
    with pytest.raises(error):
        await jobs.submit_many(assignments, ANNA)
    assert await count(pool) == 0


async def test_a_key_of_several_stands_for_exactly_those(jobs: Jobs, pool: Pool) -> None:
    found = await jobs.submit_many([named("a"), named("b")], ANNA, idempotency_key="k")
    assert await jobs.submit_many([named("a"), named("b")], ANNA, idempotency_key="k") == found
    for others in ([named("a")], [named("a"), named("b"), named("c")], [named("b"), named("a")]):
        with pytest.raises(Conflict):
            await jobs.submit_many(others, ANNA, idempotency_key="k")
    assert await jobs.submit(ARC, ANNA, idempotency_key="k") not in found
    assert await count(pool) == 3


async def test_an_assignment_as_long_as_work_may_be_is_taken_and_one_byte_more_is_too_large(
    jobs: Jobs, pool: Pool
) -> None:
    _ = pool
    room = JSON_BYTES_MAX - len(orjson_of(named("")))
    await jobs.submit(named("x" * room), ANNA)
    with pytest.raises(TooLarge, match=rf"has {JSON_BYTES_MAX + 1} bytes; {JSON_BYTES_MAX} are the limit"):
        await jobs.submit(named("x" * (room + 1)), ANNA)


def orjson_of(assignment: Assignment) -> bytes:
    return orjson.dumps(assignment.body())


async def test_the_place_in_the_queue_is_by_priority_then_by_age(jobs: Jobs) -> None:
    old = await jobs.submit(ARC, ANNA)
    new = await jobs.submit(ARC, BORIS)
    low = await jobs.submit(ARC, ANNA, priority="low")
    high = await jobs.submit(ARC, BORIS, priority="high")
    assert [(await jobs.standing(each)).position for each in (high, old, new, low)] == [0, 1, 2, 3]


CALL = """
INSERT INTO expert_call (job, turn, attempt, engine, state, output, maybe_spent, cost, prompt_tokens, completion_tokens, due_at, ended_at)
VALUES ($1, $2::integer, 1, $3, $4, $5, $4 = 'lost', $6::bigint, 100, 20, clock_timestamp(),
        CASE WHEN $4 IN ('answered', 'failed', 'lost') THEN clock_timestamp() END)
"""


async def test_what_was_asked_for_a_job_is_summed_up(jobs: Jobs, pool: Pool) -> None:
    job_id = await jobs.submit(ARC, ANNA)
    fresh = await jobs.standing(job_id)
    assert (fresh.asked, fresh.cost_usd, fresh.unpriced, fresh.maybe_spent, fresh.engine) == (
        0,
        0.0,
        False,
        False,
        None,
    )

    await pool.execute(CALL, job_id, 1, "bronze", "answered", None, 250_000_000)
    await pool.execute(CALL, job_id, 2, "sagemaker", "invoked", "s3://b/k", None)
    found = await jobs.standing(job_id)
    assert (found.asked, found.cost_usd, found.unpriced, found.engine) == (2, 0.25, False, "sagemaker")
    assert (found.prompt_tokens, found.completion_tokens) == (200, 40)
    await pool.execute(CALL, job_id, 3, "openai", "lost", None, None)
    found = await jobs.standing(job_id)
    assert (found.unpriced, found.maybe_spent, found.dropped) == (True, True, None)


async def test_who_cancels_gives_up_what_an_endpoint_was_asked(jobs: Jobs, pool: Pool) -> None:
    job_id = await jobs.submit(ARC, ANNA)
    await pool.execute(CALL, job_id, 1, "sagemaker", "invoked", "s3://b/k", None)
    with pytest.raises(NotFound):
        await jobs.cancel(job_id, owner="person:boris")
    assert (await jobs.standing(job_id)).engine == "sagemaker"

    for _ in range(2):  # whoever cancels again changes nothing
        assert await jobs.cancel(job_id, owner="person:anna") == "cancelled"
        found = await jobs.standing(job_id)
        assert (found.engine, found.dropped, found.maybe_spent) == (None, "sagemaker", True)


async def test_it_is_the_same_job_though_its_asker_has_read_text_from_outside_meanwhile(jobs: Jobs, pool: Pool) -> None:
    one = await jobs.submit(ARC, ANNA, idempotency_key="k")
    two = await jobs.submit_many([ARC, replace(ARC, outside=True)], ANNA, idempotency_key="k")

    assert await jobs.submit(replace(ARC, outside=True), replace(ANNA, tainted=True), idempotency_key="k") == one
    again = [replace(ARC, outside=True), replace(ARC, outside=True)]
    assert await jobs.submit_many(again, replace(ANNA, tainted=True), idempotency_key="k") == two
    with pytest.raises(Conflict):
        await jobs.submit(replace(named("Another"), outside=True), ANNA, idempotency_key="k")
    assert await count(pool) == 3


async def test_what_an_endpoint_was_asked_may_have_cost_though_the_job_s_time_is_over(jobs: Jobs, pool: Pool) -> None:
    job_id = await jobs.submit(ARC, ANNA)
    await pool.execute(CALL, job_id, 1, "sagemaker", "invoked", "s3://b/k", None)
    found = await jobs.standing(job_id)
    assert (found.engine, found.maybe_spent, found.unpriced) == ("sagemaker", False, False)

    await pool.execute("UPDATE work SET expires_at = clock_timestamp() WHERE id = $1", job_id)
    async with pool.acquire() as connection:
        await sweep(connection)

    assert (await queue.get(pool, job_id, owner=None)).state == "expired"
    found = await jobs.standing(job_id)
    assert (found.engine, found.dropped, found.maybe_spent, found.unpriced) == (None, "sagemaker", True, True)


async def test_counting_what_is_open_reads_an_index_however_much_has_ended(pool: Pool) -> None:
    async with pool.acquire() as connection:
        await connection.execute("SET plan_cache_mode = force_generic_plan")
        await connection.execute("SET enable_seqscan = off")
        await connection.execute("""
            PREPARE counting (text, text) AS SELECT count(*) FROM work
            WHERE limit_key = $1 AND owner = $2 AND state IN ('waiting', 'queued', 'running')
        """)
        plan = await connection.fetch("EXPLAIN EXECUTE counting ('experts', 'person:anna')")
        await connection.execute("RESET ALL")
    assert any("work_open" in row[0] for row in plan)
