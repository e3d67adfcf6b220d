"""Owns what stands in the lore before somebody changes it: which text readers see of a document, and holding a change to that text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import asyncpg
import orjson

from body_broker.calls import Json
from body_broker.errors import Conflict
from body_broker.lore.model import Format, Source
from body_broker.storage.postgres import Connection, Executor

# A text that some job is still to bring: what an ended job left behind is never seen.
_NEWER = """EXISTS (SELECT FROM lore_edition n JOIN work w ON w.id = n.job_id WHERE n.document_id = d.id AND n.rev > d.rev
    AND w.state IN ('waiting', 'queued', 'running', 'unknown'))"""
_STANDING = f"""
SELECT d.source, d.id, d.rev, d.canon, {_NEWER} AS newer, e.title, e.content_hash, e.format, e.knowledge::text
FROM lore_document d JOIN lore_index i ON i.id = d.index_id JOIN lore_edition e ON e.rev = d.rev
"""  # noqa: S608 - of constants above
_OF_ORIGINS = f"{_STANDING} WHERE i.name = $1 AND d.source = ANY($2::text[]) AND d.canon = $3::boolean"
_OF_DOCUMENT = f"{_STANDING} WHERE d.id = $1"
_OF_TITLES = f"{_STANDING} WHERE i.name = $1 AND e.title = ANY($2::text[]) AND d.canon ORDER BY d.id LIMIT $3::integer"
_OTHERS = """
SELECT true FROM lore_document d JOIN lore_index i ON i.id = d.index_id JOIN lore_edition e ON e.document_id = d.id
JOIN work w ON w.id = e.job_id
WHERE i.name = $1 AND d.source = ANY($2::text[]) AND d.canon AND e.rev > coalesce(d.rev, 0) AND e.job_id <> $3
  AND w.state IN ('waiting', 'queued', 'running', 'unknown') LIMIT 1
"""
_HELD = f"SELECT d.rev, d.canon, {_NEWER} AS newer FROM lore_document d WHERE d.id = $1"  # noqa: S608 - the same
_APPROVABLE = """
SELECT d.canon, EXISTS (SELECT FROM lore_edition e WHERE e.document_id = d.id AND e.rev > d.rev) AS newer, EXISTS (
    SELECT FROM lore_document o WHERE o.index_id = d.index_id AND o.source = d.source AND o.canon AND o.id <> d.id) AS named
FROM lore_document d WHERE d.id = $1 AND d.rev IS NOT NULL
"""


@dataclass(frozen=True, slots=True)
class Standing:
    """What readers see of a document.

    Attributes:
        document_id: Its id.
        origin: What it is known by to later imports.
        rev: Of the text.
        source: Whether it is canon.
        newer: Another text of it is being brought in.
        title: Of the text.
        content_hash: As `documents.content_hash` has it.
        form: How headings are marked.
        knowledge: Its metadata.
    """

    document_id: str
    origin: str
    rev: int
    source: Source
    newer: bool
    title: str
    content_hash: str
    form: Format
    knowledge: dict[str, Json]


async def of_origins(connection: Executor, index: str, origins: Sequence[str], *, canon: bool) -> dict[str, Standing]:
    """What readers see of these origins in an index, by origin."""
    rows = await connection.fetch(_OF_ORIGINS, index, list(origins), canon)
    return {row["source"]: _standing(row) for row in rows}


async def of_document(connection: Executor, document_id: str) -> Standing | None:
    """What readers see of a document; None where they see none."""
    row = await connection.fetchrow(_OF_DOCUMENT, document_id)
    return None if row is None else _standing(row)


async def canon_titled(connection: Executor, index: str, titles: Sequence[str], *, limit: int) -> list[Standing]:
    """The canon's documents of these titles in an index, wherever they came from, by id."""
    return [_standing(row) for row in await connection.fetch(_OF_TITLES, index, list(titles), limit)]


async def require_none_coming(connection: Executor, index: str, origins: Sequence[str], *, but: str = "") -> None:
    """Whether nothing is being brought in for the canon under these origins, except by the job `but`.

    Raises:
        Conflict: Something is, which nobody has read yet.
    """
    if await connection.fetchval(_OTHERS, index, list(origins), but):
        raise newer_coming()


def _standing(row: asyncpg.Record) -> Standing:
    return Standing(
        document_id=row["id"],
        origin=row["source"],
        rev=row["rev"],
        source="canon" if row["canon"] else "outside",
        newer=row["newer"],
        title=row["title"],
        content_hash=row["content_hash"],
        form=row["format"],
        knowledge=orjson.loads(row["knowledge"]),
    )


def newer_coming() -> Conflict:
    """What is said of a document whose next text nobody has read yet."""
    return Conflict(
        "A newer text of the document is being brought in.", next_step="Wait for its import, read it, then ask again."
    )


async def require_rev(connection: Connection, document_id: str, rev: int, source: Source | None = None) -> None:
    """Hold a document, where it is there, to the text that somebody read.

    Args:
        connection: In a transaction: the document stays as it is until its end.
        document_id: The document.
        rev: Of the text.
        source: Whether it was canon then; None where that does not matter.

    Raises:
        Conflict: It has another text by now or is being given one, or it became canon since.
    """
    await connection.execute("SELECT FROM lore_document WHERE id = $1 FOR UPDATE", document_id)
    # A second statement: whoever was waited for may have brought a newer text.
    row = await connection.fetchrow(_HELD, document_id)
    if row is None:
        return
    if row["rev"] != rev:
        raise Conflict("The document has another text by now.", next_step="Read it again and decide again.")
    if source is not None and row["canon"] is not (source == "canon"):
        raise Conflict("The document became canon since.", next_step="Read it again and decide again.")
    if row["newer"]:
        raise newer_coming()


async def require_approvable(connection: Executor, document_id: str) -> None:
    """Whether a document from outside could become canon as it is now.

    Raises:
        Conflict: It is canon, or the canon has one of its name, or a newer text of it is being brought in.
    """
    row = await connection.fetchrow(_APPROVABLE, document_id)
    if row is None:
        return  # it is gone; reading it says so
    if row["canon"]:
        raise Conflict("The document is canon already.", next_step="Nothing is to be done.")
    if row["named"]:
        raise Conflict(
            "The canon has a document of its name.", next_step="Bring the text as a new one for that document instead."
        )
    if row["newer"]:
        raise Conflict("A newer text of it is being brought in.", next_step="Wait for its import, then read it.")


async def hashes_of_canon(connection: Executor, document_ids: Sequence[str]) -> dict[str, str]:
    """What readers see of these documents where they are canon, as `content_hash` has it."""
    rows = await connection.fetch(
        "SELECT d.id, e.content_hash FROM lore_document d JOIN lore_edition e ON e.rev = d.rev"
        " WHERE d.canon AND d.id = ANY($1::text[])",
        list(document_ids),
    )
    return {row["id"]: row["content_hash"] for row in rows}
