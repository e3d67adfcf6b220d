"""Owns what an OpenSearch is given of a rev: an entry for each vector of a passage, and one for a passage that has none."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

import asyncpg
import orjson

from body_broker.calls import Json
from body_broker.lore.opensearch import knowledge
from body_broker.storage.postgres import Pool

_SLICE = 400
_ADD = b'{"index":{}}\n'

_REV = """
SELECT d.index_id, d.id, d.canon, e.knowledge::text FROM lore_document d JOIN lore_edition e USING (rev)
WHERE d.rev = $1::bigint
"""
# The text as importing.py has it: what both indexes find a passage by.
__SLICED = """
SELECT c.ordinal, coalesce(v.part, 0) AS part, v.embedding::text AS vector,
       CASE WHEN coalesce(v.part, 0) = 0 THEN e.title || E'\\n' || c.heading || E'\\n' || c.content END AS text
FROM lore_chunk c JOIN lore_edition e USING (rev)
LEFT JOIN lore_vector v ON v.rev = c.rev AND v.ordinal = c.ordinal AND v.model_id = $4::integer
WHERE c.rev = $1::bigint AND c.ordinal >= $2::integer AND c.ordinal < $3::integer ORDER BY c.ordinal, part
"""


async def of_rev(pool: Pool, rev: int, *, model_id: int | None, attempt: str) -> AsyncIterator[bytes]:
    """The entries of a rev that readers see, each as it stands in a bulk request; none of one that is gone.

    Args:
        pool: Where lore lies.
        rev: Whose.
        model_id: Whose vectors; None is words alone.
        attempt: Stands on every entry, so that those of another attempt are told from them.
    """
    row = await pool.fetchrow(_REV, rev)
    if row is None:
        return
    shared: dict[str, Json] = {
        "index_id": str(row["index_id"]),
        "rev": rev,
        "attempt": attempt,
        "document": row["id"],
        "canon": row["canon"],
        **knowledge.limits(orjson.loads(row["knowledge"])),
    }
    start = 0
    while rows := await pool.fetch(__SLICED, rev, start, start + _SLICE, model_id):
        for line in await asyncio.to_thread(_lines, shared, rows):
            yield line
        start += _SLICE


def _lines(shared: dict[str, Json], rows: Sequence[asyncpg.Record]) -> list[bytes]:
    lines: list[bytes] = []
    for row in rows:
        entry = {**shared, "ordinal": row["ordinal"], "part": row["part"]}
        if row["text"] is not None:
            entry["text"] = row["text"]
        if row["vector"] is not None:
            entry["vector"] = orjson.Fragment(row["vector"])  # pgvector's text is JSON
        lines.append(_ADD + orjson.dumps(entry))
    return lines
