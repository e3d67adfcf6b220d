"""Owns filling a token budget with passages that do not repeat each other: neighbours merged, twins left out. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from body_broker.lore.model import Passage

_TOUCHING = 8
"""Characters that may lie between two chunks of one text that follow each other: blanks, which no chunk keeps."""
_SHINGLE_WORDS = 5
_SAID = 0.9
"""A passage of whose runs of five words this part was said already says nothing new; one changed word in thirty is new."""
_SCRAP_CHARACTERS = 200
"""Less than this of a passage says nothing: what remains of a budget is then left empty."""
_TRIM = re.compile(r"[.!?…。！？][\"'”’)\]_]*\Z|\n\s*\Z")


@dataclass(slots=True)
class Span:
    """Characters of one document that one or more passages cover; `best` is the passage that came first."""

    best: Passage
    start: int
    end: int

    def touches(self, other: Passage | Span) -> bool:
        """Whether they overlap or follow each other in one document."""
        document = other.best.doc_id if isinstance(other, Span) else other.doc_id
        return (
            document == self.best.doc_id and other.start <= self.end + _TOUCHING and other.end >= self.start - _TOUCHING
        )


def tokens(text: str) -> int:
    """Tokens of a text as estimated: four UTF-8 bytes each, so that no language is counted too low by much."""
    return (len(text.encode()) + 3) // 4


def fill(ranked: Sequence[Passage], *, limit: int, token_budget: int) -> list[Span]:
    """Spans that fit the budget together, the best first; no character of a document twice, no text twice.

    Passages are taken by rank. One that touches a span already taken widens it; one that says what a span of another document
    says is left out; the last one is cut at a sentence's end if it does not fit whole.

    Args:
        ranked: The best first.
        limit: Spans at most.
        token_budget: Tokens of all spans together, as `tokens` estimates them.
    """
    spans: list[Span] = []
    said: set[tuple[str, ...]] = set()
    left = token_budget
    for passage in ranked:
        shingles = _shingles(passage.content)
        touched = [span for span in spans if span.touches(passage)]
        if touched:
            left = _widen(spans, touched, passage, left)
            said |= shingles
            continue
        if len(spans) == limit or len(shingles & said) >= _SAID * len(shingles):
            continue
        end = passage.start + _fitting(passage.content, left)
        if end > passage.start:
            spans.append(Span(passage, passage.start, end))
            said |= shingles
            left -= tokens(passage.content[: end - passage.start])
        if end < passage.end:
            break
    return spans


def _widen(spans: list[Span], touched: list[Span], passage: Passage, left: int) -> int:
    """Take a passage into the spans it touches, which become one, if the budget has room; what is left of it."""
    touched.sort(key=lambda span: span.start)
    cost = 0
    at = passage.start
    for start, end in [*((span.start, span.end) for span in touched), (passage.end, passage.end)]:
        if start > at:
            cost += tokens(passage.content[at - passage.start : start - passage.start]) + _TOUCHING
        at = max(at, end)
    if cost > left:
        return left
    first = min(touched, key=spans.index)
    first.start, first.end = min(passage.start, touched[0].start), max(passage.end, *(span.end for span in touched))
    for span in touched:
        if span is not first:
            spans.remove(span)
    return left - cost


def _shingles(text: str) -> set[tuple[str, ...]]:
    words = text.lower().split()
    return {tuple(words[n : n + _SHINGLE_WORDS]) for n in range(max(1, len(words) - _SHINGLE_WORDS + 1))}


def _fitting(text: str, budget: int) -> int:
    """Characters from the start that fit: all, or up to the last sentence's end within, or 0 where that is a scrap."""
    if tokens(text) <= budget:
        return len(text)
    fits = len(text.encode()[: max(budget, 0) * 4].decode(errors="ignore"))
    while fits > _SCRAP_CHARACTERS and not _TRIM.search(text[max(0, fits - 8) : fits]):
        fits -= 1
    return len(text[:fits].rstrip()) if fits > _SCRAP_CHARACTERS else 0
