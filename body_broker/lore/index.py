"""Owns the words of finding: what an index is asked, what it answers, and what follows a change of the lore."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from body_broker.calls import Json
from body_broker.errors import Unavailable
from body_broker.lore.model import Source
from body_broker.storage.postgres import Connection


@dataclass(frozen=True, slots=True)
class Filter:
    """Which documents may be found; nothing set is all of them.

    Attributes:
        source: Only the canon, or only what came from outside.
        documents: Only these, by id; empty is all.
        spoiler_max: Only documents whose `spoiler_level` is at most this; one without a level has none to spoil.
        known_to: Only documents whose `known_by` names this one, or that have none.
        fields: Only documents whose metadata hold these values, each alone or in a list.
    """

    source: Source | None = None
    documents: tuple[str, ...] = ()
    spoiler_max: int | None = None
    known_to: str | None = None
    fields: Mapping[str, Json] = field(default_factory=dict[str, Json])

    @property
    def everything(self) -> bool:
        """Whether it lets everything through."""
        return self == EVERYTHING


EVERYTHING = Filter()


@dataclass(frozen=True, slots=True)
class Hit:
    """A chunk found: a copy of what the rev held when it was added, so whoever reads it checks that the rev is current."""

    rev: int
    ordinal: int
    score: float


@dataclass(frozen=True, slots=True)
class Found:
    """What one way of searching found.

    Attributes:
        hits: The best first; each chunk once.
        missing: Current passages of the index that this way could not have found yet.
    """

    hits: list[Hit]
    missing: int = 0


@dataclass(frozen=True, slots=True)
class QueryVector:
    """A query as a model's vector, L2-normalised."""

    model_id: int
    values: Sequence[float]


class IndexAway(Unavailable):
    """An index cannot answer now: away, too slow, full, lost, or not built for this. Whoever asked falls back and says so."""


class SearchIndex(Protocol):
    """Finds chunks of one lore index under (rev, ordinal); PostgreSQL's lore tables are the truth.

    Attributes:
        name: How an answer names it where it could not be asked.
        copies: Whether it holds copies that may be behind, so that hits must be checked before they are counted.
    """

    name: str
    copies: bool

    async def lexical(
        self, index_id: int, query: str, *, limit: int, per_document: bool = False, where: Filter = EVERYTHING
    ) -> Found | None:
        """Chunks that share words with the query, by BM25; None where the query holds no word to search for.

        Args:
            index_id: The lore index to search.
            query: Bounded by the caller.
            limit: Hits at most.
            per_document: Only the best chunk of each document.
            where: Which documents may be found.

        Raises:
            IndexAway: It cannot answer now.
        """
        ...

    async def nearest(
        self,
        index_id: int,
        query: QueryVector,
        *,
        limit: int,
        per_document: bool = False,
        where: Filter = EVERYTHING,
    ) -> Found:
        """Chunks nearest to the query's vector, by cosine; `missing` counts those that have no vector of its model yet.

        Raises:
            IndexAway: It cannot answer now.
        """
        ...


class Follower(Protocol):
    """Goes after the lore: vectors, copies. Told within the transaction that changes it, so that nothing is forgotten."""

    async def changed(self, connection: Connection, index_id: int, current: Sequence[int], gone: Sequence[int]) -> None:
        """Revs that readers see from now on (or whose source changed), and revs that are gone.

        Args:
            connection: In the transaction; write through it only.
            index_id: The lore index of all of them.
            current: Revs to follow.
            gone: Revs to forget.
        """
        ...

    async def serving(self, connection: Connection, model_id: int) -> None:
        """Another model's vectors serve queries from this transaction on.

        Args:
            connection: In the transaction; write through it only.
            model_id: Whose vectors.
        """
        ...
