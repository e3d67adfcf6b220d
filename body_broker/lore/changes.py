"""Owns what changed in the lore since a moment: documents that are new, replaced, approved or deleted, told once each, newest first."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

import orjson

from body_broker.lore.importing import REINDEX
from body_broker.lore.model import Source, shown
from body_broker.storage.postgres import Executor

Kind = Literal["imported", "replaced", "approved", "deleted"]

# Of a document that is gone only that is told, of one that came and was replaced only that it came. Indexing anew changes nothing
# that is said: its revs stand in its job, which is known as long as ended work is kept (a week); later it reads as a replacement.
_CHANGES = """
WITH anew AS MATERIALIZED (
    SELECT rev::bigint FROM work w, jsonb_array_elements_text(w.input -> 'revs') AS rev WHERE w.kind = $3
), happened AS (
    SELECT e.id, e.document_id, e.at, e.by, CASE
        WHEN e.effect <> 'imported' THEN e.effect
        WHEN EXISTS (SELECT FROM lore_effect b WHERE b.document_id = e.document_id AND b.effect = 'imported' AND b.id < e.id)
        THEN 'replaced' ELSE 'imported' END AS kind
    FROM lore_effect e WHERE e.at >= $1::timestamptz AND (e.effect <> 'imported' OR NOT EXISTS (SELECT FROM anew WHERE anew.rev = e.rev))
), net AS (
    SELECT DISTINCT ON (document_id, kind = 'approved') * FROM happened
    ORDER BY document_id, kind = 'approved', kind = 'deleted' DESC, kind = 'imported' DESC, id DESC
), told AS MATERIALIZED (
    SELECT n.*, d.canon, d.rev, i.name AS index FROM net n
    LEFT JOIN lore_document d ON d.id = n.document_id LEFT JOIN lore_index i ON i.id = d.index_id
    WHERE n.kind <> 'approved' OR d.id IS NOT NULL
)
SELECT t.*, e.title, (SELECT min(b.at) FROM lore_effect b WHERE b.document_id = t.document_id) AS known_since,
       (SELECT jsonb_object_agg(kind, n) FROM (SELECT kind, count(*) AS n FROM told GROUP BY kind) c)::text AS counts
FROM told t LEFT JOIN lore_edition e ON e.rev = t.rev ORDER BY t.id DESC LIMIT $2::integer
"""


@dataclass(frozen=True, slots=True)
class Change:
    """What became of one document.

    Attributes:
        kind: imported is new; replaced has another text than before.
        doc_id: The document's id.
        at: When, the last time.
        by: Who did it.
        known_since: When the document first came.
        title: Its title now; None where it is gone: no title is kept.
        index: Its index as agents see it; None where it is gone.
        source: Whether it is canon now; None where it is gone.
    """

    kind: Kind
    doc_id: str
    at: datetime
    by: str
    known_since: datetime
    title: str | None
    index: str | None
    source: Source | None


@dataclass(frozen=True, slots=True)
class Changes:
    """What changed since a moment: the newest changes, and how many there are in all of each kind."""

    since: datetime
    newest: list[Change]
    counts: Mapping[Kind, int]


async def changes(connection: Executor, since: datetime | timedelta, *, limit: int) -> Changes:
    """What changed since a moment, or within a time before now.

    Args:
        connection: Where lore lies.
        since: A moment with its zone, or how long ago by the database's clock.
        limit: Changes that are told one by one.
    """
    if isinstance(since, timedelta):
        since = await connection.fetchval("SELECT now() - $1::interval", since)
        assert isinstance(since, datetime)
    rows = await connection.fetch(_CHANGES, since, limit, REINDEX)
    newest = [
        Change(
            kind=row["kind"],
            doc_id=row["document_id"],
            at=row["at"],
            by=row["by"],
            known_since=row["known_since"],
            title=row["title"],
            index=row["index"] and shown(row["index"]),
            source=None if row["canon"] is None else "canon" if row["canon"] else "outside",
        )
        for row in rows
    ]
    return Changes(since, newest, orjson.loads(rows[0]["counts"]) if rows else {})


async def days_of_change(connection: Executor, limit: int) -> list[str]:
    """The latest days on which the lore changed, as dates of UTC, the latest first."""
    rows = await connection.fetch(
        "SELECT DISTINCT (at AT TIME ZONE 'UTC')::date AS day FROM lore_effect ORDER BY day DESC LIMIT $1::integer",
        limit,
    )
    return [row["day"].isoformat() for row in rows]
