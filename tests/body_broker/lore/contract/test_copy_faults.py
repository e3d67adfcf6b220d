from __future__ import annotations

import asyncio

import orjson
import pytest

from body_broker.lore.opensearch import ledger
from body_broker.work.model import Origin
from tests.body_broker.lore.contract.conftest import PATIENCE_S, Open, Shelf, text
from tests.counterparts.slow_line import slow_line
from tests.opensearch_node import Node, ask, clear
from tests.waiting import wait_until

pytestmark = pytest.mark.requires("java", "opensearch")
NOBODY = "http://127.0.0.1:9"
OPERATOR = Origin(chain=("operator:ann",), session="operator:ann")


@pytest.fixture
async def copied(open_shelf: Open, node: Node) -> Shelf:
    """Lore with a copy that shows two documents."""
    await clear(node.url)
    shelf = await open_shelf(node.url)
    await shelf.bring(text("The Quay", "A lantern burns."), text("The Ferry", "The lantern of the ferry."))
    return shelf


async def told(shelf: Shelf, query: str = "lantern") -> tuple[list[str], list[str]]:
    """The titles of what is found, in any order, and what is said to be unavailable."""
    page = await shelf.search(query)
    return sorted({p.title for p in page.passages}), list(page.unavailable)


async def why(shelf: Shelf, kind: str = ledger.COPY) -> str:
    """What the job that copies last said went wrong."""
    said = await shelf.pool.fetchval("SELECT error::text FROM work WHERE kind = $1 AND error IS NOT NULL", kind)
    return str(orjson.loads(said)["message"]) if said else ""


async def test_a_copy_that_was_never_built_is_said_to_be_missing_and_postgresql_answers(
    open_shelf: Open, node: Node
) -> None:
    shelf = await open_shelf(node.url, built=False)
    await shelf.bring(text("The Quay", "A lantern burns."))

    assert await told(shelf) == (["The Quay"], ["copy"])
    await shelf.check()
    assert await told(shelf) == (["The Quay"], [])


async def test_a_copy_that_is_behind_shows_nothing_that_is_gone_and_says_so(copied: Shelf) -> None:
    await copied.bring(text("The Quay", "A torch burns."), text("The Inn", "A lantern."), settled=False)
    assert await told(copied) == (["The Ferry"], ["copy_behind"])
    assert await told(copied, "torch") == ([], ["copy_behind"])

    await copied.work_off()

    assert await told(copied) == (["The Ferry", "The Inn"], [])
    assert await told(copied, "torch") == (["The Quay"], [])


async def test_a_deleted_document_is_never_found_though_the_copy_still_has_it(copied: Shelf) -> None:
    page = await copied.search("ferry")
    await copied.delete(page.passages[0].doc_id, settled=False)

    assert await told(copied) == (["The Quay"], [])
    await copied.work_off()
    held = await ask_count(copied)
    assert held == 1


async def ask_count(shelf: Shelf) -> int:
    """How many entries the copy shows in all."""
    assert shelf.copy is not None
    answer = await shelf.copy.client.look(await shelf.generation(), {"size": 0, "track_total_hits": True})
    return int(answer["hits"]["total"]["value"])


async def test_an_index_deleted_by_hand_is_answered_for_and_built_again_by_itself(copied: Shelf, node: Node) -> None:
    lost = await copied.generation()
    await ask(node.url, "DELETE", f"/{lost}")
    assert await told(copied) == (["The Ferry", "The Quay"], ["copy"])

    await copied.bring(text("The Inn", "A lantern."))

    assert await copied.generation() != lost
    assert await told(copied) == (["The Ferry", "The Inn", "The Quay"], [])
    names = [found["index"] for found in (await ask(node.url, "GET", "/_cat/indices/lore*?format=json")).json()]
    assert names == [await copied.generation()]


@pytest.mark.parametrize("with_mapping", [False, True])
async def test_an_index_that_came_about_under_the_same_name_is_not_taken_for_the_copy(
    copied: Shelf, node: Node, *, with_mapping: bool
) -> None:
    generation = await copied.generation()
    mapping = (await ask(node.url, "GET", f"/{generation}/_mapping")).json()[generation]["mappings"]
    await ask(node.url, "DELETE", f"/{generation}")
    if with_mapping:
        properties = {name: field for name, field in mapping["properties"].items() if name != "text"}
        await ask(node.url, "PUT", f"/{generation}", {"mappings": {"properties": properties}})
    else:
        entry = {"index_id": "1", "rev": 1, "ordinal": 0, "part": 0, "text": "lantern", "canon": True}
        await ask(node.url, "PUT", f"/{generation}/_doc/1?refresh=true", entry)
        assert await told(copied) == (["The Ferry", "The Quay"], ["copy"])

    await copied.check()

    assert await copied.generation() != generation
    assert await told(copied) == (["The Ferry", "The Quay"], [])


async def test_a_write_that_comes_after_the_index_was_deleted_makes_no_copy(
    open_shelf: Open, copied: Shelf, node: Node
) -> None:
    lost = await copied.generation()
    await copied.bring(text("The Inn", "A lantern."), settled=False)
    async with slow_line(node.url) as line:
        slow = await open_shelf(line.url, built=False)
        line.hold("/_mapping ")
        async with slow.working():
            await wait_until(lambda: line.held, "the index was looked at", PATIENCE_S)
            await ask(node.url, "DELETE", f"/{lost}")
            line.let_go()
            await wait_until(lambda: whole_with_inn(copied), "another generation serves", PATIENCE_S)
            await wait_until(lambda: names_are_one(node), "what the write made is gone", PATIENCE_S)

    assert await copied.generation() != lost


@pytest.mark.parametrize("doubled", [False, True])
async def test_a_copy_that_lacks_or_doubles_something_is_found_out_and_built_again(
    copied: Shelf, node: Node, *, doubled: bool
) -> None:
    generation = await copied.generation()
    if doubled:
        found = (await ask(node.url, "GET", f"/{generation}/_search")).json()["hits"]["hits"]
        for hit in found:
            await ask(node.url, "POST", f"/{generation}/_doc?refresh=true", hit["_source"])
        page = await copied.search("lantern")
        assert [p.title for p in page.passages] == ["The Quay", "The Ferry"]
    else:
        query = {"query": {"match": {"text": "ferry"}}}
        await ask(node.url, "POST", f"/{generation}/_delete_by_query?refresh=true", query)

    await copied.check()

    assert await copied.generation() != generation
    assert await told(copied) == (["The Ferry", "The Quay"], [])


async def test_a_whole_copy_passes_its_check(copied: Shelf) -> None:
    generation = await copied.generation()

    await copied.check()

    assert await copied.generation() == generation


async def test_an_opensearch_that_is_away_costs_nothing_but_the_word(open_shelf: Open, copied: Shelf) -> None:
    away = await open_shelf(NOBODY, built=False)

    for _ in range(6):
        assert await told(away) == (["The Ferry", "The Quay"], ["copy"])
    async with away.working():
        await away.lore.importing.take([text("The Inn", "A lantern.")], index="shared", canon=True, origin=OPERATOR)
        await wait_until(lambda: why(away), "the job says why", PATIENCE_S)
        assert await why(away) == "OpenSearch cannot be reached."
        assert await told(away) == (["The Ferry", "The Inn", "The Quay"], ["copy"])

    await copied.work_off()
    assert await told(copied) == (["The Ferry", "The Inn", "The Quay"], [])


async def test_a_slow_opensearch_is_waited_for_once_and_asked_again_later(
    open_shelf: Open, copied: Shelf, node: Node
) -> None:
    async with slow_line(node.url) as line:
        shelf = await open_shelf(line.url, built=False, opensearch_timeout_s=0.5)
        await wait_until(lambda: is_whole(shelf), "the line is warm", PATIENCE_S)
        line.hold()
        assert await told(shelf) == (["The Ferry", "The Quay"], ["copy"])
        begun = line.begun

        answers = [await told(shelf) for _ in range(5)]

        assert answers == [(["The Ferry", "The Quay"], ["copy"])] * 5
        assert line.begun <= begun + 1  # at most the one that tries it again
        line.let_go()
        await wait_until(lambda: is_whole(shelf), "it is asked again", PATIENCE_S)
    assert copied.copy is not None


async def is_whole(shelf: Shelf) -> bool:
    return await told(shelf) == (["The Ferry", "The Quay"], [])


async def test_a_full_disk_is_told_and_nothing_is_lost(copied: Shelf, node: Node) -> None:
    block = f"/{await copied.generation()}/_settings"
    await ask(node.url, "PUT", block, {"index.blocks.read_only_allow_delete": True})
    async with copied.working():
        await copied.lore.importing.take([text("The Inn", "A lantern.")], index="shared", canon=True, origin=OPERATOR)
        await wait_until(lambda: why(copied), "the job says why", PATIENCE_S)
        assert "disk is full" in await why(copied)
        assert await told(copied) == (["The Ferry", "The Quay"], ["copy_behind"])

        await ask(node.url, "PUT", block, {"index.blocks.read_only_allow_delete": None})

        await wait_until(lambda: whole_with_inn(copied), "it goes on by itself", PATIENCE_S)


async def whole_with_inn(shelf: Shelf) -> bool:
    return await told(shelf) == (["The Ferry", "The Inn", "The Quay"], [])


async def test_while_a_new_generation_is_built_the_old_one_answers_wholly(copied: Shelf, node: Node) -> None:
    old = await copied.generation()
    await ledger.enqueue_rebuild(copied.pool, always=True)
    answers: list[tuple[list[str], list[str]]] = []
    async with copied.working():
        while await copied.generation() == old:
            answers.append(await told(copied))
        answers += [await told(copied) for _ in range(20)]
        await wait_until(lambda: names_are_one(node), "the old index is deleted", PATIENCE_S)

    assert [answer for answer in answers if answer != (["The Ferry", "The Quay"], [])] == []


async def names_are_one(node: Node) -> bool:
    return len((await ask(node.url, "GET", "/_cat/indices/lore*?format=json")).json()) == 1


async def test_what_changes_while_a_generation_is_filled_is_in_it(open_shelf: Open, copied: Shelf, node: Node) -> None:
    async with slow_line(node.url) as line:
        slow = await open_shelf(line.url, built=False, opensearch_timeout_s=10)
        line.hold()
        await ledger.enqueue_rebuild(copied.pool, always=True)
        async with slow.working():
            await wait_until(lambda: line.begun, "the new index is asked for", PATIENCE_S)
            await copied.lore.importing.take(
                [text("The Inn", "A lantern.")], index="shared", canon=True, origin=OPERATOR
            )
            page = await copied.search("ferry")
            await copied.delete(page.passages[0].doc_id, settled=False)
            line.let_go()
            await copied.work_off(["lore_import"])

            async def settled() -> bool:
                return await told(copied) == (["The Inn", "The Quay"], [])

            await wait_until(settled, "the new generation serves", PATIENCE_S)
        await copied.work_off()
    assert await ask_count(copied) == 2


async def test_many_changes_at_once_leave_one_job_waiting_and_all_are_shown(copied: Shelf) -> None:
    for number in range(12):
        await copied.bring(text(f"Inn {number}", "A lantern."), settled=False)
    waiting = await copied.pool.fetchval("SELECT count(*) FROM work WHERE kind = $1 AND state = 'queued'", ledger.COPY)
    assert waiting == 1

    await asyncio.gather(*(copied.work_off() for _ in range(3)))

    assert len((await told(copied))[0]) == 14
    assert await ask_count(copied) == 14
