"""Owns cutting a text on its structure: chapters, then paragraphs, then sentences. Pure; every offset is exact to the text."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass

CUTTER = 1
"""Raised whenever the same text would be cut elsewhere: an import under way then begins its texts anew."""

# Measured through this module and postings.py, before anything else was tuned (Cranfield: nDCG@10, a document = its best chunk;
# novels: the 14 questions of tests/retrieval that share a word with their passage, hit@3 / MRR; each chunk is found by its
# document's title and its heading too, which is worth 0.008 on Cranfield):
#   size    no overlap              150                     300
#    900    0.385  0.929/0.893      0.385  0.929/0.891      0.381  0.857/0.830
#   1200    0.388  0.929/0.839      0.387  0.857/0.885      0.386  0.929/0.857
#   1500    0.392  0.929/0.847      0.391  0.929/0.895      0.391  1.000/0.881
#   2000    0.390  0.929/0.818      0.390  1.000/0.845      0.391  0.929/0.901
#   2400    0.392  0.929/0.899      0.392  1.000/0.929      0.391  1.000/0.869
#   whole   0.391
# From 1500 on Cranfield is flat and the novels differ by a question or two: the smallest of them costs its reader fewest tokens.
# Figures of 300 and 600 without overlap, found by their text alone: 0.352 and 0.370, 0.429 and 0.571.
SIZE = 1_500
OVERLAP = 300

Span = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Chunk:
    """text[start:end], and the heading it stands under ("" where there is none)."""

    ordinal: int
    start: int
    end: int
    heading: str


@dataclass(frozen=True, slots=True)
class Heading:
    """A heading's place and its words; of nested ones the whole path."""

    start: int
    words: str


_NUMBERED = r"chapter|letter|book|part|act|scene|canto|volume|section|stave|episode"
_ALONE = r"prologue|epilogue|preface|foreword|introduction|afterword"
_PLAIN_HEADING = re.compile(
    rf"(?:\A|\n[ \t]*\n)[ \t]*(?P<line>(?:(?:{_NUMBERED})[ \t]+(?:[ivxlcdm]+|\d+)\b[^\n]{{0,60}}|(?:{_ALONE})))[ \t]*(?=\n|\Z)",
    re.IGNORECASE,
)
_MARKDOWN_LINE = re.compile(
    r"^(?P<fence>[ ]{0,3}(?:```|~~~))|^[ ]{0,3}(?P<marks>#{1,6})[ \t]+(?P<words>[^\n]+)", re.MULTILINE
)
_PARAGRAPH_END = re.compile(r"\n[ \t]*\n")
# Where a sentence ends: its mark with closing quotes, then a blank; an ideographic mark needs none. Mr. and the like do not count.
# Possessive and anchored to the first mark of a run: linear on eight megabytes of dots.
_SENTENCE_END = re.compile(
    r"(?<![.!?…])(?<!\bMr)(?<!\bMrs)(?<!\bDr)(?<!\bSt)[.!?…]++[\"'”’)\]_]*+(?=\s)|[。！？]+[」』”’）]*"
)


def cut(text: str, *, markdown: bool = False, size: int = SIZE, overlap: int = OVERLAP) -> list[Chunk]:
    """The chunks of a text in order: every character that is not blank lies in at least one, none is longer than 1.25 `size`.

    A chunk ends with its chapter; within one it ends with a paragraph if that fills it half, else with a sentence, else at a
    blank, and only a run of `size` characters without one is cut through.

    Args:
        text: The stored text.
        markdown: Whether headings are marked with #; else lines such as "Chapter 5" are.
        size: Characters a chunk may have; the last one of a chapter may be a quarter longer.
        overlap: Characters at most that a chunk repeats of the one before, in whole sentences.
    """
    headings = list(_markdown_headings(text) if markdown else _plain_headings(text))
    places = [heading.start for heading in headings]
    chunks: list[Chunk] = []
    for section in _sections(text, places, size // 4):
        for start, end in _pack(list(_units(text, section, size)), size, overlap):
            above = bisect_right(places, (start + end) // 2)
            words = headings[above - 1].words if above else ""
            chunks.append(Chunk(len(chunks), start, end, words))
    return chunks


def _plain_headings(text: str) -> Iterator[Heading]:
    for found in _PLAIN_HEADING.finditer(text):
        yield Heading(found.start("line"), " ".join(found["line"].split()))


def _markdown_headings(text: str) -> Iterator[Heading]:
    path: list[tuple[int, str]] = []
    fenced = False
    for found in _MARKDOWN_LINE.finditer(text):
        if found["fence"]:
            fenced = not fenced
        elif not fenced:
            level = len(found["marks"])
            words = found["words"].strip().rstrip("#").rstrip()[:100]
            path = [above for above in path if above[0] < level] + [(level, words)]
            yield Heading(found.start(), " › ".join(words for _, words in path)[-200:])


def _sections(text: str, places: list[int], least: int) -> Iterator[Span]:
    """Chapters; one too small to stand alone (a table of contents is made of such) goes with its successor."""
    edges = [*(place for place in places if place), len(text)]
    start = 0
    for edge in edges:
        if len(text[start:edge].strip()) >= least or edge == len(text):
            yield start, edge
            start = edge


def _units(text: str, section: Span, size: int) -> Iterator[tuple[int, int, bool]]:
    """Sentences as (start, end, ends a paragraph), without the blanks around them, none longer than `size`."""
    for paragraph in _split(text, section, _PARAGRAPH_END):
        sentences = [
            piece for sentence in _split(text, paragraph, _SENTENCE_END) for piece in _bounded(text, sentence, size)
        ]
        for start, end in sentences:
            yield start, end, end == sentences[-1][1]


def _split(text: str, span: Span, mark: re.Pattern[str]) -> Iterator[Span]:
    start, stop = span
    for found in mark.finditer(text, start, stop):
        yield from _stripped(text, start, found.end())
        start = found.end()
    yield from _stripped(text, start, stop)


def _bounded(text: str, span: Span, size: int) -> Iterator[Span]:
    start, stop = span
    while stop - start > size:
        blank = max(text.rfind(" ", start + 1, start + size), text.rfind("\n", start + 1, start + size))
        edge = blank if blank > start else start + size
        yield from _stripped(text, start, edge)
        start = edge
    yield from _stripped(text, start, stop)


def _stripped(text: str, start: int, end: int) -> Iterator[Span]:
    while start < end and text[start].isspace():
        start += 1
    while end > start and text[end - 1].isspace():
        end -= 1
    if start < end:
        yield start, end


def _pack(units: list[tuple[int, int, bool]], size: int, overlap: int) -> Iterator[Span]:
    first, fresh, last = (
        0,
        0,
        len(units) - 1,
    )  # the chunk begins with `first`; `fresh` is its first unit that is no repetition
    while fresh <= last:
        start = units[first][0]
        if units[last][1] - start <= size + size // 4:
            yield start, units[last][1]
            return
        until = fresh
        while units[until + 1][1] - start <= size:
            until += 1
        whole = [n for n in range(fresh, until + 1) if units[n][2] and units[n][1] - start >= size // 2]
        until = whole[-1] if whole else until
        yield start, units[until][1]
        began, first, fresh = first, until + 1, until + 1
        while (
            first - 1 > began
            and units[until][1] - units[first - 1][0] <= overlap
            and units[fresh][1] - units[first - 1][0] <= size
        ):
            first -= 1
