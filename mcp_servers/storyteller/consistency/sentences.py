"""Owns cutting a text into sentences of words, each at its exact characters. Linear in the text's length, whatever it holds."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

WORDS_MAX = 120
"""Words of a sentence that are read; a longer one is not understood."""

_TOKEN = re.compile(
    r"\d+(?:[.:,]\d+)*|[’'](?:s|S)(?![^\W\d_])|[^\W\d_]+(?:(?:-|[’'](?![sS](?![^\W\d_])))[^\W\d_]+)*|\S",
)
_PARAGRAPH = re.compile(r"\n[ \t]*\n|\r\n[ \t]*\r\n")
_END = re.compile(r"[.!?…]")
_CLOSERS = '"”’»)*_]'
_ABBREVIATED = frozenset({"mr", "mrs", "ms", "dr", "st", "prof", "capt", "sgt", "rev", "mt", "no"})
_PAIRS = {"“": "”", "«": "»", "„": "“", '"': '"'}


@dataclass(frozen=True, slots=True)
class Word:
    """A word, number or sign: characters start to end of the text."""

    start: int
    end: int
    text: str

    @property
    def low(self) -> str:
        """In lower case, with a straight apostrophe."""
        return self.text.lower().replace("’", "'")


@dataclass(frozen=True, slots=True)
class Sentence:
    """A sentence: its characters, its words, and which paragraph it is in.

    Attributes:
        quoted: Start and end of what stands in quotation marks, marks included.
        cut: It has more words than are read.
    """

    start: int
    end: int
    paragraph: int
    words: tuple[Word, ...]
    quoted: tuple[tuple[int, int], ...]
    cut: bool


def sentences(text: str) -> list[Sentence]:
    """The text's sentences, in order; blank text has none."""
    found: list[Sentence] = []
    at = 0
    for number, end in enumerate([*(m.start() for m in _PARAGRAPH.finditer(text)), len(text)]):
        quotes = _quotes(text, at, end)
        first = 0
        for start, stop in _cut(text, at, end, quotes):
            while first < len(quotes) and quotes[first][1] <= start:
                first += 1
            words = tuple(_words_of(text, start, stop))
            if any(word.text[0].isalnum() for word in words):
                last = first
                while last < len(quotes) and quotes[last][0] < stop:
                    last += 1
                inside = tuple(quotes[first:last])
                found.append(Sentence(start, stop, number, words[:WORDS_MAX], inside, cut=len(words) > WORDS_MAX))
        at = end
    return found


def _words_of(text: str, start: int, stop: int) -> Iterator[Word]:
    for found in _TOKEN.finditer(text, start, stop):
        yield Word(found.start(), found.end(), found[0])


def _quotes(text: str, start: int, stop: int) -> list[tuple[int, int]]:
    """What is quoted in a paragraph; a mark that is never closed quotes the rest of it."""
    found: list[tuple[int, int]] = []
    at, closing = -1, ""
    ends = [position for position in range(stop - 1, start, -1) if _ends_straight(text, position, stop)]
    for position in range(start, stop):
        sign = text[position]
        if closing:
            if sign == closing and _truly(text, position, stop, closing):
                found.append((at, position + 1))
                closing = ""
        elif sign in _PAIRS:
            at, closing = position, _PAIRS[sign]
        elif sign == "‘":
            at, closing = position, "’"
        elif sign == "'" and _opens(text, position, start, stop):
            while ends and ends[-1] <= position:
                ends.pop()
            if ends:
                at, closing = position, "'"
    if closing:
        found.append((at, stop))
    return found


def _truly(text: str, position: int, stop: int, closing: str) -> bool:
    """Whether a mark closes a quote: single ones are apostrophes too."""
    if closing == "'":
        return _ends_straight(text, position, stop)
    return closing != "’" or _closes(text, position, stop)


def _opens(text: str, position: int, start: int, stop: int) -> bool:
    """Whether a straight single mark may open a quote."""
    after = text[position + 1 : position + 2] if position + 1 < stop else ""
    before = text[position - 1] if position > start else " "
    return (after.isalpha() or after in {"“", '"'}) and not before.isalnum() and before not in "’'"


def _ends_straight(text: str, position: int, stop: int) -> bool:
    """Whether a straight single mark may close a quote; after an s before a blank it more likely says whose something is."""
    if text[position] != "'" or not _closes(text, position, stop):
        return False
    before, after = text[position - 1], text[position + 1 : position + 2]
    return not before.isspace() and (before.lower() != "s" or not after.isspace())


def _closes(text: str, position: int, stop: int) -> bool:
    return position + 1 >= stop or not text[position + 1].isalnum()


def _cut(text: str, start: int, stop: int, quotes: list[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Bounds of the sentences of a paragraph, without blanks at either end."""
    at, quote = start, 0
    for mark in _END.finditer(text, start, stop):
        end = mark.end()
        if end <= at:
            continue
        while quote < len(quotes) and quotes[quote][1] < end:
            quote += 1
        while end < stop and text[end] in _CLOSERS:
            end += 1
        inside = quote < len(quotes) and quotes[quote][0] < mark.start() and end < quotes[quote][1]
        if inside or not _ends(text, mark.start(), end, stop):
            continue
        yield from _trimmed(text, at, end)
        at = end
    yield from _trimmed(text, at, stop)


def _ends(text: str, mark: int, end: int, stop: int) -> bool:
    """Whether a mark ends its sentence: what follows begins another, and what is before is no abbreviation."""
    if end >= stop:
        return True
    if not text[end].isspace():
        return False
    after = end
    while after < stop and after < end + 8 and text[after].isspace():
        after += 1
    if after < stop and text[after].islower():
        return False
    if text[mark] != ".":
        return True
    before = mark
    while before > 0 and before > mark - 6 and text[before - 1].isalpha():
        before -= 1
    word = text[before:mark]
    return word.lower() not in _ABBREVIATED and not (len(word) == 1 and word.isupper() and word != "I")


def _trimmed(text: str, start: int, stop: int) -> Iterator[tuple[int, int]]:
    while start < stop and text[start].isspace():
        start += 1
    while stop > start and text[stop - 1].isspace():
        stop -= 1
    if start < stop:
        yield start, stop
