"""Owns which numbers of a text stand in its facts: what is compared, and what is no number at all.

A number that stands in a fact need not be the right one there; one that stands in none has been computed, looked up or made up.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal

from body_broker.text import clean
from mcp_servers.admin.models import ReportFact

_MONTHS = (
    r"(?:January|February|March|April|May|June|July|August|September|October|November|December"
    r"|Jan|Feb|Mar|Apr|Jun|Jul|Aug|Sept?|Oct|Nov|Dec)\.?"
)
# Dates, times, ordinals, and the numbers of a list's points. All are cut out before numbers are read.
_NO_NUMBERS = re.compile(
    r"\b(?:19|20)\d{2}-(?:0[1-9]|1[0-2])(?:-[0-3]\d)?(?:[T ]\d{2}:\d{2}(?::\d{2})?(?:\.\d{1,9})?(?:Z|[+-]\d{2}:\d{2})?)?(?![\w-])"
    r"|\b\d{1,2}:\d{2}(?::\d{2})?\b"
    rf"|\b\d{{1,2}} {_MONTHS}(?: \d{{4}})?(?!\w)|\b{_MONTHS} \d{{1,2}}(?:, \d{{4}})?(?!\w)|\b{_MONTHS} \d{{4}}(?!\w)"
    r"|\b\d{1,4}(?:st|nd|rd|th)\b"
    r"|^[ \t]{0,8}\d{1,3}[.)][ \t]",
    re.MULTILINE,
)
# What begins inside a word, such as p95 or gpt-4.1, is a part of its name.
_NUMBER = re.compile(
    r"(?<![\w.])(?<![A-Za-z_][-/])(?P<money>[$€£] ?)?(?P<number>\d{1,3}(?:[,_'’]\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+)"
    r"(?:[eE](?P<power>[+-]?\d{1,2})(?!\w|\.\d))?"
    r"(?: ?(?P<scale>%|percent\b|thousand\b|million\b|billion\b|[kKM]\b))?(?P<usd> ?(?:USD|dollars)\b)?"
)
_SCALES: Mapping[str, int] = {
    "k": 10**3, "K": 10**3, "M": 10**6, "thousand": 10**3, "million": 10**6, "billion": 10**9,
}  # fmt: skip
_PERCENT = frozenset({"%", "percent"})
_MONEY: Mapping[str, str] = {"$": "USD", "€": "EUR", "£": "GBP"}
_BETWEEN = re.compile(r"[,_'’]")
_DIGITS_MAX = 30
_AROUND = 40
_TOLD_MAX = 100


@dataclass(frozen=True, slots=True)
class _Number:
    """A number as it is written: of what it is a multiple, how exactly it is told, and of which unit where that is said."""

    written: str
    value: Decimal
    scale: Decimal
    places: int
    unit: str | None
    around: str


def unverified(texts: Iterable[str], facts: Iterable[ReportFact]) -> list[str]:
    """Numbers of the texts that stand in no fact, rounded as they are written or exactly, each with the words around it.

    Percentages and sums of money are held against facts of these units only, and those whose unit nobody said.
    """
    known = _Known(value for each in facts for value in _values(each))
    found = dict.fromkeys(
        f"{number.written}: \u201c{number.around}\u201d"
        for text in texts
        for number in _numbers(text)
        if not known.has(number)
    )
    told = [*found]
    more = len(told) - _TOLD_MAX
    return told if more <= 0 else [*told[:_TOLD_MAX], f"and {more} more"]


def _values(found: ReportFact) -> Iterator[tuple[Decimal, str]]:
    """The numbers that a fact holds; those in its words are of no unit."""
    if isinstance(found.value, str):
        for number in _numbers(found.value):
            yield number.value * number.scale, ""
    else:
        yield abs(Decimal(str(found.value))), found.unit


class _Known:
    """The numbers of facts, by what they may be compared as: those of a unit with those of none, and all of them.

    Args:
        values: Each with its unit; empty where nobody said it.
    """

    def __init__(self, values: Iterable[tuple[Decimal, str]]) -> None:
        every = sorted(values)
        self._every = [value for value, _ in every]
        self._of = {unit: [v for v, of in every if of in {unit, ""}] for unit in {"", *(of for _, of in every)}}

    def has(self, number: _Number) -> bool:
        """Whether one of them is told as this number."""
        values = self._every if number.unit is None else self._of.get(number.unit, self._of[""])
        half = Decimal(5).scaleb(-number.places - 1)
        place = bisect_left(values, (number.value - half) * number.scale)
        return place < len(values) and values[place] <= (number.value + half) * number.scale


def _numbers(text: str) -> Iterator[_Number]:
    # Blanks in their place, so that what is around a number is found again.
    read = _NO_NUMBERS.sub(lambda match: " " * len(match.group()), text)
    for match in _NUMBER.finditer(read):
        written, scale, money = match["number"], match["scale"] or "", (match["money"] or "").strip()
        if len(written) > _DIGITS_MAX:
            written = written[:_DIGITS_MAX]
        value = Decimal(_BETWEEN.sub("", written))
        unit = "percent" if scale in _PERCENT else _MONEY[money] if money else "USD" if match["usd"] else None
        around = text[max(0, match.start() - _AROUND) : match.end() + _AROUND]
        yield _Number(
            written=clean(match.group().strip()),
            value=value,
            scale=_SCALES.get(scale, 1) * Decimal(10) ** int(match["power"] or 0),
            places=len(written.partition(".")[2]),
            unit=unit,
            around=clean(" ".join(around.split())),
        )
