"""Owns what stands in the lore before somebody changes it: which text readers see of a document, and holding a change to that text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from body_broker.errors import Conflict
from body_broker.storage.postgres import Connection, Executor

_APPROVABLE = """
SELECT d.canon, EXISTS (SELECT FROM lore_edition e WHERE e.document_id = d.id AND e.rev > d.rev) AS newer, EXISTS (
    SELECT FROM lore_document o WHERE o.index_id = d.index_id AND o.source = d.source AND o.canon AND o.id <> d.id) AS named
FROM lore_document d WHERE d.id = $1 AND d.rev IS NOT NULL
"""


@dataclass(frozen=True, slots=True)
class Standing:
    """What readers see of a document."""

    document_id: str
    rev: int
    title: str
    content_hash: str


async def of_origins(connection: Executor, index: str, origins: Sequence[str], *, canon: bool) -> dict[str, Standing]:
    """What readers see of these origins in an index, by origin."""
    rows = await connection.fetch(
        "SELECT d.source, d.id, d.rev, e.title, e.content_hash FROM lore_document d"
        " JOIN lore_index i ON i.id = d.index_id JOIN lore_edition e ON e.rev = d.rev"
        " WHERE i.name = $1 AND d.source = ANY($2::text[]) AND d.canon = $3::boolean",
        index,
        list(origins),
        canon,
    )
    return {row["source"]: Standing(row["id"], row["rev"], row["title"], row["content_hash"]) for row in rows}


async def require_rev(connection: Connection, document_id: str, rev: int) -> None:
    """Hold a document, where it is there, to the text that somebody read.

    Raises:
        Conflict: It has another text by now.
    """
    row = await connection.fetchrow("SELECT rev FROM lore_document WHERE id = $1 FOR UPDATE", document_id)
    if row is not None and row["rev"] != rev:
        raise Conflict("The document has another text by now.", next_step="Read it again and decide again.")


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
