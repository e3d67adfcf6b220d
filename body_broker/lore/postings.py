"""Owns the embedded search index: BM25 in one SQL statement over a postings table, and the protocol every index answers to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from body_broker.storage.postgres import Connection, Pool

K1, B = 1.2, 0.75
"""Robertson's figures, as measured in facts/storage.md §5: never fitted to our own questions."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A chunk as an index takes it: its number in its rev, and the text to find it by."""

    ordinal: int
    text: str


@dataclass(frozen=True, slots=True)
class Hit:
    """A chunk found: a copy of what the rev held when it was added, so whoever reads it checks that the rev is current."""

    rev: int
    ordinal: int
    score: float


class SearchIndex(Protocol):
    """Finds chunks. Holds copies under (rev, ordinal); PostgreSQL's lore tables are the truth."""

    async def add(self, connection: Connection, index_id: int, rev: int, entries: Sequence[Entry]) -> None:
        """Take the entries in, within the transaction that makes their chunks."""
        ...

    async def drop(self, connection: Connection, revs: Sequence[int]) -> None:
        """Forget everything of these revs."""
        ...

    async def lexical(
        self, index_id: int, query: str, *, limit: int, offset: int = 0, per_document: bool = False
    ) -> list[Hit] | None:
        """Hits from the best on, at most `limit` after the first `offset`; None where the query holds no word to search for.

        Args:
            index_id: The lore index to search.
            query: Bounded by the caller.
            limit: Hits at most.
            offset: Hits to pass over.
            per_document: Only the best chunk of each document.
        """
        ...


_ADD = """
WITH word AS (
    SELECT entry.ordinal, word.lexeme, cardinality(word.positions) AS tf,
           sum(cardinality(word.positions)) OVER (PARTITION BY entry.ordinal) AS words
    FROM unnest($3::integer[], $4::text[]) AS entry (ordinal, body), unnest(lore_words(entry.body)) AS word),
added AS (
    INSERT INTO lore_posting (index_id, lexeme, rev, ordinal, tf, words)
    SELECT $1::integer, lexeme, $2::bigint, ordinal, tf, words FROM word)
INSERT INTO lore_posting_total AS total (rev, index_id, chunks, words)
VALUES ($2::bigint, $1::integer, cardinality($3::integer[]), (SELECT coalesce(sum(tf), 0) FROM word))
ON CONFLICT (rev) DO UPDATE SET chunks = total.chunks + excluded.chunks, words = total.words + excluded.words
"""

# A rev that is not some document's current one is not searched: an import under way changes no score before it is committed.
_LEXICAL = """
WITH query AS (
    SELECT lexeme, cardinality(positions)::float8 AS weight FROM unnest(lore_words($1))),
size AS (
    SELECT sum(chunks)::float8 AS n, sum(words)::float8 / nullif(sum(chunks), 0) AS average
    FROM lore_posting_total JOIN lore_document USING (rev, index_id) WHERE index_id = $2::integer),
posted AS (
    SELECT p.rev, p.ordinal, p.words::float8, p.tf::float8, query.weight,
           count(*) OVER (PARTITION BY p.lexeme)::float8 AS df
    FROM query JOIN lore_posting AS p USING (lexeme) JOIN lore_document AS d ON d.rev = p.rev
    WHERE p.index_id = $2::integer),
scored AS (
    SELECT rev, ordinal, sum(weight * ln(1 + (n - df + 0.5) / (df + 0.5))
           * tf * ($3::float8 + 1) / (tf + $3::float8 * (1 - $4::float8 + $4::float8 * words / average))) AS score
    FROM posted, size GROUP BY rev, ordinal),
placed AS (
    SELECT *, row_number() OVER (PARTITION BY rev ORDER BY score DESC, ordinal) AS place FROM scored)
SELECT rev, ordinal, score FROM placed WHERE place = 1 OR NOT $5::boolean
ORDER BY score DESC, rev, ordinal LIMIT $6::bigint OFFSET $7::bigint
"""


class PostgresIndex:
    """The search index of the embedded default: postings in the same PostgreSQL."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def add(self, connection: Connection, index_id: int, rev: int, entries: Sequence[Entry]) -> None:
        """Write the postings of these entries; as durable as the transaction they come in."""
        await connection.execute(
            _ADD, index_id, rev, [entry.ordinal for entry in entries], [entry.text for entry in entries]
        )

    async def drop(self, connection: Connection, revs: Sequence[int]) -> None:
        """Delete the postings of these revs."""
        await connection.execute("DELETE FROM lore_posting WHERE rev = ANY($1::bigint[])", revs)
        await connection.execute("DELETE FROM lore_posting_total WHERE rev = ANY($1::bigint[])", revs)

    async def lexical(
        self, index_id: int, query: str, *, limit: int, offset: int = 0, per_document: bool = False
    ) -> list[Hit] | None:
        """BM25 with k1 1.2 and b 0.75; ties go to the older rev, then to the earlier chunk."""
        rows = await self._pool.fetch(_LEXICAL, query, index_id, K1, B, per_document, limit, offset)
        if not rows and not await self._pool.fetchval("SELECT length(lore_words($1)) > 0", query):
            return None
        return [Hit(row["rev"], row["ordinal"], row["score"]) for row in rows]
