"""What changed in the lore: each document once, under what became of it, with what is known of it now."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from body_broker.lore.changes import Change, Changes, changes, days_of_change
from body_broker.lore.documents import Effect
from tests.body_broker.lore.conftest import OPERATOR, RECEIPT, Bench, text

ANN = Effect("person:ann", RECEIPT)
AGE = timedelta(days=1)


def kinds(found: Changes) -> list[tuple[str, str | None]]:
    return [(change.kind, change.title) for change in found.newest]


async def test_new_documents_come_newest_first_with_title_index_and_who_brought_them(bench: Bench) -> None:
    (quay,) = await bench.bring(text("Quay", "A lantern."))
    await bench.bring(text("Osric", "A ferry."), index="persona:osric", canon=False)

    found = await changes(bench.pool, AGE, limit=10)

    assert kinds(found) == [("imported", "Osric"), ("imported", "Quay")]
    assert found.counts == {"imported": 2}
    osric, first = found.newest
    assert (osric.index, osric.source, osric.by) == ("lore-osric", "outside", "operator:ann")
    assert (first.doc_id, first.index, first.source) == (quay, "lore-shared", "canon")
    assert found.since < first.known_since == first.at < osric.at


async def test_a_text_that_took_another_s_place_is_replaced_and_an_approved_one_is_canon_now(bench: Bench) -> None:
    await bench.bring(text("Quay", "A lantern."))
    (hearsay,) = await bench.bring(text("Hearsay", "They say it sank."), canon=False)
    before = await _now(bench)
    await bench.bring(text("Quay", "Two lanterns."))
    await bench.bring(text("Quay", "Three lanterns."))
    await bench.lore.approve(hearsay, ANN)

    found = await changes(bench.pool, before, limit=10)

    assert kinds(found) == [("approved", "Hearsay"), ("replaced", "Quay")]
    assert found.counts == {"approved": 1, "replaced": 1}
    assert (found.newest[0].source, found.newest[0].by) == ("canon", "person:ann")


async def test_a_document_that_came_and_was_replaced_since_then_is_new(bench: Bench) -> None:
    await bench.bring(text("Quay", "A lantern."))
    await bench.bring(text("Quay", "Two lanterns."))
    assert kinds(await changes(bench.pool, AGE, limit=10)) == [("imported", "Quay")]


async def test_of_a_deleted_document_its_id_and_since_when_it_was_there_are_known_and_nothing_else(
    bench: Bench,
) -> None:
    (quay,) = await bench.bring(text("Quay", "A lantern."))
    came = (await changes(bench.pool, AGE, limit=1)).newest[0].at
    await bench.lore.delete_document(quay, ANN)

    (change,) = (await changes(bench.pool, AGE, limit=10)).newest

    assert change == Change("deleted", quay, change.at, "person:ann", came, None, None, None)
    assert change.at > came


async def test_an_approved_document_that_is_gone_is_only_gone(bench: Bench) -> None:
    (hearsay,) = await bench.bring(text("Hearsay", "They say it sank."), canon=False)
    await bench.lore.approve(hearsay, ANN)
    await bench.lore.delete_document(hearsay, ANN)
    found = await changes(bench.pool, AGE, limit=10)
    assert (kinds(found), found.counts) == ([("deleted", None)], {"deleted": 1})


async def test_indexing_anew_changes_nothing_that_is_said(bench: Bench) -> None:
    await bench.bring(text("Quay", "A lantern."), text("Ferry", "It sails."))
    before = await _now(bench)
    for _ in range(2):
        await bench.lore.importing.reindex("shared", OPERATOR)
        await bench.work_off()
    await bench.bring(text("Ferry", "It sank."))
    assert kinds(await changes(bench.pool, before, limit=10)) == [("replaced", "Ferry")]


async def test_more_changes_than_are_told_are_counted(bench: Bench) -> None:
    await bench.bring(*(text(f"Step {n}", f"Step {n}.") for n in range(5)))
    found = await changes(bench.pool, AGE, limit=2)
    assert len(found.newest) == 2
    assert found.counts == {"imported": 5}


async def test_nothing_has_changed_since_the_last_change(bench: Bench) -> None:
    await bench.bring(text("Quay", "A lantern."))
    found = await changes(bench.pool, await _now(bench), limit=10)
    assert (found.newest, found.counts) == ([], {})
    assert await days_of_change(bench.pool, 5) == [(await _now(bench)).astimezone(UTC).date().isoformat()]


async def _now(bench: Bench) -> datetime:
    now: datetime = await bench.pool.fetchval("SELECT clock_timestamp()")
    return now
