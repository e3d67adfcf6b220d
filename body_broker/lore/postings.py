"""Owns the embedded search index: BM25 in one SQL statement over a postings table, and the exactly nearest vectors by pgvector."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import orjson

from body_broker.calls import Json
from body_broker.lore.index import EVERYTHING, Filter, Found, Hit, QueryVector
from body_broker.storage.postgres import Connection, Pool

K1, B = 1.2, 0.75
"""Robertson's figures, as measured in facts/storage.md §5: never fitted to our own questions."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A chunk as an index takes it: its number in its rev, and the text to find it by."""

    ordinal: int
    text: str


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
_ALL = "SELECT rev FROM lore_document WHERE index_id = $1::integer AND rev IS NOT NULL"


def _some(given: str) -> str:
    """Those that a filter lets through; the filter is one JSON parameter (`_given`)."""
    return f"""
    SELECT d.rev FROM lore_document d JOIN lore_edition e ON e.rev = d.rev, (SELECT {given}::text::jsonb AS given) AS filter
    WHERE d.index_id = $1::integer AND (NOT given ? 'canon' OR d.canon = (given ->> 'canon')::boolean)
      AND (NOT given ? 'documents' OR given -> 'documents' ? d.id) AND NOT EXISTS (
        SELECT FROM jsonb_each(given -> 'fields') AS wanted WHERE NOT coalesce(e.knowledge -> wanted.key @> wanted.value, false))
      AND lore_may_tell(e.knowledge, (given ->> 'spoiler_max')::integer, given ->> 'known_to')"""  # noqa: S608 - a parameter's number


def _lexical(live: str) -> str:
    """A filter narrows what is found, never what a word is worth."""
    return f"""
WITH query AS (
    SELECT lexeme, cardinality(positions)::float8 AS weight FROM unnest(lore_words($2))),
live AS ({live}),
size AS (
    SELECT sum(chunks)::float8 AS n, sum(words)::float8 / nullif(sum(chunks), 0) AS average
    FROM lore_posting_total JOIN lore_document USING (rev, index_id) WHERE index_id = $1::integer),
posted AS (
    SELECT p.rev, p.ordinal, p.words::float8, p.tf::float8, query.weight,
           count(*) OVER (PARTITION BY p.lexeme)::float8 AS df
    FROM query JOIN lore_posting AS p USING (lexeme) JOIN lore_document AS d ON d.rev = p.rev
    WHERE p.index_id = $1::integer),
scored AS (
    SELECT rev, ordinal, sum(weight * ln(1 + (n - df + 0.5) / (df + 0.5))
           * tf * ({K1} + 1) / (tf + {K1} * (1 - {B} + {B} * words / average))) AS score
    FROM posted JOIN live USING (rev), size GROUP BY rev, ordinal),
placed AS (
    SELECT *, row_number() OVER (PARTITION BY rev ORDER BY score DESC, ordinal) AS place FROM scored)
SELECT rev, ordinal, score FROM placed WHERE place = 1 OR NOT $3::boolean
ORDER BY score DESC, rev, ordinal LIMIT $4::bigint
"""  # noqa: S608 - both parts are constants of this file


def _nearest(live: str, model: str) -> str:
    """The inner product of normalised vectors is their cosine. All of the index are looked at: exact, and 2 ms for 10,000.

    The query stands in a subselect so that it is read once: a plan that is kept would read it again for every row, 80 ms for 3,000.
    """
    return f"""
WITH live AS ({live}),
scored AS (
    SELECT v.rev, v.ordinal, max(-(v.embedding <#> (SELECT $2::text::vector))) AS score
    FROM lore_vector v JOIN live USING (rev)
    WHERE v.model_id = {model}::integer AND v.index_id = $1::integer GROUP BY v.rev, v.ordinal),
size AS (
    SELECT coalesce(sum(chunks), 0) - (SELECT count(*) FROM scored) AS missing FROM lore_posting_total JOIN live USING (rev)),
placed AS (
    SELECT *, row_number() OVER (PARTITION BY rev ORDER BY score DESC, ordinal) AS place FROM scored),
best AS (
    SELECT rev, ordinal, score FROM placed WHERE place = 1 OR NOT $3::boolean
    ORDER BY score DESC, rev, ordinal LIMIT $4::bigint)
SELECT missing, rev, ordinal, score FROM size LEFT JOIN best ON true ORDER BY score DESC, rev, ordinal
"""  # noqa: S608 - both parts are constants of this file


def _live(live: str) -> str:
    return f"SELECT rev FROM ({live}) AS live WHERE rev = ANY ($2::bigint[])"  # noqa: S608 - a constant of this file


# Without a filter, and with one.
_LEXICAL = (_lexical(_ALL), _lexical(_some("$5")))
_NEAREST = (_nearest(_ALL, "$5"), _nearest(_some("$5"), "$6"))
_LIVE = (_live(_ALL), _live(_some("$3")))


class PostgresIndex:
    """The search index of the embedded default: postings and vectors in the same PostgreSQL."""

    name = "postgres"
    copies = False

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def add(self, connection: Connection, index_id: int, rev: int, entries: Sequence[Entry]) -> None:
        """Write the postings of these entries; as durable as the transaction they come in."""
        await connection.execute(
            _ADD, index_id, rev, [entry.ordinal for entry in entries], [entry.text for entry in entries]
        )

    async def drop(self, connection: Connection, revs: Sequence[int]) -> None:
        """Delete the postings of these revs; their vectors go with their chunks."""
        await connection.execute("DELETE FROM lore_posting WHERE rev = ANY($1::bigint[])", revs)
        await connection.execute("DELETE FROM lore_posting_total WHERE rev = ANY($1::bigint[])", revs)

    async def lexical(
        self, index_id: int, query: str, *, limit: int, per_document: bool = False, where: Filter = EVERYTHING
    ) -> Found | None:
        """BM25 with k1 1.2 and b 0.75; ties go to the older rev, then to the earlier chunk."""
        statement = _LEXICAL[not where.everything]
        rows = await self._pool.fetch(statement, index_id, query, per_document, limit, *_given(where))
        if not rows and not await self._pool.fetchval("SELECT length(lore_words($1)) > 0", query):
            return None
        return Found([Hit(row["rev"], row["ordinal"], row["score"]) for row in rows])

    async def nearest(
        self,
        index_id: int,
        query: QueryVector,
        *,
        limit: int,
        per_document: bool = False,
        where: Filter = EVERYTHING,
    ) -> Found:
        """The exactly nearest by cosine, a chunk by the nearest of its parts."""
        statement = _NEAREST[not where.everything]
        vector = f"[{','.join(map(str, query.values))}]"
        rows = await self._pool.fetch(statement, index_id, vector, per_document, limit, *_given(where), query.model_id)
        hits = [Hit(row["rev"], row["ordinal"], row["score"]) for row in rows if row["rev"] is not None]
        return Found(hits, missing=int(rows[0]["missing"]))

    async def live(self, index_id: int, revs: Collection[int], where: Filter = EVERYTHING) -> set[int]:
        """Those of the revs that readers see and that the filter lets through: what a copy's hits are checked against."""
        rows = await self._pool.fetch(_LIVE[not where.everything], index_id, list(revs), *_given(where))
        return {row["rev"] for row in rows}


def _given(where: Filter) -> tuple[str, ...]:
    """A filter as the statements' parameter; none where everything may be found."""
    if where.everything:
        return ()
    given: dict[str, Json] = {"fields": where.fields, "spoiler_max": where.spoiler_max, "known_to": where.known_to}
    if where.source is not None:
        given["canon"] = where.source == "canon"
    if where.documents:
        given["documents"] = where.documents
    return (orjson.dumps(given).decode(),)
