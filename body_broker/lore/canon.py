"""Owns reading the studio's own lore out again whole: every canon document as it was brought, for an export."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass

import orjson

from body_broker.lore.model import Draft
from body_broker.storage.postgres import Executor, Pool

_BATCH = 100
_ORIGINS = """
SELECT d.id, i.name AS index, d.source FROM lore_document d JOIN lore_index i ON i.id = d.index_id
WHERE d.canon AND d.rev IS NOT NULL AND starts_with(d.source, $1) ORDER BY i.name, d.source
"""
_DRAFTS = """
SELECT d.id, i.name AS index, d.source, e.title, e.format, e.knowledge::text,
       (SELECT string_agg(p.content, '' ORDER BY p.page) FROM lore_page p WHERE p.rev = e.rev) AS body
FROM lore_document d JOIN lore_index i ON i.id = d.index_id JOIN lore_edition e ON e.rev = d.rev
WHERE d.id = ANY ($1::text[]) ORDER BY i.name, d.source
"""

_WITHIN = """
SELECT d.source FROM lore_document d JOIN lore_edition e ON e.rev = d.rev
WHERE d.canon AND d.source = ANY ($1::text[])
GROUP BY d.source HAVING bool_and(lore_may_tell(e.knowledge, $2::integer, NULL))
"""


@dataclass(frozen=True, slots=True)
class Origin:
    """A canon document by where it came from."""

    document_id: str
    index: str
    origin: str


async def origins(connection: Executor, beginning: str = "") -> list[Origin]:
    """The canon's documents whose origin begins so, by index and origin."""
    rows = await connection.fetch(_ORIGINS, beginning)
    return [Origin(row["id"], row["index"], row["source"]) for row in rows]


async def within(connection: Executor, origins: Sequence[str], spoiler_max: int) -> set[str]:
    """Those origins whose canon documents are there, and none above a spoiler level."""
    return {row["source"] for row in await connection.fetch(_WITHIN, list(origins), spoiler_max)}


async def drafts(pool: Pool) -> AsyncGenerator[tuple[str, Draft]]:
    """Index and document, for every canon document that readers see, by index and origin."""
    wanted = [each.document_id for each in await origins(pool)]
    for start in range(0, len(wanted), _BATCH):
        for row in await pool.fetch(_DRAFTS, wanted[start : start + _BATCH]):
            yield (
                row["index"],
                Draft(row["source"], row["title"], row["body"] or "", row["format"], orjson.loads(row["knowledge"])),
            )
