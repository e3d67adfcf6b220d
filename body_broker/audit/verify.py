"""Owns the verdict over the whole audit: every chain from its genesis, against the checkpoints, and those against the anchor.

Everything is streamed in pages; what is kept grows with the breaches named, which are bounded, never with the audit.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from body_broker.audit.anchor import Line, pages
from body_broker.audit.chain import key_id
from body_broker.audit.checkpoints import CHAIN, Head, read
from body_broker.audit.ledger import NOT_TAKEN
from body_broker.audit.record import fact
from body_broker.audit.walk import Breach, Walk, span
from body_broker.errors import Unavailable
from body_broker.storage.postgres import Connection, Pool

NAMED_MAX = 100
_PAGE = 1000
_CHECKPOINT_PAGE = 100
_ANCHOR = "anchor"

_WRITERS = "SELECT writer, number, key_id FROM audit_writer WHERE number > $1::bigint ORDER BY number LIMIT $2::bigint"
# The content's digest is taken in the database: contents may be large, and only their equality matters.
_RECORDS = """
SELECT seq, mac, body, pg_catalog.encode(pg_catalog.sha256(content), 'hex') AS content
FROM audit_record LEFT JOIN audit_body USING (writer, seq)
WHERE writer = $1 AND seq > $2::bigint ORDER BY seq LIMIT $3::bigint
"""
_CHECKPOINTS = (
    "SELECT number, mac, body FROM audit_checkpoint WHERE number > $1::bigint ORDER BY number LIMIT $2::bigint"
)
_CHECKPOINT_MACS = "SELECT number, mac FROM audit_checkpoint WHERE number = ANY ($1::bigint[])"
# One step of the index for each writer, however long the chains.
_UNREGISTERED = """
WITH RECURSIVE present (writer) AS (
    (SELECT writer FROM audit_record ORDER BY writer LIMIT 1)
    UNION ALL
    SELECT (SELECT r.writer FROM audit_record r WHERE r.writer > present.writer ORDER BY r.writer LIMIT 1)
    FROM present WHERE present.writer IS NOT NULL
)
SELECT writer FROM present
WHERE writer IS NOT NULL AND NOT EXISTS (SELECT FROM audit_writer w WHERE w.writer = present.writer)
LIMIT $1::bigint
"""
_HEADS_LOST = """
SELECT DISTINCT ON (head.writer) head.writer, head.seq, stored.mac IS NULL AS missing,
       coalesce((SELECT max(r.seq) FROM audit_record r WHERE r.writer = head.writer), 0) AS present
FROM unnest($1::text[], $2::bigint[], $3::bytea[]) AS head (writer, seq, mac)
LEFT JOIN audit_record stored ON stored.writer = head.writer AND stored.seq = head.seq
WHERE stored.mac IS DISTINCT FROM head.mac
ORDER BY head.writer, head.seq
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What verification found.

    Attributes:
        breaches: The first NAMED_MAX of them.
        breaches_found: How many there are in all.
        notes: What is no breach but should be known, the first NAMED_MAX.
        notes_found: How many there are in all.
        writers: Chains followed.
        records: Records whose MAC was computed anew.
        bodies: Bodies still kept, each compared with its digest.
        checkpoints: Checkpoints in the database.
        anchor_lines: Checkpoints in the anchor; None where no anchor was compared.
    """

    breaches: tuple[Breach, ...]
    breaches_found: int
    notes: tuple[str, ...]
    notes_found: int
    writers: int
    records: int
    bodies: int
    checkpoints: int
    anchor_lines: int | None

    @property
    def intact(self) -> bool:
        """Whether everything is as it was written."""
        return self.breaches_found == 0


async def verify(pool: Pool, key: bytes, anchor: Path | None = None) -> Report:
    """Follow every chain and compare them with the checkpoints and the anchor; hubs may go on writing meanwhile.

    Without an anchor, what was cut off the end of the checkpoints and of the chains at once cannot be found; a note says so.

    Raises:
        Unavailable: The database is away, or the anchor cannot be read.
    """
    try:
        async with pool.acquire() as connection:
            verification = _Verification(connection, key)
            # The anchor first: a checkpoint made meanwhile is then in the database before it could be in the file.
            await verification.compare_anchor(anchor)
            await verification.follow_checkpoints()
            await verification.follow_writers()
            await verification.find_unregistered()
            return verification.report()
    except NOT_TAKEN as error:
        raise Unavailable("The audit's database does not answer.", details={"component": "audit"}) from error


@dataclass(slots=True)
class _Verification:
    connection: Connection
    key: bytes
    breaches: list[Breach] = field(default_factory=list[Breach])
    breaches_found: int = 0
    notes: list[str] = field(default_factory=list[str])
    notes_found: int = 0
    writers: int = 0
    records: int = 0
    bodies: int = 0
    checkpoints: int = 0
    anchor_lines: int | None = None
    anchor_end: int = 0
    cut: set[str] = field(default_factory=set[str])  # writers whose lost head is already told

    def breach(self, found: Iterable[Breach]) -> None:
        for one in found:
            self.breaches_found += 1
            if len(self.breaches) < NAMED_MAX:
                self.breaches.append(one)

    def note(self, text: str) -> None:
        self.notes_found += 1
        if len(self.notes) < NAMED_MAX:
            self.notes.append(text)

    def report(self) -> Report:
        return Report(
            breaches=tuple(self.breaches),
            breaches_found=self.breaches_found,
            notes=tuple(self.notes),
            notes_found=self.notes_found,
            writers=self.writers,
            records=self.records,
            bodies=self.bodies,
            checkpoints=self.checkpoints,
            anchor_lines=self.anchor_lines,
        )

    async def compare_anchor(self, file: Path | None) -> None:
        if file is None or not await asyncio.to_thread(file.exists):
            self.note("No anchor was compared: what was cut off the end of the database cannot be found without one.")
            return
        self.anchor_lines = 0
        walk = Walk(self.key, CHAIN, 0, shown=_ANCHOR)
        try:
            async for page in pages(file):
                for place, line in page:
                    if line is None:
                        self.breach([Breach("edited", _ANCHOR, place, f"Line {place} is not an anchor's.")])
                    else:
                        self.anchor_lines += 1
                        self._step(walk, line)
                await self._compare_lines([line for _, line in page if line is not None])
        except OSError as error:
            raise Unavailable("The audit's anchor cannot be read.", details={"component": "audit_anchor"}) from error
        self.breach(walk.finish())
        self.anchor_end = walk.last

    async def follow_checkpoints(self) -> None:
        walk = Walk(self.key, CHAIN, 0)
        async for rows in self._pages(_CHECKPOINTS, size=_CHECKPOINT_PAGE):
            found = [Line(*row) for row in rows]
            for line in found:
                self.checkpoints += 1
                self._step(walk, line)
            await self._compare_heads(found)
        self.breach(walk.finish())
        if self.anchor_lines is not None and self.anchor_end < walk.last:
            self.note(f"The anchor ends at checkpoint {self.anchor_end}, the database at {walk.last}.")

    async def follow_writers(self) -> None:
        due = 1
        async for rows in self._pages(_WRITERS, at="number"):
            for row in rows:
                if row["number"] != due:
                    text = f"{span('Writer', due, row['number'] - 1)} missing with every record."
                    self.breach([Breach("deleted", "writers", due, text)])
                due = row["number"] + 1
                await self._follow(row["writer"], row["number"], row["key_id"])

    async def find_unregistered(self) -> None:
        for row in await self.connection.fetch(_UNREGISTERED, NAMED_MAX):
            text = "Its records are forged, or its registration was deleted."
            self.breach([Breach("forged", row["writer"], None, text)])

    async def _follow(self, writer: str, number: int, made_with: str) -> None:
        self.writers += 1
        if made_with != key_id(self.key):
            text = f"Made with the unknown key {made_with}; nothing on this chain could be checked."
            self.breach([Breach("unknown_key", writer, None, text)])
            return
        walk = Walk(self.key, writer, number)
        last = ""
        async for rows in self._pages(_RECORDS, writer, at="seq"):
            for row in rows:
                self.records += 1
                last = row["body"]
                self.breach(walk.step(row["seq"], row["mac"], last))
                if row["content"] is not None:
                    self.bodies += 1
                    if fact(last, "digest") != row["content"]:
                        text = f"The body of record {row['seq']} is not the one whose digest it holds."
                        self.breach([Breach("body_changed", writer, row["seq"], text)])
        self.breach(walk.finish())
        if walk.last == 0:
            self.breach([Breach("deleted", writer, 1, "Every record is missing, even the opening one.")])
        elif fact(last, "kind") != "closed":
            self.note(
                f"Writer {writer} has no closing record: it still runs, or it was killed and may lack its last 100 ms of reads."
            )

    def _step(self, walk: Walk, line: Line) -> None:
        made_with = fact(line.body, "key")
        ours = made_with == key_id(self.key) or not isinstance(made_with, str)
        self.breach(walk.step(line.number, line.mac, line.body, ours=ours))
        if not ours:
            text = f"Checkpoint {line.number} was made with the unknown key {made_with[:8]}."
            self.breach([Breach("unknown_key", CHAIN, line.number, text)])

    async def _compare_lines(self, batch: list[Line]) -> None:
        numbers = [line.number for line in batch]
        stored = {row["number"]: row["mac"] for row in await self.connection.fetch(_CHECKPOINT_MACS, numbers)}
        for line in batch:
            if line.number not in stored:
                text = f"Checkpoint {line.number} stands in the anchor and no longer in the database."
                self.breach([Breach("truncated", CHAIN, line.number, text)])
            elif stored[line.number] != line.mac:
                text = f"Checkpoint {line.number} is not the one that the anchor has."
                self.breach([Breach("forged", CHAIN, line.number, text)])
        await self._compare_heads([line for line in batch if stored.get(line.number) != line.mac])

    async def _compare_heads(self, found: list[Line]) -> None:
        """Whether the chains still hold what the checkpoints say they held."""
        for line in found:
            heads = _heads(line)
            for start in range(0, len(heads), _PAGE):
                writers, sequences, macs, _ = zip(*heads[start : start + _PAGE], strict=True)
                rows = await self.connection.fetch(
                    _HEADS_LOST, writers, sequences, [bytes.fromhex(mac) for mac in macs]
                )
                for row in rows:
                    self._lost(row["writer"], row["seq"], row["present"], missing=row["missing"])

    def _lost(self, writer: str, sequence: int, present: int, *, missing: bool) -> None:
        if missing and present > sequence:
            return  # a hole, which following the chain finds and names
        if writer in self.cut:
            return
        if len(self.cut) < NAMED_MAX:
            self.cut.add(writer)
        if missing:
            text = f"Ends at record {present}, but had {sequence} when a checkpoint was made."
            self.breach([Breach("truncated", writer, present + 1, text)])
        else:
            text = f"Record {sequence} is not the one that a checkpoint pinned."
            self.breach([Breach("forged", writer, sequence, text)])

    async def _pages(
        self, query: str, *before: object, at: str = "number", size: int | None = None
    ) -> AsyncIterator[list[Any]]:
        """Pages of rows in the order of the column `at`."""
        after = 0
        while rows := await self.connection.fetch(query, *before, after, size or _PAGE):
            yield rows
            after = rows[-1][at]


def _heads(line: Line) -> tuple[Head, ...]:
    try:
        return read(*line).heads
    except ValueError:
        return ()  # its MAC does not fit either, which is told
