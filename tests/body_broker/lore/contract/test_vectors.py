from __future__ import annotations

from math import sqrt

import pytest

from body_broker.lore.index import Filter
from tests.body_broker.lore.contract.conftest import Shelf, text

NORTH, EAST, UP = (1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)
NORTH_EAST = (sqrt(0.5), sqrt(0.5), 0.0)
NORTH_NORTH_EAST = (0.96, 0.28, 0.0)
SOUTH = (-1.0, 0.0, 0.0)


async def compass(shelf: Shelf) -> None:
    """Four documents without a word in common, each in a direction."""
    shelf.queries = {"whither": NORTH, "upward": UP}
    await shelf.serve_model()
    await shelf.bring(
        text("North", "Ice."), text("East", "Dawn."), text("Between", "Wind."), text("South", "Sand.", spoiler_level=3)
    )
    await shelf.give_vectors({"North": [NORTH], "East": [EAST], "Between": [NORTH_EAST], "South": [SOUTH]})


async def test_passages_are_found_by_meaning_the_nearest_first_with_their_cosine(shelf: Shelf) -> None:
    await compass(shelf)

    page = await shelf.search("whither", by="meaning")

    assert [p.title for p in page.passages] == ["North", "Between", "East", "South"]
    assert [p.score for p in page.passages] == pytest.approx([1, sqrt(0.5), 0, -1], abs=1e-3)
    assert page.unavailable == []


async def test_equally_near_passages_come_in_the_order_they_were_imported(shelf: Shelf) -> None:
    await compass(shelf)

    assert [p.title for p in (await shelf.search("upward", by="meaning")).passages] == [
        "North",
        "East",
        "Between",
        "South",
    ]


async def test_filters_hold_by_meaning_too(shelf: Shelf) -> None:
    await compass(shelf)

    assert await shelf.titles("whither", by="meaning", where=Filter(spoiler_max=0)) == ["North", "Between", "East"]
    assert await shelf.titles("whither", by="meaning", where=Filter(source="outside")) == []


async def test_a_passage_of_several_parts_is_found_once_by_its_nearest_and_counted_once_by_words(shelf: Shelf) -> None:
    shelf.queries = {"whither": NORTH}
    await shelf.serve_model()
    await shelf.bring(text("Long", "Lantern ferry."), text("Short", "Lantern."))
    before = (await shelf.search("lantern")).passages
    await shelf.give_vectors({"Long": [SOUTH, EAST, NORTH], "Short": [NORTH_NORTH_EAST]})

    page = await shelf.search("whither", by="meaning")

    assert [(p.title, p.score) for p in page.passages] == [("Long", 1.0), ("Short", pytest.approx(0.96, abs=1e-3))]
    await shelf.tidy()
    after = (await shelf.search("lantern")).passages
    assert [(p.title, p.score) for p in after] == [(p.title, p.score) for p in before]


async def test_words_and_meaning_are_fused(shelf: Shelf) -> None:
    await compass(shelf)
    shelf.queries["dawn"] = NORTH

    page = await shelf.search("dawn", by="both")

    assert {p.title for p in page.passages} == {"North", "East", "Between", "South"}
    assert page.passages[0].title == "East"  # the only one that both ways found
    assert page.unavailable == []


async def test_passages_without_a_vector_yet_are_said_to_be_missing(shelf: Shelf) -> None:
    await compass(shelf)
    await shelf.bring(text("Late", "Dusk."))

    page = await shelf.search("whither", by="meaning")

    assert "Late" not in [p.title for p in page.passages]
    assert page.unavailable == ["vectors_incomplete"]
    await shelf.give_vectors({"Late": [NORTH]})
    again = await shelf.search("whither", by="meaning")
    assert ([p.title for p in again.passages][:2], again.unavailable) == (["North", "Late"], [])


async def test_another_models_vectors_are_never_compared_with_a_query(shelf: Shelf) -> None:
    await compass(shelf)
    await shelf.serve_model("another", dimensions=2)
    await shelf.work_off()
    shelf.queries = {"whither": (1.0, 0.0)}

    page = await shelf.search("whither", by="meaning")

    assert (page.passages, page.unavailable) == ([], ["vectors_incomplete"])
    await shelf.give_vectors(
        {"East": [(1.0, 0.0)], "North": [(0.6, 0.8)], "Between": [(0.0, 1.0)], "South": [(-1.0, 0.0)]}
    )
    page = await shelf.search("whither", by="meaning")
    assert ([p.title for p in page.passages], page.unavailable) == (["East", "North", "Between", "South"], [])


async def test_a_replaced_or_deleted_text_is_not_found_by_meaning(shelf: Shelf) -> None:
    await compass(shelf)
    ids = await shelf.bring(text("North", "Snow."))
    await shelf.give_vectors({"North": [NORTH_EAST]})

    assert [p.content for p in (await shelf.search("whither", by="meaning")).passages][:2] == ["Wind.", "Snow."]

    await shelf.delete(ids[0])
    assert await shelf.titles("whither", by="meaning") == ["Between", "East", "South"]
