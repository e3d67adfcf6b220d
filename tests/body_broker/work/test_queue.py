"""Owns the proof of what is done to work from outside a worker, where no worker is needed: enqueue, release, cancel, reading."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from body_broker.calls import Json, Receipt
from body_broker.errors import BadInput, Conflict, NotFound, TooLarge
from body_broker.text import new_id
from body_broker.work import queue
from body_broker.work.model import JSON_BYTES_MAX, Origin
from tests.body_broker.work.bench import ANNA, Bench

BORIS = Origin(chain=("person:boris",), session="s-2")


async def test_work_exists_if_and_only_if_the_transaction_that_enqueued_it_commits(bench: Bench) -> None:
    async with bench.pool.acquire() as connection:
        async with connection.transaction():
            kept = await queue.enqueue(connection, "kind", {"n": 1}, origin=ANNA)
            with pytest.raises(NotFound):
                await bench.item(kept)
        undone = connection.transaction()
        await undone.start()
        lost = await queue.enqueue(connection, "kind", {}, origin=ANNA)
        await undone.rollback()

    assert (await bench.item(kept)).state == "queued"
    with pytest.raises(NotFound):
        await bench.item(lost)


async def test_work_carries_its_whole_origin_and_belongs_to_its_asker(bench: Bench) -> None:
    origin = replace(
        ANNA, tainted=True, depth=2, receipt=Receipt("writer", 7), sessions=("s-1", "s-0"), tokens=("tok_1", "tok_0")
    )
    work = await queue.enqueue(bench.pool, "kind", ["any", "json", 1.5, None], origin=origin)
    item = await bench.item(work)
    assert item.origin == origin
    assert item.owner == "person:anna"
    assert item.input == ["any", "json", 1.5, None]
    assert work.startswith("job_")


async def test_work_that_was_recorded_without_sessions_and_tokens_is_still_read(bench: Bench) -> None:
    work = await bench.add("kind")
    await bench.pool.execute("UPDATE work SET origin = origin - 'sessions' - 'tokens' WHERE id = $1", work)
    assert (await bench.item(work)).origin == ANNA


async def test_work_takes_the_id_it_is_given_once(bench: Bench) -> None:
    given = new_id("apr")
    assert await bench.add("kind", work_id=given, waiting=True) == given
    assert (await bench.item(given)).state == "waiting"
    with pytest.raises(Conflict):
        await bench.add("kind", work_id=given)


async def test_a_repeated_unique_key_is_the_owners_first_work(bench: Bench) -> None:
    first = await bench.add("kind", {"n": 1}, unique_key="k")
    assert await bench.add("kind", {"n": 1}, unique_key="k") == first
    with pytest.raises(Conflict):
        await bench.add("kind", {"n": 2}, unique_key="k")
    with pytest.raises(Conflict):
        await bench.add("other kind", {"n": 1}, unique_key="k")
    assert await queue.enqueue(bench.pool, "kind", {"n": 2}, origin=BORIS, unique_key="k") != first


@pytest.mark.parametrize(
    ("value", "error"),
    [
        (object(), BadInput),
        ({"text": "a\x00b"}, BadInput),
        ({"text": "\ud800"}, BadInput),
        ("x" * JSON_BYTES_MAX, TooLarge),
    ],
    ids=["no json", "NUL", "half a surrogate", "too long"],
)
async def test_input_that_postgresql_cannot_hold_is_refused_plainly(
    bench: Bench, value: Json, error: type[BadInput]
) -> None:
    with pytest.raises(error):
        await bench.add("kind", value)


async def test_a_backslash_before_what_looks_like_a_nul_is_kept(bench: Bench) -> None:
    value = {"text": "\\u0000 \\\\u0000"}
    assert (await bench.item(await bench.add("kind", value))).input == value


async def test_waiting_work_is_released_once(bench: Bench) -> None:
    work = await bench.add("kind", waiting=True)
    assert await queue.release(bench.pool, work)
    assert (await bench.item(work)).state == "queued"
    assert not await queue.release(bench.pool, work)
    assert not await queue.release(bench.pool, "job_unknown")


async def test_of_two_transactions_that_release_the_same_work_one_does(bench: Bench) -> None:
    work = await bench.add("kind", waiting=True)
    async with bench.pool.acquire() as one, one.transaction():
        assert await queue.release(one, work)
        assert (await bench.item(work)).state == "waiting"  # not before the commit
    assert not await queue.release(bench.pool, work)


async def test_expired_work_is_not_released(bench: Bench) -> None:
    work = await bench.add("kind", waiting=True, expires_in_s=0.0)
    assert not await queue.release(bench.pool, work)


@pytest.mark.parametrize("options", [{}, {"waiting": True}], ids=["queued", "waiting"])
async def test_work_that_has_not_begun_is_cancelled_at_once(bench: Bench, options: dict[str, Any]) -> None:
    work = await bench.add("kind", **options)
    assert await queue.cancel(bench.pool, work, owner="person:anna") == "cancelled"
    item = await bench.item(work)
    assert item.state == "cancelled"
    assert item.finished_at is not None
    assert await queue.cancel(bench.pool, work, owner="person:anna") == "cancelled"
    assert not await queue.release(bench.pool, work)


async def test_nobody_sees_or_cancels_what_belongs_to_another(bench: Bench) -> None:
    work = await bench.add("kind")
    messages: list[str] = []
    for missing in (work, "job_unknown"):
        with pytest.raises(NotFound) as read:
            await queue.get(bench.pool, missing, owner="person:boris")
        with pytest.raises(NotFound) as cancelled:
            await queue.cancel(bench.pool, missing, owner="person:boris")
        messages += [read.value.message, cancelled.value.message]
    assert len(set(messages)) == 1
    # The tier that acted for her does not own her work either.
    assert (await queue.list_newest(bench.pool, owner="tier:silver")).items == []
    assert (await queue.list_newest(bench.pool, owner="person:boris")).items == []
    assert (await queue.get(bench.pool, work, owner="person:anna")).state == "queued"


async def test_a_listing_goes_through_all_of_the_owners_work_newest_first(bench: Bench) -> None:
    made = [await bench.add("kind") for _ in range(5)]
    await queue.enqueue(bench.pool, "kind", {}, origin=BORIS)
    seen: list[str] = []
    sizes: list[int] = []
    before: int | None = None
    while True:
        page = await queue.list_newest(bench.pool, owner="person:anna", before=before, limit=2)
        seen += [item.id for item in page.items]
        sizes.append(len(page.items))
        if (before := page.before) is None:
            break
        await bench.add("kind")  # what comes in between does not move the pages
    assert seen == made[::-1]
    assert sizes == [2, 2, 1]


async def test_a_listing_is_narrowed_by_state_and_kind(bench: Bench) -> None:
    queued, waiting = await bench.add("a"), await bench.add("b", waiting=True)
    of_boris = await queue.enqueue(bench.pool, "a", {}, origin=BORIS)

    async def ids(owner: str | None, **narrowed: Any) -> list[str]:
        return [item.id for item in (await queue.list_newest(bench.pool, owner=owner, **narrowed)).items]

    assert await ids("person:anna", states=["waiting"]) == [waiting]
    assert await ids("person:anna", states=["waiting", "queued"]) == [waiting, queued]
    assert await ids("person:anna", kinds=["a"]) == [queued]
    assert await ids(None, kinds=["a"]) == [of_boris, queued]


async def test_purge_forgets_only_what_ended_longer_ago(bench: Bench) -> None:
    old, recent, waiting = await bench.add("kind"), await bench.add("kind"), await bench.add("kind", waiting=True)
    for work in (old, recent):
        await queue.cancel(bench.pool, work, owner="person:anna")
    await bench.pool.execute("UPDATE work SET finished_at = now() - interval '2 h' WHERE id = $1", old)
    await bench.pool.execute("UPDATE work SET created_at = now() - interval '9 h'")

    assert await queue.purge(bench.pool, older_than_s=3600) == 1
    with pytest.raises(NotFound):
        await bench.item(old)
    assert (await bench.item(recent)).state == "cancelled"
    assert (await bench.item(waiting)).state == "waiting"
