"""Owns the job that gives passages their vectors, and who enqueues it.

What is to be done is read from the tables, never from a list: every current passage without a vector of the model that is wanted.
So the job heals what any other left, a kill repeats one batch, and a run that finds nothing has done all.

One job runs at a time, one may be queued behind it. A change keeps the queued one locked until it commits, so that nobody claims it
before; where there is none, or it has been claimed, the change enqueues the next. So no change is missed by the last look of a run.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

import asyncpg

from body_broker.calls import Json
from body_broker.lore import documents
from body_broker.lore.embedding.making import Makers
from body_broker.lore.embedding.models import Model, models, switch
from body_broker.lore.embedding.vectors import checked, literal, other_size
from body_broker.lore.embedding.words import BadVectors, Maker, ModelAway, Text
from body_broker.lore.importing import IMPORT, REINDEX
from body_broker.lore.index import Follower
from body_broker.storage.postgres import Connection, Executor, Pool
from body_broker.telemetry import get_logger
from body_broker.work import queue
from body_broker.work.model import CHANNEL, Origin
from body_broker.work.run import Run

log = get_logger(__name__)

VECTORS = "lore_vectors"
SERVICE = "service:lore"
_ATTEMPTS = 20
"""Over an hour with the worker's back-off; the next change of the lore or the next start then enqueues it anew."""
_PRIORITY = -10

_LOCK = "SELECT pg_advisory_xact_lock(hashtext('lore_vectors'))"
_QUEUED = """
SELECT id, pg_notify($2, 'ready ' || kind) FROM (
    SELECT id, kind FROM work WHERE kind = $1 AND state = 'queued' AND NOT cancel_requested
    ORDER BY ordinal LIMIT 1 FOR SHARE SKIP LOCKED) AS found
"""
_LACKING = """
FROM lore_document d JOIN lore_edition e ON e.rev = d.rev JOIN lore_chunk c ON c.rev = d.rev
WHERE NOT EXISTS (
    SELECT FROM lore_vector v WHERE v.rev = c.rev AND v.ordinal = c.ordinal AND v.model_id = $1::integer)
"""
_NEXT = f"""
SELECT c.rev, c.ordinal, d.index_id, e.title, c.heading, c.content {_LACKING}
    AND (c.rev, c.ordinal) > ($2::bigint, $3::integer)
ORDER BY c.rev, c.ordinal LIMIT $4::integer
"""
_NEW = f"""
SELECT c.rev, c.ordinal, d.index_id, e.title, c.heading, c.content {_LACKING}
    AND e.created_at > (SELECT created_at FROM lore_model WHERE id = $2::integer)
ORDER BY c.rev, c.ordinal LIMIT $3::integer
"""  # noqa: S608  # a constant
_SIZE = f"""
SELECT (SELECT coalesce(sum(chunks), 0) FROM lore_posting_total JOIN lore_document USING (rev)) AS passages,
       (SELECT count(*) {_LACKING}) AS lacking
"""  # noqa: S608  # a constant
# From here on the model stays until the transaction ends.
_HOLD = "SELECT dimensions FROM lore_model WHERE id = $1::integer FOR KEY SHARE"
_MEASURE = "UPDATE lore_model SET dimensions = $2::integer WHERE id = $1::integer AND dimensions IS NULL"
_ADD = """
INSERT INTO lore_vector (rev, ordinal, model_id, part, index_id, embedding)
SELECT rev, ordinal, $1::integer, part, index_id, embedding::vector
FROM unnest($2::bigint[], $3::integer[], $4::smallint[], $5::integer[], $6::text[])
    AS given (rev, ordinal, part, index_id, embedding)
ON CONFLICT DO NOTHING
"""
_WHOLE = """
SELECT d.rev, d.index_id FROM lore_document d WHERE d.rev = ANY ($2::bigint[]) AND NOT EXISTS (
    SELECT FROM lore_chunk c WHERE c.rev = d.rev AND NOT EXISTS (
        SELECT FROM lore_vector v WHERE v.rev = c.rev AND v.ordinal = c.ordinal AND v.model_id = $1::integer))
"""
_START = (0, -1)
_HARMLESS = "a lantern"
"""What any model can embed: where it fails too, no passage is at fault."""
_IMPORT_WAITS = (
    "SELECT true FROM work WHERE state = 'queued' AND run_at <= clock_timestamp() AND kind = ANY ($1) LIMIT 1"
)


async def enqueue(connection: Connection) -> None:
    """See that a run of the job begins after this transaction's commit.

    Args:
        connection: In the transaction whose changes it is to find.
    """
    if await connection.fetchrow(_QUEUED, VECTORS, CHANNEL) is not None:
        return
    await connection.execute(_LOCK)  # whoever is about to enqueue one commits first
    if await connection.fetchrow(_QUEUED, VECTORS, CHANNEL) is not None:
        return
    await queue.enqueue(
        connection,
        VECTORS,
        {},
        origin=Origin(chain=(SERVICE,), session=SERVICE),
        priority=_PRIORITY,
        limit_key=VECTORS,
        attempts_max=_ATTEMPTS,
    )


async def lacking(connection: Executor, model: Model) -> tuple[int, int]:
    """Current passages, and how many of them have no vector of the model."""
    row = await connection.fetchrow(_SIZE, model.id)
    assert row is not None, "sums are a row"
    return int(row["passages"]), row["lacking"]


@dataclass(frozen=True, slots=True)
class _Batch:
    """Passages and, of each part of them, the number of the passage, the part's own, and its vector as PostgreSQL reads it."""

    rows: Sequence[asyncpg.Record]
    parts: Sequence[tuple[int, int, str]]
    dimensions: int

    def revs(self) -> list[int]:
        return sorted({row["rev"] for row in self.rows})


def _place(row: asyncpg.Record) -> tuple[int, int]:
    return row["rev"], row["ordinal"]


class Building:
    """Gives passages their vectors; the worker's handler.

    Args:
        pool: Where lore lies.
        makers: What makes vectors here.
        followers: Told of each rev that has all its vectors, and of a model that serves from now on.
    """

    def __init__(self, pool: Pool, makers: Makers, followers: Sequence[Follower]) -> None:
        self._pool, self._makers, self._followers = pool, makers, tuple(followers)
        self._runs: set[Run] = set()

    def hand_back(self) -> None:
        """Give up the job where it stands, for another worker or a later start: what is done is kept."""
        for run in self._runs:
            run.interrupt("stopping")

    async def perform(self, run: Run) -> Json:
        """Work until every current passage has a vector of the model that is wanted, which then serves."""
        self._runs.add(run)
        try:
            while True:
                found = await models(self._pool)
                if not found:
                    return {"passages": 0}
                made = await self._build(run, found[-1])
                if made is not None:
                    return {"passages": made, "model": found[-1].name}
        finally:
            self._runs.discard(run)

    async def _build(self, run: Run, model: Model) -> int | None:
        """Passages that were given their vectors; None where another model is wanted meanwhile."""
        maker = self._makers.of(model)
        if maker is None:
            raise ModelAway(
                "The model that is wanted cannot be asked from here: this process has other settings.",
                next_step="Give every hub and worker the same BODY_BROKER_EMBEDDINGS; the one started last decides.",
            )
        passages, left = await lacking(self._pool, model)
        done, made = passages - left, 0
        await run.progress(done, passages, f"{done} of {passages} passages have their vector")
        place, stored = _START, 0
        refused: set[tuple[int, int]] = set()
        keeping = model.state == "building"
        while True:
            if keeping:
                keeping = await self._keep_serving(run, model)
            rows = await self._pool.fetch(_NEXT, model.id, *place, maker.at_once)
            if not rows and stored == 0:
                await documents.analyze(self._pool, ("lore_vector",), made)
                return made if await self._serve(run, model) else None
            if not rows:  # what became current meanwhile may lie before
                place, stored = _START, 0
                continue
            fresh = [row for row in rows if _place(row) not in refused]
            batch = await self._tried(maker, model, fresh, refused) if fresh else None
            if batch is None:
                place = _place(fresh[0] if fresh else rows[-1])
                continue
            async with run.fenced() as connection:
                if not await self._store(connection, model, batch):
                    return None
            place = _place(batch.rows[-1])
            stored += len(batch.rows)
            made += len(batch.rows)
            done = min(done + len(batch.rows), passages)
            await run.progress(done, passages, f"{done} of {passages} passages have their vector")
            await self._let_imports_by(run)

    async def _tried(
        self, maker: Maker, model: Model, rows: Sequence[asyncpg.Record], refused: set[tuple[int, int]]
    ) -> _Batch | None:
        """The vectors of these passages, or of the first of them where one makes the model fail; None where that is the first.

        Such a passage is left out until the lore changes or a process starts: it must not keep all after it from theirs.

        Raises:
            ModelAway: The model gives nothing that can be used, of any text.
        """
        try:
            return await self._made(maker, model, rows)
        except BadVectors as error:
            if len(rows) > 1:
                return await self._tried(maker, model, rows[: len(rows) // 2], refused)
            checked(await maker.query(_HARMLESS), count=1, dimensions=model.dimensions)
            log.warning("lore_passage_refused", rev=rows[0]["rev"], passage=rows[0]["ordinal"], why=error.message)
            refused.add(_place(rows[0]))
            return None

    async def _keep_serving(self, run: Run, building: Model) -> bool:
        """Give passages that came since the building began the vectors of the model that serves meanwhile; False where it cannot."""
        serving = next((model for model in await models(self._pool) if model.state == "serving"), None)
        maker = serving and self._makers.of(serving)
        if serving is None or maker is None:
            return False
        rows = await self._pool.fetch(_NEW, serving.id, building.id, maker.at_once)
        if rows:
            try:
                batch = await self._made(maker, serving, rows)
            except ModelAway:
                log.warning("lore_serving_model_away", model=serving.name)
                return False
            async with run.fenced() as connection:
                await self._store(connection, serving, batch)
        return True

    async def _made(self, maker: Maker, model: Model, rows: Sequence[asyncpg.Record]) -> _Batch:
        given = await maker.passages([Text(row["title"], row["heading"], row["content"]) for row in rows])
        places = [(at, part) for at, several in enumerate(given) for part in range(len(several))]

        def look() -> tuple[list[str], int]:
            flat = [numbers for several in given for numbers in several]
            vectors = checked(flat, count=len(flat), dimensions=model.dimensions)
            return [literal(vector) for vector in vectors], len(vectors[0])

        literals, dimensions = await asyncio.to_thread(look)
        return _Batch(rows, [(*place, text) for place, text in zip(places, literals, strict=True)], dimensions)

    async def _store(self, connection: Connection, model: Model, batch: _Batch) -> bool:
        """Whether the model is still wanted; then the batch is stored, and followers know of each rev that is whole."""
        there = await documents.lock_editions(connection, batch.revs())
        held = await connection.fetchrow(_HOLD, model.id)
        if held is None:
            return False
        if held["dimensions"] not in {None, batch.dimensions}:
            raise other_size(batch.dimensions, held["dimensions"])
        entries = [
            (row["rev"], row["ordinal"], part, row["index_id"], vector)
            for row, part, vector in ((batch.rows[at], part, vector) for at, part, vector in batch.parts)
            if row["rev"] in there  # else deleted, or replaced by a newer rev
        ]
        if entries:
            await connection.execute(_MEASURE, model.id, batch.dimensions)
            await connection.execute(_ADD, model.id, *map(list, zip(*entries, strict=True)))
        if model.state == "serving":  # of another one they are told all at once, when it serves
            for row in await connection.fetch(_WHOLE, model.id, sorted(there)):
                for follower in self._followers:
                    await follower.changed(connection, row["index_id"], [row["rev"]], [])
        return True

    async def _serve(self, run: Run, model: Model) -> bool:
        if model.state == "serving":
            return True
        async with run.fenced() as connection:
            return await switch(connection, model, self._followers)

    async def _let_imports_by(self, run: Run) -> None:
        if await self._pool.fetchval(_IMPORT_WAITS, [IMPORT, REINDEX]):
            run.interrupt("stopping")
            await asyncio.sleep(0)
