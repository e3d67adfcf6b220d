from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from body_broker.lore.chunks import OVERLAP, SIZE, cut

_HEADINGS = ["Chapter 1", "CHAPTER IV", "Prologue", "# One", "## Two", "```"]
_BLANKS = ["\n", "\n\n", " ", "\t", "  \n \n"]
_WORDS = [
    "He went. ",
    "Mr. Vane said no! ",
    "x" * 40,
    "word ",
    "…",
    "“Well?” ",
    "第一章。",
    "水は深い。",
    "a\nb",
    "...",
    "é",
]
PIECES = st.sampled_from(_HEADINGS + _BLANKS + _WORDS)
TEXTS = st.one_of(st.lists(PIECES, max_size=120).map("".join), st.text(max_size=400))


@given(TEXTS, st.booleans(), st.integers(40, 200), st.integers(0, 60))
def test_chunks_cover_the_text_in_order_within_their_size(text: str, markdown: bool, size: int, overlap: int) -> None:  # noqa: FBT001  # hypothesis gives it
    chunks = cut(text, markdown=markdown, size=size, overlap=overlap)

    covered = bytearray(len(text))
    for chunk in chunks:
        assert 0 <= chunk.start < chunk.end <= len(text)
        assert chunk.end - chunk.start <= size + size // 4
        assert text[chunk.start : chunk.end].strip() == text[chunk.start : chunk.end]
        covered[chunk.start : chunk.end] = b"\1" * (chunk.end - chunk.start)
    assert [chunk.ordinal for chunk in chunks] == list(range(len(chunks)))
    assert all(text[n].isspace() for n in range(len(text)) if not covered[n])
    for before, after in pairwise(chunks):
        assert before.start < after.start
        assert before.end < after.end
        assert before.end - after.start <= overlap


def test_a_chunk_ends_with_its_chapter_and_cites_its_heading() -> None:
    body = "The harbour is quiet tonight, and nobody rows. " * 20
    text = f"Preface\n\n{body}\n\nChapter 1\n\n{body}\n\nChapter 2\n\n{body}"

    chunks = cut(text, size=1_200, overlap=0)

    assert [chunk.heading for chunk in chunks] == ["Preface", "Chapter 1", "Chapter 2"]
    assert [text[chunk.start :].partition("\n")[0] for chunk in chunks] == ["Preface", "Chapter 1", "Chapter 2"]


def test_a_table_of_contents_does_not_become_a_crowd_of_tiny_chunks() -> None:
    contents = "\n\n".join(f"Chapter {n}" for n in range(1, 20))
    body = "The harbour is quiet tonight, and nobody rows. " * 20

    chunks = cut(f"{contents}\n\nChapter 1\n\n{body}")

    assert len(chunks) == 1


def test_markdown_headings_are_cited_with_their_path_and_code_is_no_heading() -> None:
    body = "Nobody has seen it. " * 30
    text = (
        f"# The Broker\n\n{body}\n\n## Fears\n\n{body}\n\n```\n# not a heading\n```\n\n{body}\n\n# The Quay\n\n{body}"
    )

    chunks = cut(text, markdown=True, size=800, overlap=0)

    headings = [chunk.heading for chunk in chunks]
    assert sorted(set(headings), key=headings.index) == ["The Broker", "The Broker › Fears", "The Quay"]


def test_a_chunk_ends_with_a_paragraph_where_that_fills_it_half() -> None:
    paragraph = "One two three four. " * 15
    text = "\n\n".join([paragraph.strip()] * 6)

    chunks = cut(text, size=800, overlap=0)

    assert all(text[chunk.end : chunk.end + 2] in {"\n\n", ""} for chunk in chunks)


def test_overlap_repeats_whole_sentences_of_the_chunk_before() -> None:
    text = " ".join(f"Sentence number {n} stands here." for n in range(200))

    chunks = cut(text)

    for before, after in pairwise(chunks):
        assert 0 < before.end - after.start <= OVERLAP
        assert text[after.start :].startswith("Sentence")
    assert max(chunk.end - chunk.start for chunk in chunks) <= SIZE + SIZE // 4


@pytest.mark.timeout(60)
@pytest.mark.parametrize("piece", [".", "\n", " \n", "#", "“", ".”", "Chapter 1\n\n", "```\n", "a. ", "ab"])
def test_a_megabyte_of_hostile_text_is_cut_before_the_timeout(piece: str) -> None:
    """Quadratic time would be hours."""
    text = piece * (1_000_000 // len(piece))

    assert all(chunk.end <= len(text) for markdown in (False, True) for chunk in cut(text, markdown=markdown))
