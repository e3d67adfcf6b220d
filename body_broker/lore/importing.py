"""Owns bringing documents in: texts are stored with the job that will index them; the job survives its worker and begins nothing twice."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence

from body_broker.calls import Json
from body_broker.errors import BadInput, Conflict, NotFound, TooLarge
from body_broker.lore import documents
from body_broker.lore.chunks import CUTTER, Chunk, cut
from body_broker.lore.documents import Edition, Effect
from body_broker.lore.index import Follower
from body_broker.lore.model import IMPORT_BYTES_MAX, IMPORT_DOCUMENTS_MAX, Draft, Intake, Taken, document_uri
from body_broker.lore.postings import Entry, PostgresIndex
from body_broker.storage.postgres import Connection, Pool
from body_broker.text import new_id
from body_broker.work import keyed, queue
from body_broker.work.model import FINAL, Origin
from body_broker.work.run import Handler, Run

IMPORT, REINDEX = "lore_import", "lore_reindex"
_BATCH_CHUNKS = 400
"""Chunks written in one transaction: about half a second of work, so that progress moves and a lease never lapses in one."""

Announce = Callable[[str], Awaitable[None]]


async def announce_nothing(_uri: str) -> None:
    """For whoever has no listeners."""


class Importing:
    """Takes documents in, and is the worker's handler for doing so.

    Args:
        pool: Where lore lies.
        index: What finds it.
        announce: Told the resource of each document that changed, once readers see it.
        followers: What goes after each change of the lore.
    """

    def __init__(
        self,
        pool: Pool,
        index: PostgresIndex,
        announce: Announce = announce_nothing,
        followers: Sequence[Follower] = (),
    ) -> None:
        self._pool, self._index, self._announce, self._followers = pool, index, announce, followers

    def handlers(self) -> dict[str, Handler]:
        """What a worker needs to run imports and reindexing."""
        return {IMPORT: self.perform, REINDEX: self.perform}

    async def take(
        self, drafts: Sequence[Draft], *, index: str, canon: bool, origin: Origin, key: str | None = None
    ) -> Intake:
        """What became of each draft; what is new is stored with its job, and is found once that has run.

        What the index already holds (same title and text) is unchanged. A document of the same origin is replaced, but one from
        outside never replaces the canon's. Under a key it is done once.

        Raises:
            BadInput: There is nothing to import, or two drafts have one origin.
            TooLarge: There is more than one import may bring.
        """
        hashed = await self.hashed(drafts)

        async def taking(connection: Connection) -> Json:
            return _told(await self.take_within(connection, hashed, index=index, canon=canon, origin=origin))

        async with self._pool.acquire() as connection, connection.transaction():
            return _intake(await keyed.once(connection, key, lambda: taking(connection)))

    async def hashed(self, drafts: Sequence[Draft]) -> list[tuple[str, Draft]]:
        """Drafts that one import may bring, with the hashes of what they say.

        Raises:
            BadInput: There is nothing to import, or two drafts have one origin.
            TooLarge: There is more than one import may bring.
        """
        _check(drafts)
        return await asyncio.to_thread(_hashed, drafts)

    async def take_within(
        self, connection: Connection, hashed: Sequence[tuple[str, Draft]], *, index: str, canon: bool, origin: Origin
    ) -> Intake:
        """The same as `take`, of what `hashed` gave, in the caller's transaction."""
        await self._forget_abandoned(connection)
        number = await documents.index_id(connection, index, make=True)
        assert number is not None, "an index that was just made is there"
        known = await documents.present(connection, number, [h for h, _ in hashed], canon=canon)
        new = list({h: (h, draft) for h, draft in hashed if h not in known}.values())
        job_id = new_id("job") if new else None
        if job_id is not None:
            made = await documents.add_editions(connection, number, new, canon=canon, job_id=job_id)
            given = {"revs": [rev for _, rev in made], "unchanged": len(hashed) - len(new)}
            await queue.enqueue(connection, IMPORT, given, origin=origin, work_id=job_id)
            known |= {h: doc_id for (h, _), (doc_id, _) in zip(new, made, strict=True)}
        fresh = {h for h, _ in new}
        return Intake(
            job_id,
            [
                Taken(doc_id=known[h], title=draft.title, status="accepted" if h in fresh else "unchanged")
                for h, draft in hashed
            ],
        )

    async def reindex(self, index: str, origin: Origin, *, key: str | None = None) -> str:
        """The job that cuts and indexes every document of an index anew; readers see the old state of each until it is done.

        Under a key it is begun once.

        Raises:
            NotFound: The index holds no document.
            Conflict: All of them are being imported or indexed.
        """
        async with self._pool.acquire() as connection, connection.transaction():
            return await keyed.once(connection, key, lambda: self._begin_reindex(connection, index, origin))

    async def _begin_reindex(self, connection: Connection, index: str, origin: Origin) -> str:
        number = await documents.index_id(connection, index)
        if number is None or not await documents.holds_any(connection, number):
            raise nothing_there()
        job_id = new_id("job")
        revs = await documents.copy_editions(connection, number, job_id)
        if not revs:
            raise Conflict(
                "Every document of that index is being imported or indexed now.",
                next_step="Wait for those jobs; then there may be nothing left to do.",
            )
        return await queue.enqueue(connection, REINDEX, {"revs": revs, "unchanged": 0}, origin=origin, work_id=job_id)

    async def perform(self, run: Run) -> Json:
        """Cut and index the job's texts; each document is seen by readers as soon as its last passage is written."""
        revs: list[int] = run.input["revs"]
        effect = Effect(">".join(run.origin.chain), run.origin.receipt)
        sizes: list[list[int]] = await run.step(f"sizes@{CUTTER}", lambda: self._sizes(run, revs))
        pending: list[int] = await run.commit(f"clear@{CUTTER}", lambda connection: self._clear(connection, revs))
        to_do = frozenset(pending)
        batches = _batches([(rev, chunks) for rev, chunks in sizes if rev in to_do])
        total = sum(stop - start for batch in batches for _, start, stop, _ in batch)
        texts = _Texts(self._pool)
        done = documents_done = 0
        for number, batch in enumerate(batches):
            cuts = [(part, *await texts.cut(part[0])) for part in batch]

            async def write(connection: Connection, cuts: list[_Cut] = cuts) -> Json:
                return await self._write(connection, cuts, effect)

            seen: list[str] = await run.commit(f"batch {number}@{CUTTER}", write)
            for document_id in seen:
                await self._announce(document_uri(document_id))
            documents_done += len(seen)
            done += sum(stop - start for _, start, stop, _ in batch)
            await run.progress(done, total, f"{done} of {total} passages")
        await documents.analyze(self._pool, documents.TABLES, total)
        return {"documents": documents_done, "unchanged": run.input["unchanged"], "passages": total}

    async def _sizes(self, run: Run, revs: Sequence[int]) -> list[list[int]]:
        """How many chunks each rev has; what the batches are laid out by, the same after every restart."""
        sizes: list[list[int]] = []
        texts = _Texts(self._pool)
        for rev in revs:
            found, chunks = await texts.cut(rev)
            if found is not None:
                sizes.append([rev, len(chunks)])
            if len(sizes) % 100 == 0:
                await run.progress(0, None, "reading")
        return sizes

    async def _clear(self, connection: Connection, revs: Sequence[int]) -> list[int]:
        """The revs still to be done, without what an older program's run left of them."""
        pending = await documents.clear_chunks(connection, revs)
        await self._index.drop(connection, pending)
        return pending

    async def _write(self, connection: Connection, cuts: Sequence[_Cut], effect: Effect) -> list[str]:
        """The documents that readers now see, after storing one batch."""
        present = await documents.lock_editions(connection, [rev for (rev, *_), _, _ in cuts])
        complete: dict[int, int] = {}
        for (rev, start, stop, last), edition, chunks in cuts:
            if rev not in present or edition is None:
                continue  # its document was deleted, or a newer text of it became current
            part = chunks[start:stop]
            await documents.add_chunks(connection, rev, edition.body, part)
            await self._index.add(connection, edition.index_id, rev, list(_entries(edition, part)))
            if last:
                complete[rev] = edition.index_id
        if not complete:
            return []
        changed, dropped = await documents.make_current(connection, list(complete), effect)
        await self._index.drop(connection, dropped)
        (index_id,) = set(complete.values())  # an import goes into one index
        for follower in self._followers:
            await follower.changed(connection, index_id, list(complete), dropped)
        return changed

    async def _forget_abandoned(self, connection: Connection) -> None:
        ended: list[str] = []
        for job_id in await documents.abandoned_jobs(connection):
            try:
                state = (await queue.get(connection, job_id, owner=None)).state
            except NotFound:
                state = "failed"
            if state in FINAL:
                ended.append(job_id)
        if ended:
            await self._index.drop(connection, await documents.forget(connection, ended))


def nothing_there() -> NotFound:
    """What is said of an index without documents."""
    return NotFound("That index holds no document.", next_step="list_indices says which there are.")


def _told(intake: Intake) -> Json:
    return {"job_id": intake.job_id, "documents": [taken.model_dump() for taken in intake.documents]}


def _intake(told: Json) -> Intake:
    return Intake(told["job_id"], [Taken.model_validate(taken) for taken in told["documents"]])


_Part = tuple[int, int, int, bool]
"""Of which rev, from which chunk to which (excluded), and whether that is its last."""
_Cut = tuple[_Part, Edition | None, list[Chunk]]


class _Texts:
    """The texts of revs, cut; keeps the latest, which the next batch often goes on with."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._kept: tuple[int, Edition | None, list[Chunk]] | None = None

    async def cut(self, rev: int) -> tuple[Edition | None, list[Chunk]]:
        """The edition and its chunks; None and nothing where it is gone."""
        if self._kept is None or self._kept[0] != rev:
            found = await documents.edition(self._pool, rev)
            chunks = await asyncio.to_thread(cut, found.body, markdown=found.form == "markdown") if found else []
            self._kept = (rev, found, chunks)
        return self._kept[1:]


def _batches(sizes: Iterable[tuple[int, int]]) -> list[list[_Part]]:
    """Parts of texts, in order, so that each batch has at most 400 chunks."""
    batches: list[list[_Part]] = []
    room = 0
    for rev, chunks in sizes:
        start = 0
        while start < chunks:
            if room == 0:
                batches.append([])
                room = _BATCH_CHUNKS
            stop = min(chunks, start + room)
            batches[-1].append((rev, start, stop, stop == chunks))
            room -= stop - start
            start = stop
    return batches


def _entries(edition: Edition, chunks: Sequence[Chunk]) -> Iterable[Entry]:
    """What a chunk is found by: its document's title and its heading beside its text (measured: chunks.py)."""
    for chunk in chunks:
        text = edition.body[chunk.start : chunk.end]
        yield Entry(chunk.ordinal, f"{edition.title}\n{chunk.heading}\n{text}")


def _hashed(drafts: Sequence[Draft]) -> list[tuple[str, Draft]]:
    return [(documents.content_hash(draft), draft) for draft in drafts]


def _check(drafts: Sequence[Draft]) -> None:
    if not drafts:
        raise BadInput("There is no document to import.")
    if len(drafts) > IMPORT_DOCUMENTS_MAX or sum(len(draft.body) for draft in drafts) > IMPORT_BYTES_MAX:
        raise TooLarge(
            f"One import may bring {IMPORT_DOCUMENTS_MAX} documents and {IMPORT_BYTES_MAX // 1024**2} MiB of text.",
            next_step="Import them in parts.",
        )
    if len({draft.origin for draft in drafts}) < len(drafts):
        raise BadInput("Two documents go by one name.", next_step="Give each a title or file name of its own.")
