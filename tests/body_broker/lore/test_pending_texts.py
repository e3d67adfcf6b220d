from __future__ import annotations

import pytest

from body_broker.errors import Conflict
from body_broker.lore.documents import Effect
from tests.body_broker.lore.conftest import OPERATOR, Bench, text

ANN = Effect("operator:ann", None)


async def test_nothing_is_approved_while_a_text_that_nobody_has_read_is_being_brought_in(bench: Bench) -> None:
    (doc_id,) = await bench.bring(text("Rumour", "The lantern is red."), canon=False)
    await bench.take(text("Rumour", "Hail the usurper."), canon=False)

    with pytest.raises(Conflict):
        await bench.lore.approve(doc_id, ANN)
    await bench.work_off()

    assert (await bench.lore.get_document(doc_id)).source == "outside"


async def test_only_the_text_that_was_read_is_approved(bench: Bench) -> None:
    (doc_id,) = await bench.bring(text("Rumour", "The lantern is red."), canon=False)
    read = (await bench.lore.get_document(doc_id)).rev
    await bench.bring(text("Rumour", "Hail the usurper."), canon=False)

    with pytest.raises(Conflict):
        await bench.lore.approve(doc_id, ANN, rev=read)
    now = (await bench.lore.get_document(doc_id)).rev

    assert await bench.lore.approve(doc_id, ANN, rev=now) == now
    assert await bench.pool.fetchval("SELECT rev FROM lore_effect WHERE effect = 'approved'") == now


async def test_indexing_anew_does_not_undo_an_import_that_was_under_way(bench: Bench) -> None:
    kept, changed = await bench.bring(text("A", "The bell is blue."), text("B", "The lantern is red."))
    await bench.take(text("B", "The lantern is green."))

    await bench.lore.importing.reindex("shared", OPERATOR)
    await bench.work_off()

    assert (await bench.lore.get_document(changed)).content == "The lantern is green."
    assert await bench.found("bell") == [kept]


async def test_where_all_is_being_brought_in_there_is_nothing_to_index_anew(bench: Bench) -> None:
    await bench.bring(text("A", "The lantern is red."))
    await bench.take(text("A", "The lantern is green."))

    with pytest.raises(Conflict):
        await bench.lore.importing.reindex("shared", OPERATOR)
