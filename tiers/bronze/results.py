"""Owns what came of jobs: an object first, then its row and its document in one commit, then the cache; and reading and forgetting it."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Mapping
from dataclasses import replace

from body_broker.calls import Json
from body_broker.errors import InternalError, NotConfigured, NotFound, Unavailable
from body_broker.lore import Effect
from body_broker.storage.objects import Objects
from body_broker.storage.postgres import Connection, Pool
from body_broker.storage.redis import LOST, Redis
from body_broker.telemetry import get_logger
from body_broker.work.model import FINAL, encode
from body_broker.work.parking import Park
from body_broker.work.run import Handler, Run
from body_broker.work.schedule import Schedule, every
from tiers.bronze.documents import Documents, Prepared
from tiers.bronze.kept import Kept, cached, kept_of, key_of, made_of, object_of, opened, remembered
from tiers.bronze.model import KINDS, Finished, Shaped

__all__ = ["Kept", "Results", "is_made", "schedules"]

log = get_logger(__name__)

PURGE = "results.purge"
"""The kind of work that forgets results."""
CACHED_S = 3600
ROW_BYTES_MAX = 1024 * 1024
"""A longer result lies in its object only: the row says where."""
STORE_AWAY = "results-store"
"""What a job waits for whose result is made and cannot be put; nothing wakes it but its own looking again."""
_AGAIN_S = 60.0
_PATIENCE_S = 0.25
"""How long Redis is waited for: the cache makes answers faster or does nothing."""
_PREFIX = "expert:result:"
_MADE, _PUT, _PUBLISHED = "result", "object", "published"
_AT_ONCE = 100
_EVERY_S = 24 * 3600
_SERVICE = "service:body-broker"

_WRITE = """
INSERT INTO expert_result (job, owner, kind, title, body, outside, object, sha256, bytes, document)
VALUES ($1, $2, $3, $4, $5::text::jsonb, $6::boolean, $7, $8, $9::bigint, $10) RETURNING created_at
"""
_READ = """
SELECT job, owner, kind, title, body::text, outside, object, sha256, bytes, document, created_at
FROM expert_result WHERE job = $1 AND ($2::text IS NULL OR owner = $2)
"""
_OLD = """
SELECT job, object, document FROM expert_result
WHERE created_at < clock_timestamp() - make_interval(days => $1::integer) ORDER BY created_at, job LIMIT $2::integer
"""
# Work that ended between its object and its row: cancelled, out of time. An hour later nobody writes for it any more.
_LEFT = """
SELECT w.id, w.kind FROM work w JOIN work_step s ON s.work = w.id AND s.name = $1
WHERE w.kind = ANY ($3::text[]) AND w.state = ANY ($4::text[]) AND w.finished_at < clock_timestamp() - interval '1 hour'
    AND NOT EXISTS (SELECT FROM work_step p WHERE p.work = w.id AND p.name = $2) ORDER BY w.ordinal
"""


def is_made(run: Run) -> bool:
    """Whether the job's result was made by an earlier attempt, which may have put it: it is published as it was made."""
    return _MADE in run.work.steps


class Results:
    """Publishes what jobs came to, reads it, and forgets it.

    A worker may be killed anywhere in `publish`. What is published is recorded before it is put, so that every attempt, a paused
    one that comes late too, puts the same bytes under the same key; the row, the document and the record of both are one commit
    under the run's fence; the cache is filled after it and may be empty.

    Args:
        pool: Where rows are.
        redis: Keeps results for an hour; without it they are read from PostgreSQL.
        objects: Where the results' objects are.
        index: Makes documents of those that are to be searched; None makes none.
        kept_days: How long results are kept.
    """

    def __init__(
        self, pool: Pool, redis: Redis, objects: Objects, index: Documents | None = None, *, kept_days: int = 90
    ) -> None:
        self._pool, self._redis, self._objects, self._index = pool, redis, objects, index
        self._kept_days = kept_days

    async def publish(self, run: Run, finished: Finished, shaped: Shaped | None) -> Json:
        """The result as it is told, once it is published; whatever an earlier attempt made of it stands.

        Args:
            run: The job's.
            finished: Its answers.
            shaped: What its kind made of them; may be None where `is_made`.

        Raises:
            Park: It is made, and the place for objects cannot take it now: the job looks again in a minute or sooner, and asks no model.
            TooLarge: It is more than 4 MiB.
            LeaseLost: The run no longer owns its work.
        """
        made = await run.step(_MADE, lambda: _made(finished, shaped))
        key = key_of(finished.assignment.kind, run.id)
        stored = await asyncio.to_thread(object_of, finished, made)
        put = await run.step(_PUT, lambda: self._put(run, key, stored))
        document = await self._prepared(finished, made)

        async def effect(connection: Connection) -> Json:
            found = document and self._index and await self._index.write(connection, document, run.origin)
            return await _write(connection, finished, made["body"], put, found)

        written = await run.commit(_PUBLISHED, effect)
        await self._cache(kept_of(finished, made, put, written))
        return made["body"]

    async def read(self, job: str, owner: str | None) -> Kept | None:
        """What came of a job of this owner, also after its work is forgotten; None where there is nothing.

        Args:
            job: Its id.
            owner: Whose; None is anybody's, for operators and the hub's own readers.

        Raises:
            InternalError: Its object is not what was put.
            NotFound: It is too long for a row, and its object is gone.
            NotConfigured: It is too long for a row, and the place for objects refuses this hub.
            Unavailable: It is too long for a row, and the place for objects cannot be reached.
        """
        found = await self._cached(job)
        if found is not None:
            return found if owner is None or found.owner == owner else None
        row = await self._pool.fetchrow(_READ, job, owner)
        if row is None:
            return None
        found = Kept.of(row)
        if found.body is None:
            found = replace(found, body=(await self._object(found))["body"])
        await self._cache(found)
        return found

    async def text(self, job: str, owner: str | None) -> str | None:
        """A result as Markdown for people, which only its object has; None where there is no such result.

        Raises:
            InternalError: Its object is not what was put.
            NotFound: Its object is gone.
            NotConfigured: The place for objects refuses this hub.
            Unavailable: The place for objects cannot be reached.
        """
        row = await self._pool.fetchrow(_READ, job, owner)
        return None if row is None else (await self._object(Kept.of(row)))["text"]

    async def purge(self) -> int:
        """How many results were forgotten for their age: object, row and document; and objects that have no row and get none.

        Raises:
            NotConfigured: The place for objects does not let this hub delete.
            Unavailable: The place for objects cannot be reached.
        """
        purged = 0
        while rows := await self._pool.fetch(_OLD, self._kept_days, _AT_ONCE):
            for row in rows:
                await self._forget(row["job"], row["object"], row["document"])
            purged += len(rows)
        for row in await self._pool.fetch(_LEFT, _MADE, _PUBLISHED, list(KINDS), list(FINAL)):
            await self._objects.drop(key_of(row["kind"], row["id"]))
        return purged

    def handlers(self) -> Mapping[str, Handler]:
        """What a worker needs to forget results."""

        async def purge(_run: Run) -> Json:
            return {"purged": await self.purge()}

        return {PURGE: purge}

    async def _put(self, run: Run, key: str, stored: bytes) -> Json:
        try:
            await self._objects.put(key, stored)
        except (NotConfigured, Unavailable) as error:
            # What it cost is spent: it waits, and whoever reads the job's progress sees what is to be done.
            log.warning("result_not_put", error=error.message)
            said = f"The result is made and waits to be stored. {error.message} {error.next_step}"
            raise Park(STORE_AWAY, wake_in_s=run.within_time(_AGAIN_S), message=said) from error
        return {"object": key, "sha256": hashlib.sha256(stored).hexdigest(), "bytes": len(stored)}

    async def _prepared(self, finished: Finished, made: Json) -> Prepared | None:
        if self._index is None or not made["searched"]:
            return None
        assignment = finished.assignment
        return await self._index.prepare(finished.job, assignment.kind, assignment.title, made["text"])

    async def _object(self, kept: Kept) -> dict[str, Json]:
        try:
            stored = await self._objects.get(kept.object)
        except NotFound as error:
            raise NotFound(
                "The object of this result is gone.",
                next_step="Ask the people who run this hub to restore it from the bucket's older versions or a backup.",
                details={"object": kept.object},
            ) from error
        found = await asyncio.to_thread(opened, stored, kept)
        if found is None:
            raise InternalError(
                "The object of this result is not what was put there.",
                next_step="Ask the people who run this hub to restore it from the bucket's older versions or a backup.",
                details={"object": kept.object},
            )
        return found

    async def _forget(self, job: str, key: str, document: str | None) -> None:
        # The row goes last: while it is there, the next run knows what is still to be dropped.
        await self._objects.drop(key)
        gone = False
        async with self._pool.acquire() as connection, connection.transaction():
            if document is not None and self._index is not None:
                gone = await self._index.drop(connection, document, Effect(_SERVICE, None))
            await connection.execute("DELETE FROM expert_result WHERE job = $1", job)
        if gone and document is not None and self._index is not None:
            await self._index.announce(document)
        try:
            async with asyncio.timeout(_PATIENCE_S):
                await self._redis.delete(_PREFIX + job)
        except LOST as error:
            log.info("result_stays_cached", error=type(error).__name__)

    async def _cached(self, job: str) -> Kept | None:
        try:
            async with asyncio.timeout(_PATIENCE_S):
                said = await self._redis.get(_PREFIX + job)
        except LOST as error:
            log.info("results_not_read", error=type(error).__name__)
            return None
        return None if said is None else remembered(said, job)

    async def _cache(self, kept: Kept) -> None:
        said = cached(kept)
        if len(said) > ROW_BYTES_MAX:
            return
        try:
            async with asyncio.timeout(_PATIENCE_S):
                await self._redis.set(_PREFIX + kept.job, said, ex=CACHED_S)
        except LOST as error:
            log.info("result_not_cached", error=type(error).__name__)


def schedules() -> tuple[Schedule, ...]:
    """When results are forgotten: once a day."""
    return (Schedule(name=PURGE, kind=PURGE, owner=_SERVICE, slot=every(_EVERY_S), grace_s=float(_EVERY_S)),)


async def _write(connection: Connection, finished: Finished, body: Json, put: Json, document: str | None) -> Json:
    said = encode(body, "result")
    created_at = await connection.fetchval(
        _WRITE,
        finished.job,
        finished.owner,
        finished.assignment.kind,
        finished.assignment.title,
        said if len(said) <= ROW_BYTES_MAX else "null",
        body["made"]["outside"],
        put["object"],
        put["sha256"],
        put["bytes"],
        document,
    )
    return {"document": document, "created_at": created_at.isoformat()}


async def _made(finished: Finished, shaped: Shaped | None) -> Json:
    assert shaped is not None, "what was not made yet is shaped first"
    return made_of(finished, shaped)
