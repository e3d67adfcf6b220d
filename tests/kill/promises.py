"""Owns what the product has acknowledged while it was being killed, and the proof that every word of it was kept."""

from __future__ import annotations

import asyncio
import itertools
import random
import re
from collections.abc import AsyncGenerator, Collection, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from body_broker.errors import StoreStartError
from body_broker.lore.chunks import cut
from body_broker.lore.importing import Importing
from body_broker.lore.intake import make_draft, read_paths
from body_broker.lore.model import Draft
from body_broker.lore.postings import PostgresIndex
from body_broker.storage.postgres import LOST, open_pool
from body_broker.work import queue
from body_broker.work.model import Origin
from tests.kill.harness import PATIENCE_S, Program, Round
from tests.kill.product import Answer, Product
from tests.waiting import wait_until

READER, WRITER, IMPORTER = "tier:silver", "tier:bronze", "person:anna"
NOBODY_RUNS = "tests.kill"
"""A kind of work without a handler: it waits until it is cancelled, which is an effect that one can count."""
LAST_READS_S = 0.1
"""What a killed process may lack of its records of reads."""
_ON_ITS_WAY_S = 1.0
"""How long a commit that had begun may take on a loaded machine."""
_BATCH_CHUNKS = 400

_WORDS = ("harbour", "lantern", "drowned", "ferry", "tide", "bell", "keeper", "salt", "rope", "gull", "ember", "crown")
_STORED = """
SELECT d.source, count(*) OVER (PARTITION BY d.source) AS documents, d.rev,
  (SELECT array_agg(e.rev) FROM lore_edition e WHERE e.document_id = d.id) AS editions,
  (SELECT array_agg(ARRAY[c.ordinal, c.char_start, c.char_end] ORDER BY c.ordinal) FROM lore_chunk c WHERE c.rev = d.rev) AS chunks,
  (SELECT count(*) FROM lore_effect f WHERE f.document_id = d.id) AS effects,
  (SELECT ARRAY[t.chunks, t.words] FROM lore_posting_total t WHERE t.rev = d.rev) AS totals,
  (SELECT ARRAY[count(*), sum(words)] FROM (SELECT DISTINCT ordinal, words FROM lore_posting p WHERE p.rev = d.rev) AS each) AS posted
FROM lore_document d WHERE d.source = ANY ($1)
"""
_RECORDS = """
SELECT r.body::jsonb ->> 'kind' AS kind, r.body::jsonb ->> 'verdict' AS verdict, convert_from(b.content, 'UTF8') AS arguments
FROM audit_record r JOIN audit_body b USING (writer, seq)
"""
_MARK = re.compile(r"mark\d+x|job_[\w-]+")


@dataclass(frozen=True, slots=True)
class Told:
    """A read that was answered.

    Attributes:
        mark: A word in its arguments that stands nowhere else.
        hub: The process that answered.
        at: When, in monotonic seconds.
        code: With which error it was refused.
        audit_held: Whether the database could not take records meanwhile, because the harness kept it from that.
    """

    mark: str
    hub: int
    at: float
    code: str | None
    audit_held: bool


@dataclass
class Promises:
    """The ledger of one product's acknowledgements.

    Args:
        product: Who makes them.
        chance: Makes the texts.
    """

    product: Product
    chance: random.Random
    imports: dict[str, list[Draft]] = field(default_factory=dict[str, list[Draft]])
    reads: list[Told] = field(default_factory=list[Told])
    cancelled: list[str] = field(default_factory=list[str])
    codes: set[str] = field(default_factory=set[str])
    _audit_held: bool = False
    _commands: dict[Program, list[Draft]] = field(default_factory=dict[Program, list[Draft]])
    _numbers: itertools.count[int] = field(default_factory=itertools.count)

    def mark(self) -> str:
        """A word that stands nowhere else; later ones sort later."""
        return f"mark{next(self._numbers):06}x"

    async def bring(self, *, large: bool = False) -> str:
        """The job of an import of two documents; two batches if large, the first of which completes the first document."""
        drafts = self._drafts(large=large)
        origin = Origin(chain=(IMPORTER,), session="tests")
        async with open_pool(self.product.database_url, connections_max=2) as pool:
            taken = await Importing(pool, PostgresIndex(pool)).take(drafts, index="shared", canon=True, origin=origin)
        assert taken.job_id is not None
        self.imports[taken.job_id] = drafts
        return taken.job_id

    async def bring_by_command(self) -> None:
        """`lore import` of a folder with two documents in two batches, running; what it has said it did is promised."""
        folder, drafts = await asyncio.to_thread(self._folder)
        self._commands[self.product.begin("lore", "import", str(folder))] = drafts

    async def something_to_cancel(self) -> str:
        """Work of the writer's that waits; a database that is just starting again is waited for."""
        origin = Origin(chain=(WRITER,), session="tests")

        async def enqueued() -> str | None:
            try:
                async with open_pool(self.product.database_url, connections_max=2) as pool:
                    return await queue.enqueue(pool, NOBODY_RUNS, {}, origin=origin, waiting=True)
            except (StoreStartError, *LOST):
                return None

        job = await wait_until(enqueued, "the database takes work", timeout_s=PATIENCE_S)
        assert job is not None
        return job

    @asynccontextmanager
    async def audit_is_held(self) -> AsyncGenerator[None]:
        """What is answered meanwhile cannot be recorded."""
        self._audit_held = True
        try:
            yield
        finally:
            self._audit_held = False

    def note_read(self, mark: str, hub: int | None, at: float, answer: Answer) -> None:
        """A read was answered, or refused; where something was away, nothing was promised."""
        if answer.code in {None, "denied"} and hub is not None:
            self.reads.append(Told(mark, hub, at, answer.code, self._audit_held))
        elif answer.code is not None:
            self.codes.add(answer.code)

    def note_cancel(self, job: str, answer: Answer) -> None:
        """An effect was answered."""
        if answer.code is None:
            assert answer.result["state"] == "cancelled", answer
            self.cancelled.append(job)
        else:
            self.codes.add(answer.code)

    async def imports_end(self) -> None:
        """Return once every import has ended; each ends well, and whoever waited for it is told so."""
        for command, drafts in self._commands.items():
            assert await command.ended() == 0, command.said()
            assert command.said().endswith(
                f"{len(drafts)} documents imported, {sum(len(cut(d.body)) for d in drafts)} passages.\n"
            )
            self.imports[f"command {command.process.pid}"] = drafts
        self._commands.clear()

        async def ended() -> bool:
            rows = await self.product.sql(
                "SELECT id, state, error::text FROM work WHERE id = ANY ($1) AND state <> 'succeeded'",
                list(self.imports),
            )
            broken = [tuple(row) for row in rows if row["state"] not in {"queued", "running"}]
            assert not broken, broken
            return not rows

        await wait_until(ended, "every import ends", timeout_s=PATIENCE_S)

    async def require_imports(self) -> None:
        """Every acknowledged document is there exactly once, cut as it should be, and the index has each passage once."""
        drafts = {draft.origin: draft for brought in self.imports.values() for draft in brought}
        rows = await self.product.sql(_STORED, list(drafts))
        assert {row["source"] for row in rows} == set(drafts)
        for row in rows:
            chunks = cut(drafts[row["source"]].body)
            assert row["documents"] == 1, row
            assert row["editions"] == [row["rev"]], row
            assert row["effects"] == 1, row
            assert row["chunks"] == [[c.ordinal, c.start, c.end] for c in chunks], row
            assert row["totals"] == [len(chunks), row["posted"][1]], row
            assert row["posted"][0] == len(chunks), row

    async def require_found_through_the_door(self) -> None:
        """Every acknowledged document is found by the word that only it has, in as many passages as hold it."""
        for draft in (draft for brought in self.imports.values() for draft in brought):
            answer = await self.product.call(READER, "search_lore", {"query": draft.title, "k": 50})
            assert answer is not None
            assert answer.code is None, answer
            items: list[dict[str, Any]] = answer.result["items"]
            assert {item["title"] for item in items} == {draft.title}, (draft.title, items)
            places = [(item["start"], item["end"]) for item in items]
            whole = [(c.start, c.end) for c in cut(draft.body)]
            assert len(set(places)) == len(places) == min(50, len(whole)), (draft.title, places)
            assert set(places) <= set(whole), (draft.title, places)

    async def require_records(self, killed: Sequence[Round]) -> int:
        """Every answered call stands on the audit, and every effect; how many records are lacking.

        Lacking may be only the last reads before the kill of the hub that answered them.
        """
        await self.all_recorded()
        found = await self._records()
        rows = await self.product.sql("SELECT id FROM work WHERE kind = $1 AND state = 'cancelled'", NOBODY_RUNS)
        done = {row["id"] for row in rows}
        assert set(self.cancelled) <= done, "an acknowledged effect is gone"
        assert {job for job in done if found.get(job) != ("decision", "allow")} == set(), (
            "an effect without its decision"
        )
        for told in self.reads:
            wanted = ("decision", "allow") if told.code is None else ("refusal", told.code)
            assert found.get(told.mark, wanted) == wanted, told
        deaths = {r.pid: r.killed_at for r in killed if r.victim == "hub"}
        return sum(self._lacking(hub, found.keys(), deaths.get(hub)) for hub in {told.hub for told in self.reads})

    def _lacking(self, hub: int, found: Collection[str], killed_at: float | None) -> int:
        """How many records of one hub's reads are lacking; fails where those are not its last, or not its last 100 ms."""
        reads = [told for told in self.reads if told.hub == hub]
        lacking = [told for told in reads if told.mark not in found]
        assert lacking == reads[len(reads) - len(lacking) :], "a record is lacking before one that is there"
        if lacking:
            assert killed_at is not None, "a hub that nobody killed lacks records"
        for told in lacking:
            assert killed_at is not None
            assert told.audit_held or killed_at - told.at <= LAST_READS_S + _ON_ITS_WAY_S, told
        return len(lacking)

    async def all_recorded(self) -> None:
        """Return once the last read that the living hub answered stands on the audit, and so all before it."""
        hub = self.product.pid("hub")
        marks = [told.mark for told in self.reads if told.hub == hub]
        if marks:
            await wait_until(lambda: self.recorded(marks[-1]), "the living hub's last read is recorded", PATIENCE_S)

    async def recorded(self, mark: str) -> bool:
        """Whether a call's record stands on the audit."""
        rows = await self.product.sql(
            "SELECT true FROM audit_body WHERE position($1 in convert_from(content, 'UTF8')) > 0", mark
        )
        return bool(rows)

    async def _records(self) -> dict[str, tuple[str, str]]:
        rows = await self.product.sql(_RECORDS)
        return {m[0]: (row["kind"], row["verdict"]) for row in rows if (m := _MARK.search(row["arguments"]))}

    def _drafts(self, *, large: bool) -> list[Draft]:
        drafts = [self._draft(chapters) for chapters in ((390, 15) if large else (4, 3))]
        if large:
            first, both = len(cut(drafts[0].body)), sum(len(cut(draft.body)) for draft in drafts)
            assert first <= _BATCH_CHUNKS < both, "the second document goes on in a second batch"
        return drafts

    def _folder(self) -> tuple[Path, list[Draft]]:
        """A folder with two documents in it, and the documents as the product reads them."""
        folder = self.product.log_dir / self.mark()
        folder.mkdir()
        for draft in self._drafts(large=True):
            (folder / f"{draft.title}.txt").write_text(draft.body, "utf-8")
        return folder, read_paths([folder])

    def _draft(self, chapters: int) -> Draft:
        title = self.mark()
        body = "\n\n".join(f"Chapter {n}\n\n{self._paragraph()}" for n in range(1, chapters + 1))
        return make_draft(title, title, body)

    def _paragraph(self) -> str:
        sentences = [" ".join(self.chance.choices(_WORDS, k=10)).capitalize() + "." for _ in range(8)]
        return " ".join(sentences)
