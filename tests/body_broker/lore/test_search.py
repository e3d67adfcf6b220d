from __future__ import annotations

import random
from itertools import pairwise
from typing import ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from body_broker.calls import Json
from body_broker.errors import BadInput, Conflict, NotFound
from body_broker.lore import Lore, make_draft
from body_broker.lore.context import fill, tokens
from body_broker.lore.index import EVERYTHING, Filter, Found, Hit, IndexAway
from body_broker.lore.model import Passage, index_named, persona_index, shown
from body_broker.lore.postings import Entry, PostgresIndex
from tests.body_broker.lore.conftest import Bench, long_text, text, texts


async def test_the_best_passage_comes_first_and_is_cited_to_the_character(bench: Bench) -> None:
    quay, ferry = await bench.bring(
        text("Quay", "A lantern hangs at every step. Nobody lights it."),
        text("Ferry", "The ferryman keeps seven lanterns, one lantern for each of the drowned."),
    )

    page = await bench.lore.search("shared", "who keeps lanterns for the drowned?", limit=5)

    assert [p.doc_id for p in page.passages] == [ferry, quay]
    assert page.passages[0].label().startswith("Ferry [doc_")
    assert page.unavailable == ["vectors"], "what could not be searched is said"


async def test_words_are_found_across_punctuation_case_and_inflection(bench: Bench) -> None:
    (doc_id,) = await bench.bring(text("A", "The_Drowned-Charter's clauses; naïve LANTERNS/bells."))

    for query in ("drowned", "charter", "clause", "lantern", "BELL", "naïve"):
        assert await bench.found(query) == [doc_id], query


@pytest.mark.parametrize("query", ["the of and who", "?!…", "\u200b", "the"])
async def test_a_query_without_words_is_answered_with_its_reason(bench: Bench, query: str) -> None:
    await bench.bring(text("A", "The lantern."))

    page = await bench.lore.search("shared", query, limit=5)

    assert (page.passages, page.after) == ([], None)
    assert "no word to search for" in (page.reason or "")


async def test_nothing_found_says_where_it_looked(bench: Bench) -> None:
    assert (await bench.lore.search("shared", "lantern", limit=5)).reason == "There is no lore in lore-shared yet."
    await bench.bring(text("A", "The bell."))
    assert (
        await bench.lore.search("shared", "lantern", limit=5)
    ).reason == "Nothing in lore-shared has a word of the query."


async def test_pages_follow_each_other_without_gap_or_repetition(bench: Bench) -> None:
    await bench.bring(text("A", long_text(23)))
    whole = await bench.lore.search("shared", "lantern burns", limit=50)

    seen: list[Passage] = []
    after = None
    pages = 0
    while pages == 0 or after is not None:
        page = await bench.lore.search("shared", "lantern burns", limit=7, after=after)
        seen += page.passages
        after = page.after
        pages += 1

    assert seen == whole.passages
    assert len(seen) >= 23
    assert pages == -(-len(seen) // 7)


async def test_a_cursor_of_another_query_is_refused(bench: Bench) -> None:
    await bench.bring(text("A", long_text(3)))
    after = (await bench.lore.search("shared", "lantern", limit=1)).after

    for index, query in (("shared", "night"), ("persona:osric", "lantern")):
        with pytest.raises(BadInput, match="another query"):
            await bench.lore.search(index, query, limit=1, after=after)


async def test_per_document_gives_each_document_once_with_its_best_passage(bench: Bench) -> None:
    ids = await bench.bring(*texts([long_text(5), long_text(4)]))

    page = await bench.lore.search("shared", "lantern number4", limit=50, per_document=True)

    assert sorted(p.doc_id for p in page.passages) == sorted(ids)
    assert "number4" in page.passages[0].content


async def test_another_index_changes_no_score(bench: Bench) -> None:
    await bench.bring(*texts(["The lantern is red.", "The bell is blue."]))
    before = (await bench.lore.search("shared", "lantern", limit=1)).passages

    await bench.bring(*texts([f"Lantern {n}." for n in range(20)]), index="persona:osric")

    assert (await bench.lore.search("shared", "lantern", limit=1)).passages == before


async def test_an_import_that_is_not_committed_changes_no_score(bench: Bench) -> None:
    await bench.bring(*texts(["The lantern is red.", "The bell is blue."]))
    before = (await bench.lore.search("shared", "lantern", limit=1)).passages
    taken = await bench.take(text("New", "A lantern of a lantern."))
    async with bench.pool.acquire() as connection:
        rev = await connection.fetchval("SELECT max(rev) FROM lore_edition")
        index = bench.lore._index  # pyright: ignore[reportPrivateUsage] - what a worker does before it commits
        await index.add(connection, 1, rev, [Entry(0, "A lantern of a lantern.")])

    assert taken.job_id is not None
    assert (await bench.lore.search("shared", "lantern", limit=1)).passages == before


class StaleCopy(PostgresIndex):
    """A copy that lags behind, as one outside the database does: its best hit is of a rev that is gone."""

    name = "stale"
    copies = True
    gone: ClassVar[list[Hit]] = []

    async def lexical(
        self, index_id: int, query: str, *, limit: int, per_document: bool = False, where: Filter = EVERYTHING
    ) -> Found | None:
        found = await super().lexical(index_id, query, limit=limit, per_document=per_document, where=where)
        return Found([*self.gone, *(found.hits if found else [])][:limit], missing=len(self.gone))


class AwayCopy(PostgresIndex):
    """A copy that cannot answer."""

    name = "away"
    copies = True

    async def lexical(self, *_: object, **__: object) -> Found | None:
        raise IndexAway("It is away.")


async def test_a_hit_in_a_rev_that_is_not_current_is_dropped_and_that_the_copy_is_behind_is_said(bench: Bench) -> None:
    (doc_id,) = await bench.bring(text("A", "The lantern is red."))
    StaleCopy.gone = [Hit(await bench.pool.fetchval("SELECT rev FROM lore_document"), 0, 99.0)]
    await bench.bring(text("A", "The lantern is blue."))

    page = await Lore(bench.pool, copy=StaleCopy(bench.pool)).search("shared", "lantern", limit=5)

    assert [(p.doc_id, p.content) for p in page.passages] == [(doc_id, "The lantern is blue.")]
    assert page.unavailable == ["copy_behind", "vectors"]


async def test_hits_that_are_dropped_leave_no_gap_in_a_page(bench: Bench) -> None:
    await bench.bring(text("A", "The lantern is red."))
    StaleCopy.gone = [Hit(await bench.pool.fetchval("SELECT rev FROM lore_document"), 0, 99.0)]
    await bench.bring(text("A", "The lantern is blue."), *texts(["A lantern.", "Another lantern."]))
    lore = Lore(bench.pool, copy=StaleCopy(bench.pool))

    first = await lore.search("shared", "lantern", limit=2)
    rest = await lore.search("shared", "lantern", limit=2, after=first.after)

    assert (len(first.passages), len(rest.passages), rest.after) == (2, 1, None)


async def test_where_the_copy_is_away_postgresql_answers_and_it_is_said(bench: Bench) -> None:
    (doc_id,) = await bench.bring(text("A", "The lantern is red."))

    page = await Lore(bench.pool, copy=AwayCopy(bench.pool)).search("shared", "lantern", limit=5)

    assert [p.doc_id for p in page.passages] == [doc_id]
    assert page.unavailable == ["copy", "vectors"]


@pytest.mark.parametrize(
    ("where", "found"),
    [
        (EVERYTHING, {"plain", "late", "secret", "odd"}),
        (Filter(spoiler_max=2), {"plain", "secret"}),
        (Filter(spoiler_max=5), {"plain", "late", "secret"}),
        (Filter(known_to="mira"), {"plain", "late", "secret", "odd"}),
        (Filter(known_to="osric"), {"plain", "late", "odd"}),
        (Filter(fields={"region": "north"}), {"late"}),
        (Filter(fields={"tags": "sea"}), {"plain"}),
        (Filter(fields={"tags": ["sea", "night"]}), {"plain"}),
        (Filter(fields={"tags": "sea", "region": "north"}), set[str]()),
        (Filter(source="outside"), set[str]()),
        (Filter(source="canon", spoiler_max=0), {"plain", "secret"}),
    ],
)
async def test_a_filter_narrows_what_is_found(bench: Bench, where: Filter, found: set[str]) -> None:
    known: dict[str, dict[str, Json]] = {
        "plain": {"tags": ["sea", "night"]},
        "late": {"spoiler_level": 4, "region": "north"},
        "secret": {"known_by": ["mira"], "region": "south"},
        "odd": {},
    }
    await bench.bring(*[make_draft(name, name, "A lantern.", "text", meta) for name, meta in known.items()])
    # An earlier program took any value: what cannot be read as a level is hidden from whoever has a limit.
    await bench.pool.execute("UPDATE lore_edition SET knowledge = '{\"spoiler_level\": \"high\"}' WHERE title = 'odd'")

    page = await bench.lore.search("shared", "lantern", limit=10, where=where)

    assert {passage.title for passage in page.passages} == found


async def test_pages_that_are_answered_in_two_ways_are_not_put_together(bench: Bench) -> None:
    await bench.bring(*texts([f"Lantern {n}." for n in range(6)]))
    StaleCopy.gone = []
    copy = StaleCopy(bench.pool)
    first = await Lore(bench.pool, copy=copy).search("shared", "lantern", limit=2)

    assert first.after is not None
    with pytest.raises(Conflict, match="another way"):
        await bench.lore.search("shared", "lantern", limit=2, after=first.after)


async def test_a_search_by_meaning_without_vectors_says_so_and_not_that_there_is_nothing(bench: Bench) -> None:
    await bench.bring(text("A", "The lantern is red."))

    page = await bench.lore.search("shared", "lantern", limit=5, by="meaning")

    assert (page.passages, page.unavailable) == ([], ["vectors"])
    assert page.reason is not None
    assert "by meaning" in page.reason


async def test_a_filter_by_document_finds_only_there(bench: Bench) -> None:
    first, *_ = await bench.bring(*texts(["A lantern.", "A lantern too."]))

    page = await bench.lore.search("shared", "lantern", limit=10, where=Filter(documents=(first,)))

    assert [passage.doc_id for passage in page.passages] == [first]


async def test_a_persona_has_its_own_lore_and_else_the_shared(bench: Bench) -> None:
    (shared,) = await bench.bring(text("Quay", "The lantern is red."))
    (own,) = await bench.bring(text("Osric", "My lantern is blue."), index="persona:osric")

    assert await bench.lore.index_for(None) == "shared"
    assert await bench.lore.index_for("Osric") == "persona:osric"
    assert await bench.lore.index_for("hale") == "shared"
    assert await bench.found("lantern") == [shared]
    assert await bench.found("lantern", index="persona:osric") == [own]


@pytest.mark.parametrize("name", ["", "shared", "lore shared", "../etc", "a" * 65, "-x", "ös", "a:b"])
async def test_no_persona_can_have_such_a_name(bench: Bench, name: str) -> None:
    with pytest.raises(BadInput):
        await bench.lore.index_for(name)


def test_indices_are_named_as_they_are_shown() -> None:
    for name in ("shared", persona_index("osric")):
        assert index_named(name) == name
        assert index_named(shown(name)) == name
    assert shown("persona:osric") == "lore-osric"


async def test_indices_are_listed_page_by_page(bench: Bench) -> None:
    await bench.bring(*texts([long_text(3), "The bell."]))
    await bench.bring(text("A", "x"), index="persona:osric", canon=False)
    await bench.bring(text("A", "x"), index="persona:hale")

    first, after = await bench.lore.list_indices(limit=2)
    second, end = await bench.lore.list_indices(limit=2, after=after)

    assert [(i.name, i.documents, i.outside) for i in (*first, *second)] == [
        ("lore-hale", 1, 0),
        ("lore-osric", 1, 1),
        ("lore-shared", 2, 0),
    ]
    assert end is None
    assert second[0].passages > 2


async def test_a_document_is_read_part_by_part(bench: Bench) -> None:
    body = "".join(f"{n:05d} é " for n in range(4_000))
    (doc_id,) = await bench.bring(text("A", body))

    read, start = "", 0
    while True:
        part = await bench.lore.get_document(doc_id, start=start)
        assert len(part.content) <= 20_000
        read += part.content
        start = part.end
        if part.end == part.characters:
            break

    assert read == body
    assert (await bench.lore.get_document(doc_id, start=6, end=7)).content == "é"
    assert (await bench.lore.get_document(doc_id, start=10**8)).content == ""
    with pytest.raises(BadInput):
        await bench.lore.get_document(doc_id, start=7, end=7)
    with pytest.raises(NotFound):
        await bench.lore.get_document("doc_unknown")


def varied_text(chunks: int, seed: int) -> str:
    """About this many chunks, each of which has the word lantern and words that no other has."""
    chance = random.Random(seed)  # noqa: S311  # the same text every time, no secret
    return "\n\n".join(
        f"The lantern burns. {' '.join(f'{chance.choice(SYLLABLES)}{chance.choice(SYLLABLES)}.' for _ in range(220))}"
        for _ in range(chunks)
    )


async def test_context_fills_its_budget_without_repeating_itself(bench: Bench) -> None:
    drafts = texts([varied_text(12, n) for n in range(3)])
    bodies = dict(zip(await bench.bring(*drafts), (draft.body for draft in drafts), strict=True))

    for budget in (200, 1_000, 4_000):
        found = await bench.lore.retrieve_context("shared", "lantern burns", limit=4, token_budget=budget)

        assert budget / 2 < found.tokens <= budget
        assert 1 <= len(found.passages) <= 4
        for p in found.passages:
            assert bodies[p.doc_id][p.start : p.end] == p.content
        places = sorted((p.doc_id, p.start, p.end) for p in found.passages)
        for one, two in pairwise(places):
            assert one[0] != two[0] or one[2] < two[1], "no character twice"


async def test_context_merges_neighbours_into_one_passage(bench: Bench) -> None:
    body = " ".join(f"The lantern of step {n} burns." for n in range(120))
    (doc_id,) = await bench.bring(text("A", body))

    found = await bench.lore.retrieve_context("shared", "lantern", limit=5, token_budget=5_000)

    assert [(p.doc_id, p.start, p.end) for p in found.passages] == [(doc_id, 0, len(body))]


async def test_context_leaves_out_what_another_document_already_says_but_not_what_contradicts_it(bench: Bench) -> None:
    said = varied_text(1, 0)
    await bench.bring(text("A", said), text("B", f"{said} Indeed."), text("C", "The lantern is red."))
    await bench.bring(text("D", "The lantern is blue."))

    found = await bench.lore.retrieve_context("shared", "lantern", limit=5, token_budget=5_000)

    contents = [p.content for p in found.passages]
    assert sum(content.startswith(said) for content in contents) == 1
    assert {"The lantern is red.", "The lantern is blue."} < set(contents)


async def test_context_of_nothing_says_why(bench: Bench) -> None:
    found = await bench.lore.retrieve_context("shared", "lantern", limit=5, token_budget=1_000)

    assert (found.passages, found.tokens) == ([], 0)
    assert found.reason


SYLLABLES = [a + b for a in "bdfgklmnprst" for b in ("a", "e", "i", "o", "u")]
RANKED = st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 30), st.integers(1, 12)), max_size=12)
BODY = "".join(f"word{n} stands here, number {n}. " * 3 for n in range(60))


@given(RANKED, st.integers(1, 6), st.integers(0, 3_000))
def test_filling_never_exceeds_its_budget_or_says_a_character_twice(
    places: list[tuple[str, int, int]], limit: int, budget: int
) -> None:
    ranked = [
        Passage(doc_id=d, title="T", heading="", start=s * 100, end=s * 100 + n * 100, source="canon", score=1.0,
                content=f"{d}{BODY}"[s * 100 : s * 100 + n * 100])
        for d, s, n in places
    ]  # fmt: skip

    spans = fill(ranked, limit=limit, token_budget=budget)

    assert len(spans) <= limit
    assert sum(tokens(f"{s.best.doc_id}{BODY}"[s.start : s.end]) for s in spans) <= budget
    placed = sorted((s.best.doc_id, s.start, s.end) for s in spans)
    assert all(one[0] != two[0] or one[2] <= two[1] for one, two in pairwise(placed))
