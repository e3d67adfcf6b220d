"""Owns what readers get out of the lore tables: passages for hits, parts of documents, what indices there are."""

from __future__ import annotations

from collections.abc import Sequence

from body_broker.errors import NotFound
from body_broker.lore.documents import PAGE_CHARACTERS
from body_broker.lore.index import Hit
from body_broker.lore.model import DocumentPart, IndexSummary, Passage, shown
from body_broker.storage.postgres import Executor

# A hit is kept only where its rev is its document's current one.
_PASSAGES = """
SELECT hit.place, d.id, d.canon, e.title, c.heading, c.char_start, c.char_end, c.content
FROM unnest($1::bigint[], $2::integer[]) WITH ORDINALITY AS hit (rev, ordinal, place)
JOIN lore_document d ON d.rev = hit.rev JOIN lore_edition e ON e.rev = hit.rev
JOIN lore_chunk c ON c.rev = hit.rev AND c.ordinal = hit.ordinal
ORDER BY hit.place
"""
# A part of a text lies in the pages from the one that holds its first character to the one that holds its last.
_SPANS = """
SELECT (SELECT substr(string_agg(p.content, '' ORDER BY p.page), char_start % $4::integer + 1, char_end - char_start) FROM lore_page p
        WHERE p.rev = d.rev AND p.page BETWEEN char_start / $4::integer AND (char_end - 1) / $4::integer) AS content
FROM unnest($1::text[], $2::integer[], $3::integer[]) WITH ORDINALITY AS span (id, char_start, char_end, place)
LEFT JOIN lore_document d ON d.id = span.id ORDER BY span.place
"""
_PART = """
SELECT d.id, d.canon, i.name, e.rev, e.title, e.characters,
       (SELECT substr(string_agg(p.content, '' ORDER BY p.page), $2::integer % $4::integer + 1, $3::integer) FROM lore_page p
        WHERE p.rev = e.rev AND p.page BETWEEN $2::integer / $4::integer AND ($2::integer + $3::integer - 1) / $4::integer
       ) AS content
FROM lore_document d JOIN lore_index i ON i.id = d.index_id JOIN lore_edition e ON e.rev = d.rev
WHERE d.id = $1
"""
_INDICES = """
SELECT i.name, count(d.rev) AS documents, coalesce(sum(t.chunks), 0) AS passages, count(d.rev) FILTER (WHERE NOT d.canon) AS outside
FROM lore_index i JOIN lore_document d ON d.index_id = i.id AND d.rev IS NOT NULL
LEFT JOIN lore_posting_total t ON t.rev = d.rev
WHERE i.name COLLATE "C" > $1 GROUP BY i.name ORDER BY i.name COLLATE "C" LIMIT $2::integer
"""


async def passages(connection: Executor, hits: Sequence[Hit]) -> list[Passage]:
    """The passages of those hits whose rev is current, in the order of the hits."""
    rows = await connection.fetch(_PASSAGES, [hit.rev for hit in hits], [hit.ordinal for hit in hits])
    scores = {place: hit.score for place, hit in enumerate(hits, 1)}
    return [
        Passage(
            doc_id=row["id"],
            title=row["title"],
            heading=row["heading"],
            start=row["char_start"],
            end=row["char_end"],
            source="canon" if row["canon"] else "outside",
            content=row["content"],
            score=round(scores[row["place"]], 4),
        )
        for row in rows
    ]


async def spans(connection: Executor, places: Sequence[tuple[str, int, int]]) -> list[str | None]:
    """The characters of each (document, start, end) as they are now; None where the document is gone."""
    rows = await connection.fetch(
        _SPANS,
        [place[0] for place in places],
        [place[1] for place in places],
        [place[2] for place in places],
        PAGE_CHARACTERS,
    )
    return [row["content"] for row in rows]


async def part(connection: Executor, document_id: str, start: int, characters: int) -> DocumentPart:
    """Characters of a document from `start` on, as many as there are up to `characters`.

    Raises:
        NotFound: There is no such document, or no import of it is done yet.
    """
    row = await connection.fetchrow(_PART, document_id, start, characters, PAGE_CHARACTERS)
    if row is None:
        raise NotFound(
            "There is no document by that id.",
            next_step="Search again: ids change when a document is deleted and imported anew.",
        )
    return DocumentPart(
        doc_id=row["id"],
        index=shown(row["name"]),
        title=row["title"],
        source="canon" if row["canon"] else "outside",
        rev=row["rev"],
        characters=row["characters"],
        start=min(start, row["characters"]),
        content=row["content"] or "",
    )


async def indices(connection: Executor, after: str, limit: int) -> list[tuple[str, IndexSummary]]:
    """Indices that hold something, in the order of their stored names, each with that name."""
    rows = await connection.fetch(_INDICES, after, limit)
    return [
        (
            row["name"],
            IndexSummary(
                name=shown(row["name"]),
                documents=row["documents"],
                passages=int(row["passages"]),
                outside=row["outside"],
            ),
        )
        for row in rows
    ]
