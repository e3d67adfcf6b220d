"""Owns the names that the lore knows: titles, headings, personas and documents, found by what somebody has typed of them so far."""

from __future__ import annotations

from dataclasses import dataclass

from body_broker.storage.postgres import Executor

# Of the path that a heading is, only its last words are a name.
_SUBJECTS = """
WITH here AS (
    SELECT d.rev, d.canon, e.title FROM lore_index i JOIN lore_document d ON d.index_id = i.id JOIN lore_edition e ON e.rev = d.rev
    WHERE i.name = $1
), named AS (
    SELECT title AS name, canon FROM here
    UNION ALL
    SELECT regexp_replace(heading, '^.* › ', ''), canon FROM (
        SELECT DISTINCT c.heading, h.canon FROM here h JOIN lore_chunk c ON c.rev = h.rev
        WHERE c.heading <> '' AND length($2) >= 2) AS heard  -- every passage is looked at: not for one letter
)
SELECT name, bool_or(canon) AS canon FROM named WHERE strpos(lower(name), lower($2)) > 0
GROUP BY name ORDER BY bool_or(canon) DESC, NOT starts_with(lower(name), lower($2)), name LIMIT $3::integer
"""
_PERSONAS = """
SELECT substr(i.name, 9) AS name FROM lore_index i WHERE starts_with(i.name, 'persona:' || lower($1))
AND EXISTS (SELECT FROM lore_document d WHERE d.index_id = i.id AND d.rev IS NOT NULL) ORDER BY 1 LIMIT $2::integer
"""
_DOCUMENTS = """
SELECT d.id FROM lore_document d JOIN lore_edition e ON e.rev = d.rev
WHERE starts_with(d.id, $1) OR strpos(lower(e.title), lower($1)) > 0
ORDER BY d.canon DESC, e.title, d.id LIMIT $2::integer
"""


@dataclass(frozen=True, slots=True)
class Name:
    """A title or heading, and whether a canon document has it."""

    text: str
    canon: bool


async def subjects(connection: Executor, index: str, typed: str, *, limit: int) -> list[Name]:
    """Titles and headings of an index that hold what was typed, in any case: the canon's first, then what begins with it."""
    rows = await connection.fetch(_SUBJECTS, index, typed, limit)
    return [Name(row["name"], row["canon"]) for row in rows]


async def personas(connection: Executor, typed: str, *, limit: int) -> list[str]:
    """Personas with lore of their own whose names begin with what was typed."""
    return [row["name"] for row in await connection.fetch(_PERSONAS, typed, limit)]


async def documents(connection: Executor, typed: str, *, limit: int) -> list[str]:
    """Ids of documents whose id begins with what was typed or whose title holds it, the canon's first."""
    return [row["id"] for row in await connection.fetch(_DOCUMENTS, typed, limit)]
