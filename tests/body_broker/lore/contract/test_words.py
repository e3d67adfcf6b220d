from __future__ import annotations

import pytest

from body_broker.calls import Json
from body_broker.lore.index import Filter
from tests.body_broker.lore.conftest import long_text
from tests.body_broker.lore.contract.conftest import Shelf, text


async def test_a_passage_is_found_by_its_words_its_title_and_other_forms_of_them(shelf: Shelf) -> None:
    await shelf.bring(
        text("The Ferry", "Nobody rows when the bells are ringing."), text("The Quay", "A lantern burns.")
    )

    assert await shelf.titles("rowed") == ["The Ferry"]
    assert await shelf.titles("ferries") == ["The Ferry"]
    assert await shelf.titles("BELL!") == ["The Ferry"]
    assert await shelf.titles("a quay by the lantern") == ["The Quay"]
    assert await shelf.titles("dragon") == []


async def test_more_and_rarer_words_of_the_query_rank_higher(shelf: Shelf) -> None:
    await shelf.bring(
        text("One", "The ferry sank."),
        text("Two", "The ferry sank beside the crown of salt."),
        text("Three", "The ferry, the ferry, the ferry."),
    )

    assert (await shelf.titles("ferry crown"))[0] == "Two"
    assert (await shelf.titles("ferry"))[0] == "Three"


async def test_equal_passages_come_in_the_order_they_were_imported(shelf: Shelf) -> None:
    for title in ("Ada", "Ben", "Cem", "Dee"):
        await shelf.bring(text(title, "The lantern hangs over the quay."))

    assert await shelf.titles("lantern") == ["Ada", "Ben", "Cem", "Dee"]


async def test_per_document_gives_the_best_passage_of_each(shelf: Shelf) -> None:
    await shelf.bring(text("Long", long_text(6)), text("Short", "A lantern, and nothing else."))

    everything = await shelf.search("lantern number3")
    once = await shelf.search("lantern number3", per_document=True)

    assert len([p for p in everything.passages if p.title == "Long"]) > 3
    assert sorted(p.title for p in once.passages) == ["Long", "Short"]
    assert once.passages[0].content == everything.passages[0].content
    assert "number3" in once.passages[0].content


@pytest.mark.parametrize("query", ["the", "who was it", "?!… — “”", "", " \n\t "])
async def test_a_query_without_a_word_says_so(shelf: Shelf, query: str) -> None:
    await shelf.bring(text("The Who", "Who is it? It was he."))

    page = await shelf.search(query)

    assert page.passages == []
    assert "no word to search for" in (page.reason or "")


@pytest.mark.parametrize(
    "query",
    [
        'lantern" OR "1"="1',
        "lantern AND (((",
        "lantern~9 *:* /.*/ {a TO b}",
        "lantern\\u0000 \\ ' ; -- %s $1",
        "lantern 第一章 🏮 e\u0301 \u202e",
        '{"match_all":{}} lantern',
    ],
)
async def test_signs_of_a_query_language_mean_nothing(shelf: Shelf, query: str) -> None:
    await shelf.bring(text("The Quay", "A lantern burns."), text("The Ferry", "Nobody rows."))

    assert await shelf.titles(query) == ["The Quay"]


@pytest.mark.parametrize("body", ["水は深い。 Ｌantern", "Straße über Ægir", "naïve café", "ΑΒΓ αβγ", "x" * 900])
async def test_words_of_other_alphabets_are_found_by_themselves(shelf: Shelf, body: str) -> None:
    await shelf.bring(text("Here", body), text("There", "Nobody rows."))

    assert await shelf.titles(body) == ["Here"]


@pytest.mark.parametrize(
    "query", ["lantern " * 250, "a b c d " * 250, " ".join(f"w{n}" for n in range(400)) + " lantern"]
)
async def test_a_query_of_two_thousand_characters_is_answered(shelf: Shelf, query: str) -> None:
    await shelf.bring(text("The Quay", "A lantern burns beside b, c and d.\n"))

    assert await shelf.titles(query[:2000]) == ["The Quay"] or len(query) > 2000


async def test_an_index_that_holds_nothing_finds_nothing(shelf: Shelf) -> None:
    ids = await shelf.bring(text("The Quay", "A lantern burns."))
    await shelf.delete(ids[0])

    page = await shelf.search("lantern")

    assert (page.passages, page.unavailable) == ([], [])


async def test_a_replaced_or_deleted_text_is_not_found_and_its_successor_is(shelf: Shelf) -> None:
    ids = await shelf.bring(text("The Quay", "A lantern burns."), text("The Ferry", "The lantern of the ferry."))

    assert await shelf.bring(text("The Quay", "A torch burns.")) == ids[:1]
    assert await shelf.titles("lantern") == ["The Ferry"]
    assert await shelf.titles("torch") == ["The Quay"]

    await shelf.delete(ids[1])
    assert await shelf.titles("lantern") == []


async def test_each_persona_has_lore_of_its_own(shelf: Shelf) -> None:
    await shelf.bring(text("The Quay", "A lantern burns."))
    await shelf.bring(text("Mara", "A lantern of my own."), index="persona:mara")

    assert await shelf.titles("lantern") == ["The Quay"]
    assert await shelf.titles("lantern", index="persona:mara") == ["Mara"]


async def test_what_is_approved_counts_as_canon_at_once(shelf: Shelf) -> None:
    (doc_id,) = await shelf.bring(text("The Quay", "A lantern burns."), canon=False)
    assert await shelf.titles("lantern", where=Filter(source="canon")) == []
    assert await shelf.titles("lantern", where=Filter(source="outside")) == ["The Quay"]

    await shelf.approve(doc_id)

    assert await shelf.titles("lantern", where=Filter(source="canon")) == ["The Quay"]
    assert await shelf.titles("lantern", where=Filter(source="outside")) == []


async def test_only_the_documents_asked_for_are_found(shelf: Shelf) -> None:
    ids = await shelf.bring(*(text(title, "A lantern burns.") for title in ("Ada", "Ben", "Cem")))

    assert await shelf.titles("lantern", where=Filter(documents=(ids[0], ids[2], "doc_nobody"))) == ["Ada", "Cem"]
    assert await shelf.titles("lantern", where=Filter(documents=("doc_nobody",))) == []


async def test_spoilers_and_what_others_know_stay_hidden(shelf: Shelf) -> None:
    await shelf.bring(
        text("Open", "A lantern."),
        text("Low", "A lantern.", spoiler_level=1),
        text("High", "A lantern.", spoiler_level=3),
        text("Mara", "A lantern.", known_by=["mara", "tom thumb"]),
    )

    assert await shelf.titles("lantern", where=Filter(spoiler_max=1)) == ["Open", "Low", "Mara"]
    assert await shelf.titles("lantern", where=Filter(spoiler_max=0)) == ["Open", "Mara"]
    known = ["Open", "Low", "High"]
    assert await shelf.titles("lantern", where=Filter(known_to="mara")) == [*known, "Mara"]
    assert await shelf.titles("lantern", where=Filter(known_to="tom")) == known
    assert await shelf.titles("lantern", where=Filter(known_to="mara", spoiler_max=0)) == ["Open", "Mara"]


_FIELDS: list[tuple[dict[str, Json], list[str]]] = [
    ({"region": "north"}, ["North"]),
    ({"region": "nor"}, []),
    ({"year": 7}, ["North", "Whole"]),
    ({"year": 7.0}, ["North", "Whole"]),
    ({"year": "7"}, []),
    ({"secret": True}, ["North"]),
    ({"secret": 1}, []),
    ({"gone": None}, ["South"]),
    ({"tags": "sea"}, ["North", "South"]),
    ({"tags": "salt"}, ["North"]),
    ({"tags": ["sea"]}, ["North", "South"]),
    ({"tags": ["sea", "salt"]}, ["North"]),
    ({"tags": []}, ["North", "South"]),
    ({"place": {"town": "Quay"}}, ["South"]),
    ({"place": {}}, ["South"]),
    ({"region": "north", "tags": ["rope"]}, []),
    ({"long": "y" * 3_000}, ["South"]),
    ({"long": "y" * 2_999}, []),
]


async def test_metadata_filters_mean_what_they_mean_in_postgresql(shelf: Shelf) -> None:
    place: dict[str, Json] = {"town": "Quay", "ward": 2}
    await shelf.bring(
        text("North", "A lantern.", region="north", year=7, secret=True, tags=["sea", "salt"]),
        text("South", "A lantern.", tags=["rope", "sea"], place=place, gone=None, long="y" * 3_000),
        text("Whole", "A lantern.", year=7.0),
    )

    found = {str(fields): await shelf.titles("lantern", where=Filter(fields=fields)) for fields, _ in _FIELDS}

    assert found == {str(fields): expected for fields, expected in _FIELDS}


async def test_a_document_of_a_million_words_is_found_to_its_end(shelf: Shelf) -> None:
    sentences = (f"The keeper counted bell{n} and wrote it down." for n in range(125_000))

    await shelf.bring(text("The Count", " ".join(sentences)))

    page = await shelf.search("bell124999")
    assert len(page.passages) >= 1
    assert all("bell124999" in passage.content for passage in page.passages)
    assert len((await shelf.search("keeper")).passages) == 50
