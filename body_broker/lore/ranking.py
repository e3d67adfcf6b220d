"""Owns asking every way of searching and fusing what they find; a way that cannot answer is left out, and the answer says so."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Literal, TypeVar

from body_broker.errors import Unavailable
from body_broker.lore.fusing import best_of_each, fuse
from body_broker.lore.index import Filter, Found, Hit, IndexAway, QueryVector, SearchIndex
from body_broker.lore.model import Missing

T = TypeVar("T")
By = Literal["both", "words", "meaning"]
Embed = Callable[[str], Awaitable[QueryVector | None]]
"""The vector of a query by the model that serves; None where none does. Raises Unavailable where it should and cannot."""

CANDIDATES = 300
"""Chunks each way of searching gives to the fusion: a constant, so that pages of one query follow from the same order."""


async def embed_nothing(_text: str) -> None:
    """For lore without an embedding model."""


@dataclass(frozen=True, slots=True)
class Asked:
    """One question to one lore index; `text` is clean and bounded."""

    index_id: int
    text: str
    by: By
    per_document: bool
    where: Filter

    @property
    def alone(self) -> bool:
        """Whether a way of searching is to leave all but a document's best chunk out; before a fusion that costs quality."""
        return self.per_document and self.by != "both"


@dataclass(slots=True)
class Ranked:
    """What was found.

    Attributes:
        hits: The best first; some may be of revs that are gone.
        missing: What could not be asked, or not whole.
        wordless: The text has no word to search for.
        by: What ranked them: each way, the index that answered, the model. Pages of one query fit together only by the same.
        copied: Hits came from an index that holds copies.
    """

    hits: list[Hit] = field(default_factory=list[Hit])
    missing: set[Missing] = field(default_factory=set[Missing])
    by: set[str] = field(default_factory=set[str])
    wordless: bool = False
    copied: bool = False


class Ranking:
    """Asks the ways of searching there are.

    Args:
        index: Always there and always current.
        copy: Asked first where there is one; whatever it cannot answer, `index` does.
        embed: Makes the query's vector.
    """

    def __init__(self, index: SearchIndex, copy: SearchIndex | None, embed: Embed) -> None:
        self._index, self._copy, self._embed = index, copy, embed

    async def rank(self, asked: Asked) -> Ranked:
        """Chunks in the order of their fused places."""
        ranked = Ranked()
        words, nearest = await asyncio.gather(self._by_words(asked, ranked), self._by_meaning(asked, ranked))
        ranked.wordless = asked.by != "meaning" and words is None
        rankings = [found.hits for found in (words, nearest) if found is not None]
        ranked.hits = rankings[0] if len(rankings) == 1 else fuse(rankings)
        if asked.per_document:
            ranked.hits = best_of_each(ranked.hits)
        return ranked

    async def _by_words(self, asked: Asked, ranked: Ranked) -> Found | None:
        if asked.by == "meaning":
            return None

        async def ask(index: SearchIndex) -> Found | None:
            return await index.lexical(
                asked.index_id, asked.text, limit=CANDIDATES, per_document=asked.alone, where=asked.where
            )

        found = await self._first(ask, ranked, "words")
        if found is not None and found.missing:
            ranked.missing.add("copy_behind")
        return found

    async def _by_meaning(self, asked: Asked, ranked: Ranked) -> Found | None:
        if asked.by == "words":
            return None
        try:
            query = await self._embed(asked.text)
        except Unavailable:
            query = None
        if query is None:
            ranked.missing.add("vectors")
            return None

        async def ask(index: SearchIndex) -> Found:
            return await index.nearest(
                asked.index_id, query, limit=CANDIDATES, per_document=asked.alone, where=asked.where
            )

        found = await self._first(ask, ranked, f"meaning {query.model_id}")
        if found.missing:
            ranked.missing.add("vectors_incomplete")
        return found

    async def _first(self, ask: Callable[[SearchIndex], Awaitable[T]], ranked: Ranked, way: str) -> T:
        """The copy's answer, else the index's own."""
        if self._copy is not None:
            try:
                found = await ask(self._copy)
            except IndexAway:
                ranked.missing.add("copy")
            else:
                ranked.copied = True
                ranked.by.add(f"{way} {self._copy.name}")
                return found
        ranked.by.add(f"{way} {self._index.name}")
        return await ask(self._index)
