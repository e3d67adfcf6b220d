from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest

from body_broker.errors import BadInput, NotFound, TooLarge
from body_broker.lore import Effect, documents
from body_broker.lore.chunks import CUTTER, cut
from body_broker.lore.importing import IMPORT, _Texts  # pyright: ignore[reportPrivateUsage] - the exact place
from body_broker.storage.postgres import Pool
from body_broker.work import queue
from tests.body_broker.lore.conftest import OPERATOR, RECEIPT, Bench, long_text, text, texts
from tests.components import PROJECT
from tests.waiting import wait_until

WORKER = Path(__file__).with_name("worker_process.py")


async def rows(pool: Pool) -> dict[str, int]:
    tables = ("lore_document", "lore_edition", "lore_page", "lore_chunk", "lore_posting", "lore_posting_total")
    return {table: await pool.fetchval(f"SELECT count(*) FROM {table}") for table in tables}  # noqa: S608  # names above


async def test_an_imported_document_is_found_with_exact_offsets(bench: Bench) -> None:
    body = long_text(5)
    (doc_id,) = await bench.bring(text("The Quay", body))

    page = await bench.lore.search("shared", "lantern number3", limit=3)

    best = page.passages[0]
    assert (best.doc_id, best.title, best.source) == (doc_id, "The Quay", "canon")
    assert body[best.start : best.end] == best.content
    assert "number3" in best.content
    assert bench.announced == [f"lore://doc/{doc_id}"]


async def test_texts_lie_in_the_database_before_the_job_runs_and_nobody_finds_them(bench: Bench) -> None:
    taken = await bench.take(text("The Quay", "A lantern."))

    assert await bench.found("lantern") == []
    assert (await rows(bench.pool))["lore_edition"] == 1
    assert (await queue.get(bench.pool, taken.job_id or "", owner="operator:ann")).kind == IMPORT


async def test_importing_the_same_again_changes_nothing_and_says_so(bench: Bench) -> None:
    drafts = texts(["The lantern is red.", "The lantern is blue."])
    await bench.bring(*drafts)
    before = await rows(bench.pool)

    again = await bench.take(*drafts)

    assert again.job_id is None
    assert [document.status for document in again.documents] == ["unchanged", "unchanged"]
    assert await rows(bench.pool) == before


async def test_only_what_changed_is_imported(bench: Bench) -> None:
    first = await bench.bring(text("A", "The lantern is red."), text("B", "The bell is blue."))

    taken = await bench.take(text("A", "The lantern is green."), text("B", "The bell is blue."), text("C", "A ferry."))
    await bench.work_off()
    job = await bench.job(taken.job_id)

    assert [document.status for document in taken.documents] == ["accepted", "unchanged", "accepted"]
    assert [document.doc_id for document in taken.documents][:2] == first, "a document keeps its id"
    assert job.result == {"documents": 2, "unchanged": 1, "passages": 2}
    assert await bench.found("red") == []
    assert await bench.found("green") == [first[0]]


async def test_a_changed_title_is_a_change(bench: Bench) -> None:
    (doc_id,) = await bench.bring(text("A", "The lantern."))
    renamed = text("A", "The lantern.")
    object.__setattr__(renamed, "title", "The Red Ferry")

    await bench.bring(renamed)

    assert await bench.found("ferry") == [doc_id]


async def test_two_documents_of_one_name_are_refused_and_nothing_is_stored(bench: Bench) -> None:
    with pytest.raises(BadInput, match="one name"):
        await bench.take(text("A", "One."), text("A", "Two."))
    with pytest.raises(BadInput, match="no document"):
        await bench.take()

    assert sum((await rows(bench.pool)).values()) == 0


async def test_more_text_than_one_import_may_bring_is_refused(bench: Bench) -> None:
    megabytes = "x" * 8_000_000

    with pytest.raises(TooLarge, match="64 MiB"):
        await bench.take(*(text(f"T{n}", megabytes) for n in range(9)))


async def test_outside_text_never_replaces_canon_and_canon_takes_the_place_of_its_twin(bench: Bench) -> None:
    (canon,) = await bench.bring(text("A", "The lantern is red."))
    (outside,) = await bench.bring(text("A", "The lantern is a lie."), canon=False)
    assert canon != outside
    assert await bench.found("lantern red") == [canon, outside]

    same = await bench.take(text("A", "The lantern is red."), canon=False)
    assert (same.job_id, same.documents[0].doc_id) == (None, canon)

    (twin,) = await bench.bring(text("B", "The bell is blue."), canon=False)
    (taken,) = await bench.bring(text("B", "The bell is blue."))
    assert await bench.found("bell") == [taken]
    with pytest.raises(NotFound):
        await bench.lore.get_document(twin)


async def test_a_person_takes_an_outside_document_into_the_canon(bench: Bench) -> None:
    (doc_id,) = await bench.bring(text("A", "The lantern."), canon=False)
    assert (await bench.lore.search("shared", "lantern", limit=1)).passages[0].source == "outside"

    await bench.lore.approve(doc_id, Effect("operator:ann", None))

    assert (await bench.lore.search("shared", "lantern", limit=1)).passages[0].source == "canon"
    with pytest.raises(NotFound):
        await bench.lore.approve(doc_id, Effect("operator:ann", None))


async def test_effects_carry_the_receipt_of_their_decision(bench: Bench) -> None:
    (doc_id,) = await bench.bring(text("A", "The lantern."))
    await bench.lore.delete_document(doc_id, Effect("person:anna>tier:bronze", RECEIPT))

    found = await bench.pool.fetch("SELECT effect, document_id, by, receipt_writer, receipt_sequence FROM lore_effect")

    assert [tuple(row) for row in found] == [
        ("imported", doc_id, "operator:ann", "writer-1", 7),
        ("deleted", doc_id, "person:anna>tier:bronze", "writer-1", 7),
    ]


async def test_a_deleted_document_leaves_nothing_and_deleting_it_again_is_not_an_error(bench: Bench) -> None:
    (doc_id,) = await bench.bring(text("A", "The lantern."))
    effect = Effect("operator:ann", None)

    assert await bench.lore.delete_document(doc_id, effect) is True
    assert await bench.lore.delete_document(doc_id, effect) is False

    assert sum((await rows(bench.pool)).values()) == 0
    with pytest.raises(NotFound):
        await bench.lore.delete_document("doc_never", effect)


async def test_reindexing_gives_the_same_answers_and_leaves_nothing_old(bench: Bench) -> None:
    await bench.bring(*texts([long_text(3), long_text(4, "bell")]))
    before, found = await rows(bench.pool), await bench.found("lantern bell")

    await bench.lore.importing.reindex("shared", OPERATOR)
    await bench.work_off()

    assert await rows(bench.pool) == before
    assert await bench.found("lantern bell") == found
    with pytest.raises(NotFound):
        await bench.lore.importing.reindex("persona:nobody", OPERATOR)


async def test_readers_see_the_old_text_or_the_new_one_and_never_both_or_none(bench: Bench) -> None:
    (doc_id,) = await bench.bring(text("A", long_text(30, "lantern old")))
    seen: set[frozenset[str]] = set()
    over = asyncio.Event()

    async def read() -> None:
        while not over.is_set():
            page = await bench.lore.search("shared", "lantern", limit=50)
            versions = {word for p in page.passages for word in ("old", "new") if f"lantern {word}" in p.content}
            assert {p.doc_id for p in page.passages} == {doc_id}
            assert len(versions) == 1, versions
            assert len(page.passages) >= 30
            seen.add(frozenset(versions))

    async with asyncio.TaskGroup() as readers:
        for _ in range(3):
            readers.create_task(read())
        for n in range(8):
            await bench.bring(text("A", long_text(30, "lantern new" if n % 2 == 0 else "lantern old")))
        over.set()
    assert seen == {frozenset({"old"}), frozenset({"new"})}


async def test_a_document_deleted_while_it_is_imported_stays_deleted(bench: Bench) -> None:
    (doc_id,) = (await bench.take(text("A", "The lantern."))).documents
    await bench.lore.delete_document(doc_id.doc_id, Effect("operator:ann", None))

    await bench.work_off()

    assert await bench.found("lantern") == []
    assert sum((await rows(bench.pool)).values()) == 0


async def test_a_batch_whose_document_is_deleted_before_it_gets_the_lock_writes_nothing(bench: Bench) -> None:
    taken = await bench.take(text("A", "The lantern."))
    (rev,) = (await bench.job(taken.job_id)).input["revs"]
    edition, chunks = await _Texts(bench.pool).cut(rev)
    effect = Effect("operator:ann", None)

    async def write() -> list[str]:
        async with bench.pool.acquire() as connection, connection.transaction():
            return await bench.lore.importing._write(connection, [((rev, 0, 1, True), edition, chunks)], effect)  # pyright: ignore[reportPrivateUsage] - the exact place

    async with bench.pool.acquire() as deleting, deleting.transaction():
        await documents.delete(deleting, taken.documents[0].doc_id, effect)
        writing = asyncio.create_task(write())
        await wait_until(lambda: _waits_for_a_lock(bench.pool), "the batch waits for the document")

    assert await writing == []
    assert sum((await rows(bench.pool)).values()) == 0


async def _waits_for_a_lock(pool: Pool) -> bool:
    found = await pool.fetchval(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    )
    return bool(found)


async def test_of_two_imports_of_one_document_the_later_one_stays_whichever_is_done_first(bench: Bench) -> None:
    first = await bench.take(text("A", "The lantern is red."))
    second = await bench.take(text("A", "The lantern is blue."))
    await bench.pool.execute("UPDATE work SET priority = CASE id WHEN $1 THEN 0 ELSE 9 END", first.job_id)

    await bench.work_off()

    assert await bench.found("blue") == [second.documents[0].doc_id]
    assert await bench.found("red") == []
    assert (await rows(bench.pool))["lore_edition"] == 1


async def test_what_a_cancelled_import_left_is_swept_by_a_later_one(bench: Bench) -> None:
    left = await bench.take(text("A", "The lantern."))
    kept = await bench.take(text("B", "The bell."))
    await queue.cancel(bench.pool, left.job_id or "", owner="operator:ann")
    await bench.pool.execute("UPDATE lore_edition SET created_at = now() - interval '2 hours'")

    await bench.take(text("C", "The ferry."))

    assert await bench.pool.fetchval("SELECT count(*) FROM lore_document") == 2, "only the cancelled one's is gone"
    await bench.work_off()
    assert await bench.found("bell") == [kept.documents[0].doc_id]


@pytest.mark.parametrize("place", ["inside batch 0", "inside batch 1", "before batch 2"])
async def test_an_import_whose_worker_is_killed_goes_on_where_it_was(
    bench: Bench, database_url: str, place: str
) -> None:
    body = long_text(900)
    chunks = cut(body)
    taken = await bench.take(text("A", body), text("B", "A small bell."))
    await _run_until_killed(database_url, place)
    assert await bench.found("lantern") == [], "nobody sees half a document"
    kept = await _written(bench.pool)
    assert len(kept) == 400 * int(place[-1])

    await bench.work_off()

    assert (await bench.job(taken.job_id)).attempts == 2
    written = await _written(bench.pool)
    assert {key: written[key] for key in kept} == kept, "what was committed is not written again"
    stored = await bench.pool.fetch(
        "SELECT char_start, char_end, content FROM lore_chunk JOIN lore_document USING (rev) WHERE id = $1 ORDER BY ordinal",
        taken.documents[0].doc_id,
    )
    assert [tuple(row) for row in stored] == [(c.start, c.end, body[c.start : c.end]) for c in chunks]
    totals = await bench.pool.fetchrow(
        "SELECT sum(chunks)::int AS chunks, sum(words)::int AS words, (SELECT sum(tf)::int FROM lore_posting) AS posted"
        " FROM lore_posting_total"
    )
    assert totals is not None
    assert (totals["chunks"], totals["words"]) == (len(chunks) + 1, totals["posted"])
    steps = await bench.pool.fetch("SELECT name FROM work_step ORDER BY at")
    assert [row["name"] for row in steps] == [
        f"{name}@{CUTTER}" for name in ("sizes", "clear", *(f"batch {n}" for n in range(len(steps) - 2)))
    ]


async def _run_until_killed(database_url: str, place: str) -> None:
    """Let a worker in a process of its own come to the place, and kill it there."""
    worker = await asyncio.create_subprocess_exec(
        sys.executable, WORKER, database_url, place, stdout=asyncio.subprocess.PIPE, cwd=PROJECT
    )
    assert worker.stdout is not None
    assert (await worker.stdout.readline()).decode().strip() == place
    worker.kill()
    await worker.wait()


async def _written(pool: Pool) -> dict[tuple[int, int], str]:
    """By chunk, the transaction that wrote it."""
    found = await pool.fetch("SELECT rev, ordinal, xmin::text AS transaction FROM lore_chunk")
    return {(row["rev"], row["ordinal"]): row["transaction"] for row in found}
