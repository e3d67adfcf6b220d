"""Owns the lore tables: indices, documents, their editions and chunks. The current rev of a document is what readers see."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import orjson

from body_broker.calls import Receipt
from body_broker.errors import Conflict, NotFound
from body_broker.lore.chunks import Chunk
from body_broker.lore.model import Draft, Format
from body_broker.storage.postgres import Connection, Executor
from body_broker.text import digest, new_id

PAGE_CHARACTERS = 10_000
"""As the lore_page table is laid out; another figure needs a migration."""
_MANY = 100
"""Passages; fewer leave the counts about right, or the tables so small that no plan is bad."""
TABLES = ("lore_document", "lore_edition", "lore_chunk", "lore_posting", "lore_posting_total")
_NO_DOCUMENT = "Search again: ids change when a document is deleted and imported anew."


@dataclass(frozen=True, slots=True)
class Effect:
    """Who changes the lore, and under which decision of the audit."""

    by: str
    receipt: Receipt | None

    def columns(self) -> tuple[str, str | None, int | None]:
        """As the lore_effect table has them."""
        return self.by, self.receipt and self.receipt.writer, self.receipt and self.receipt.sequence


@dataclass(frozen=True, slots=True)
class Edition:
    """A rev's text, as it is cut."""

    rev: int
    index_id: int
    title: str
    form: Format
    body: str


def content_hash(draft: Draft) -> str:
    """What makes two documents the same: title, text, format and what must be known; 64 hex digits."""
    body = hashlib.sha256(draft.body.encode()).hexdigest()
    return digest([draft.title, body, draft.form, draft.knowledge])


async def index_id(connection: Executor, name: str, *, make: bool = False) -> int | None:
    """The number of an index; with `make` it is there afterwards."""
    if make:
        await connection.execute("INSERT INTO lore_index (name) VALUES ($1) ON CONFLICT (name) DO NOTHING", name)
    return await connection.fetchval("SELECT id FROM lore_index WHERE name = $1", name)


async def holds_any(connection: Executor, index: int) -> bool:
    """Whether readers see a document in an index."""
    return bool(
        await connection.fetchval(
            "SELECT true FROM lore_document WHERE index_id = $1::integer AND rev IS NOT NULL LIMIT 1", index
        )
    )


async def present(connection: Connection, index: int, hashes: Sequence[str], *, canon: bool) -> dict[str, str]:
    """Document by hash of what an index already holds; what is canon is also there for whoever brings it from outside."""
    rows = await connection.fetch(
        "SELECT e.content_hash, d.id FROM lore_document d JOIN lore_edition e ON e.rev = d.rev"
        " WHERE d.index_id = $1::integer AND e.content_hash = ANY($2::text[]) AND (d.canon OR NOT $3::boolean)"
        " ORDER BY d.canon",
        index,
        hashes,
        canon,
    )
    return {row["content_hash"]: row["id"] for row in rows}


async def add_editions(
    connection: Connection, index: int, drafts: Sequence[tuple[str, Draft]], *, canon: bool, job_id: str
) -> list[tuple[str, int]]:
    """Document and new rev of each draft, in order; the document is made where there is none of its origin.

    Args:
        connection: In the transaction that enqueues the job.
        index: The index's number.
        drafts: Content hash and draft, each origin once.
        canon: Whether they are the studio's own truth.
        job_id: The job that will cut and index them.
    """
    origins = [draft.origin for _, draft in drafts]
    # Updating what is there to what it is locks it, so that nobody deletes it before it has its new edition.
    rows = await connection.fetch(
        "INSERT INTO lore_document (id, index_id, source, canon)"
        " SELECT id, $1::integer, source, $2::boolean FROM unnest($3::text[], $4::text[]) AS made (id, source) ORDER BY source"
        " ON CONFLICT (index_id, source, canon) DO UPDATE SET source = excluded.source RETURNING id, source",
        index,
        canon,
        [new_id("doc") for _ in drafts],
        origins,
    )
    ids = {row["source"]: row["id"] for row in rows}
    made = await connection.fetch(
        "INSERT INTO lore_edition (document_id, title, format, characters, content_hash, knowledge, job_id)"
        " SELECT id, title, format, characters, hash, knowledge::jsonb, $1"
        " FROM unnest($2::text[], $3::text[], $4::text[], $5::integer[], $6::text[], $7::text[])"
        " AS given (id, title, format, characters, hash, knowledge) RETURNING document_id, rev",
        job_id,
        [ids[origin] for origin in origins],
        [draft.title for _, draft in drafts],
        [draft.form for _, draft in drafts],
        [len(draft.body) for _, draft in drafts],
        [hashed for hashed, _ in drafts],
        [orjson.dumps(draft.knowledge).decode() for _, draft in drafts],
    )
    revs = {row["document_id"]: row["rev"] for row in made}
    await connection.copy_records_to_table(
        "lore_page",
        columns=("rev", "page", "content"),
        records=((revs[ids[draft.origin]], *page) for _, draft in drafts for page in _pages(draft.body)),
    )
    return [(ids[origin], revs[ids[origin]]) for origin in origins]


_COPY = """
INSERT INTO lore_edition (document_id, title, format, characters, content_hash, knowledge, job_id)
SELECT e.document_id, e.title, e.format, e.characters, e.content_hash, e.knowledge, $2
FROM lore_document d JOIN lore_edition e ON e.rev = d.rev
WHERE d.index_id = $1::integer AND NOT EXISTS (
    SELECT FROM lore_edition p JOIN work w ON w.id = p.job_id WHERE p.document_id = d.id AND p.rev > d.rev
    AND w.state IN ('waiting', 'queued', 'running', 'unknown'))
ORDER BY d.rev RETURNING rev
"""


async def copy_editions(connection: Connection, index: int, job_id: str) -> list[int]:
    """New revs with the current text of the documents of an index: what indexing it anew works on.

    A document whose newer text is being brought in is left to that: a copy of the older one would come after it and undo it.
    """
    await connection.execute(
        "SELECT FROM lore_document WHERE index_id = $1::integer AND rev IS NOT NULL ORDER BY id FOR UPDATE", index
    )
    rows = await connection.fetch(_COPY, index, job_id)
    revs = [row["rev"] for row in rows]
    await connection.execute(
        "INSERT INTO lore_page (rev, page, content) SELECT made.rev, p.page, p.content FROM lore_edition made"
        " JOIN lore_document d ON d.id = made.document_id JOIN lore_page p ON p.rev = d.rev"
        " WHERE made.rev = ANY($1::bigint[])",
        revs,
    )
    return revs


async def edition(connection: Executor, rev: int) -> Edition | None:
    """A rev's text; None once its document was deleted or a newer rev became current."""
    row = await connection.fetchrow(
        "SELECT e.rev, d.index_id, e.title, e.format,"
        " (SELECT string_agg(p.content, '' ORDER BY p.page) FROM lore_page p WHERE p.rev = e.rev) AS body"
        " FROM lore_edition e JOIN lore_document d ON d.id = e.document_id WHERE e.rev = $1::bigint",
        rev,
    )
    return None if row is None else Edition(row["rev"], row["index_id"], row["title"], row["format"], row["body"])


def _pages(body: str) -> Iterator[tuple[int, str]]:
    for page, start in enumerate(range(0, len(body), PAGE_CHARACTERS)):
        yield page, body[start : start + PAGE_CHARACTERS]


async def add_chunks(connection: Connection, rev: int, body: str, chunks: Sequence[Chunk]) -> None:
    """Store these chunks of a rev."""
    await connection.copy_records_to_table(
        "lore_chunk",
        columns=("rev", "ordinal", "char_start", "char_end", "heading", "content"),
        records=[(rev, c.ordinal, c.start, c.end, c.heading, body[c.start : c.end]) for c in chunks],
    )


async def lock_editions(connection: Connection, revs: Collection[int]) -> set[int]:
    """Those of the revs that still are there; their documents stay as they are until the transaction ends."""
    await connection.execute(
        "SELECT FROM lore_document WHERE id IN (SELECT document_id FROM lore_edition WHERE rev = ANY($1::bigint[]))"
        " ORDER BY id FOR UPDATE",
        list(revs),
    )
    # A second statement: the first one may have waited for whoever deleted them, and would still see them.
    rows = await connection.fetch("SELECT rev FROM lore_edition WHERE rev = ANY($1::bigint[])", list(revs))
    return {row["rev"] for row in rows}


async def clear_chunks(connection: Connection, revs: Collection[int]) -> list[int]:
    """Those of the revs that readers do not see yet, without whatever chunks they had."""
    rows = await connection.fetch(
        "SELECT e.rev FROM lore_edition e JOIN lore_document d ON d.id = e.document_id"
        " WHERE e.rev = ANY($1::bigint[]) AND d.rev IS DISTINCT FROM e.rev",
        list(revs),
    )
    pending = [row["rev"] for row in rows]
    await connection.execute("DELETE FROM lore_chunk WHERE rev = ANY($1::bigint[])", pending)
    return pending


async def make_current(connection: Connection, revs: Sequence[int], effect: Effect) -> tuple[list[str], list[int]]:
    """The documents whose readers see these revs from now on, and the older revs that are gone with it.

    Their documents are locked, so that a rev which is there is newer than the current one: whichever became current took all older
    ones with it. An outside document with the same text as one that becomes canon goes too.
    """
    changed = await connection.fetch(
        "UPDATE lore_document d SET rev = e.rev FROM lore_edition e"
        " WHERE e.rev = ANY($1::bigint[]) AND d.id = e.document_id RETURNING d.id, d.rev",
        revs,
    )
    ids = [row["id"] for row in changed]
    await _inherit_vectors(connection, revs)
    twins = await connection.fetch(
        "SELECT twin.id FROM lore_document d JOIN lore_edition e ON e.rev = d.rev"
        " JOIN lore_edition same ON same.content_hash = e.content_hash"
        " JOIN lore_document twin ON twin.rev = same.rev AND twin.index_id = d.index_id"
        " WHERE d.id = ANY($1::text[]) AND d.canon AND NOT twin.canon",
        ids,
    )
    gone = await connection.fetch(
        "DELETE FROM lore_edition e USING lore_document d, lore_edition given"
        " WHERE given.rev = ANY($1::bigint[]) AND d.id = given.document_id AND e.document_id = d.id AND e.rev < d.rev"
        " RETURNING e.rev",
        revs,
    )
    dropped = [row["rev"] for row in gone]
    for twin in twins:
        dropped += await delete(connection, twin["id"], effect)
    await connection.execute(
        "INSERT INTO lore_effect (effect, document_id, rev, by, receipt_writer, receipt_sequence)"
        " SELECT 'imported', id, rev, $3, $4, $5::bigint FROM unnest($1::text[], $2::bigint[]) AS made (id, rev)",
        ids,
        [row["rev"] for row in changed],
        *effect.columns(),
    )
    return ids, dropped


async def _inherit_vectors(connection: Connection, revs: Sequence[int]) -> None:
    """Give passages whose title, heading and text did not change the vectors they had; the rest is left to the job."""
    await connection.execute(
        "WITH model AS (SELECT id FROM lore_model ORDER BY id FOR KEY SHARE)"  # so that it goes before this, or after
        # One old passage of those with the same text: a document may repeat itself a thousand times.
        ", was AS (SELECT DISTINCT ON (made.rev, c.heading, md5(c.content))"
        " made.rev AS made, c.heading, c.content, c.rev, c.ordinal FROM lore_edition made"
        " JOIN lore_edition old ON old.document_id = made.document_id AND old.rev < made.rev AND old.title = made.title"
        " JOIN lore_chunk c ON c.rev = old.rev"
        " WHERE made.rev = ANY($1::bigint[]) AND EXISTS (SELECT FROM lore_vector v WHERE v.rev = c.rev AND v.ordinal = c.ordinal)"
        " ORDER BY made.rev, c.heading, md5(c.content), c.rev DESC, c.ordinal)"
        " INSERT INTO lore_vector (rev, ordinal, model_id, part, index_id, embedding)"
        " SELECT c.rev, c.ordinal, v.model_id, v.part, v.index_id, v.embedding"
        " FROM was JOIN lore_chunk c ON c.rev = was.made AND c.heading = was.heading AND c.content = was.content"
        " JOIN lore_vector v ON v.rev = was.rev AND v.ordinal = was.ordinal JOIN model ON model.id = v.model_id"
        " ON CONFLICT DO NOTHING",
        revs,
    )


async def delete(connection: Connection, document_id: str, effect: Effect) -> list[int]:
    """The revs that are gone with a document.

    Raises:
        NotFound: There is no such document, and there never was one that was deleted.
    """
    locked = await connection.fetchval("SELECT id FROM lore_document WHERE id = $1 FOR UPDATE", document_id)
    if locked is None:
        if await connection.fetchval(
            "SELECT true FROM lore_effect WHERE document_id = $1 AND effect = 'deleted'", document_id
        ):
            return []
        raise NotFound("There is no document by that id.", next_step=_NO_DOCUMENT)
    rows = await connection.fetch("DELETE FROM lore_edition WHERE document_id = $1 RETURNING rev", document_id)
    await connection.execute("DELETE FROM lore_document WHERE id = $1", document_id)
    await connection.execute(
        "INSERT INTO lore_effect (effect, document_id, by, receipt_writer, receipt_sequence)"
        " VALUES ('deleted', $1, $2, $3, $4::bigint)",
        document_id,
        *effect.columns(),
    )
    return [row["rev"] for row in rows]


async def index_of(connection: Executor, document_id: str) -> int | None:
    """The number of the index a document is in; None where it is gone."""
    return await connection.fetchval("SELECT index_id FROM lore_document WHERE id = $1", document_id)


async def approve(
    connection: Connection, document_id: str, effect: Effect, *, rev: int | None = None
) -> tuple[int, int]:
    """Take the text that readers see of an outside document into the canon; the number of its index, and the text's rev.

    Args:
        connection: In a transaction.
        document_id: The document.
        effect: Who does it.
        rev: The text that was read before it was approved; None is whatever is there.

    Raises:
        NotFound: There is no such document from outside.
        Conflict: It has another text than that, or another one is being brought in, which nobody has read yet.
    """
    locked = await connection.fetchrow(
        "SELECT index_id, rev FROM lore_document WHERE id = $1 AND NOT canon AND rev IS NOT NULL FOR UPDATE",
        document_id,
    )
    if locked is not None and rev is not None and locked["rev"] != rev:
        raise Conflict("The document has another text by now.", next_step="Read it again, then approve what you read.")
    # A second statement: whoever was waited for may have brought a newer text.
    if await connection.fetchval(
        "SELECT true FROM lore_document d JOIN lore_edition e ON e.document_id = d.id WHERE d.id = $1 AND e.rev > d.rev LIMIT 1",
        document_id,
    ):
        raise Conflict(
            "A newer text of the document is being brought in.",
            next_step="Wait for its import, read it, then approve it.",
        )
    changed = await connection.fetchrow(
        "UPDATE lore_document d SET canon = true WHERE id = $1 AND NOT canon AND rev IS NOT NULL AND NOT EXISTS ("
        "SELECT FROM lore_document o WHERE o.index_id = d.index_id AND o.source = d.source AND o.canon) RETURNING index_id, rev",
        document_id,
    )
    if changed is None:
        raise NotFound(
            "There is no document from outside by that id, or the canon has one of its name.", next_step=_NO_DOCUMENT
        )
    await connection.execute(
        "INSERT INTO lore_effect (effect, document_id, rev, by, receipt_writer, receipt_sequence)"
        " VALUES ('approved', $1, $2::bigint, $3, $4, $5::bigint)",
        document_id,
        changed["rev"],
        *effect.columns(),
    )
    return changed["index_id"], changed["rev"]


async def analyze(connection: Executor, tables: Sequence[str], added: int) -> None:
    """Let PostgreSQL count what was added, where that is much: a search planned by the counts of before took 500 ms instead of 6.

    Args:
        connection: Not in a transaction that anybody waits for.
        tables: Names of ours.
        added: Passages.
    """
    if added >= _MANY:
        await connection.execute(f"ANALYZE {', '.join(tables)}")


async def abandoned_jobs(connection: Connection) -> list[str]:
    """Jobs that left text behind which nobody sees and which is older than an hour."""
    rows = await connection.fetch(
        "SELECT DISTINCT e.job_id FROM lore_edition e JOIN lore_document d ON d.id = e.document_id"
        " WHERE e.rev > coalesce(d.rev, 0) AND e.created_at < now() - interval '1 hour' LIMIT 100"
    )
    return [row["job_id"] for row in rows]


async def forget(connection: Connection, job_ids: Sequence[str]) -> list[int]:
    """The revs that are gone with what these jobs did not finish."""
    rows = await connection.fetch(
        "DELETE FROM lore_edition e USING lore_document d"
        " WHERE d.id = e.document_id AND e.rev > coalesce(d.rev, 0) AND e.job_id = ANY($1::text[]) RETURNING e.rev",
        job_ids,
    )
    await connection.execute(
        "DELETE FROM lore_document d WHERE rev IS NULL AND NOT EXISTS (SELECT FROM lore_edition e WHERE e.document_id = d.id)"
    )
    return [row["rev"] for row in rows]
