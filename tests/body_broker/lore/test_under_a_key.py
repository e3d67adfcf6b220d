"""Owns the proof that changes of the lore under a key happen once: an import, a new index, a deletion."""

from __future__ import annotations

import pytest

from body_broker.errors import Conflict
from body_broker.lore import Effect
from tests.body_broker.lore.conftest import OPERATOR, RECEIPT, Bench, text

EFFECT = Effect("operator:ann", RECEIPT)


async def test_an_import_under_a_key_is_begun_once_and_always_answers_the_same(bench: Bench) -> None:
    taking = bench.lore.importing.take
    first = await taking([text("The Quay", "A lantern.")], index="shared", canon=False, origin=OPERATOR, key="apr_1")
    again = await taking([text("The Quay", "A lantern.")], index="shared", canon=False, origin=OPERATOR, key="apr_1")
    assert again == first
    await bench.work_off()
    late = await taking([text("The Quay", "A lantern.")], index="shared", canon=False, origin=OPERATOR, key="apr_1")
    assert late == first, "also where it is unchanged by now"
    assert await bench.pool.fetchval("SELECT count(*) FROM work WHERE kind = 'lore_import'") == 1
    assert await bench.pool.fetchval("SELECT count(*) FROM lore_effect") == 1


async def test_indexing_anew_under_a_key_is_begun_once(bench: Bench) -> None:
    await bench.bring(text("The Quay", "A lantern."))
    first = await bench.lore.importing.reindex("shared", OPERATOR, key="apr_1")
    assert await bench.lore.importing.reindex("shared", OPERATOR, key="apr_1") == first
    with pytest.raises(Conflict):
        await bench.lore.importing.reindex("shared", OPERATOR, key="apr_2")
    await bench.work_off()
    assert await bench.lore.importing.reindex("shared", OPERATOR, key="apr_1") == first
    assert await bench.pool.fetchval("SELECT count(*) FROM work WHERE kind = 'lore_reindex'") == 1


async def test_a_deletion_under_a_key_says_each_time_that_it_was_there(bench: Bench) -> None:
    (doc_id,) = await bench.bring(text("The Quay", "A lantern."))
    assert await bench.lore.delete_document(doc_id, EFFECT, key="apr_1")
    assert await bench.lore.delete_document(doc_id, EFFECT, key="apr_1")
    assert not await bench.lore.delete_document(doc_id, EFFECT)


async def test_a_deletion_of_a_text_that_was_replaced_since_deletes_nothing(bench: Bench) -> None:
    (doc_id,) = await bench.bring(text("The Quay", "A lantern."))
    rev = (await bench.lore.get_document(doc_id)).rev
    await bench.bring(text("The Quay", "A red lantern."))
    with pytest.raises(Conflict, match="another text by now"):
        await bench.lore.delete_document(doc_id, EFFECT, rev=rev, key="apr_1")
    assert await bench.found("lantern") != []
