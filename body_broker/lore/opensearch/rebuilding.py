"""Owns building a generation anew from PostgreSQL while the old one serves, and the check that the one that serves is whole."""

from __future__ import annotations

import asyncio
import itertools
from typing import TYPE_CHECKING

from body_broker.calls import Json
from body_broker.errors import Unavailable
from body_broker.lore.opensearch import faults, ledger
from body_broker.lore.opensearch.copying import Copying
from body_broker.lore.opensearch.mapping import definition
from body_broker.settings import Settings
from body_broker.storage.postgres import Connection, Pool
from body_broker.telemetry import get_logger
from body_broker.work.run import Run

if TYPE_CHECKING:
    from body_broker.lore.opensearch.client import Client

log = get_logger(__name__)

_THERE_WITHIN_S = 90.0
"""Serverless knows a new index only after a while."""
_LOOK_S = 0.5
_INDICES_MAX = 10_000

_SERVING_MODEL = "SELECT id FROM lore_model WHERE state = 'serving' AND dimensions IS NOT NULL"
_DIMENSIONS = "SELECT dimensions FROM lore_model WHERE id = $1::integer"
# What a whole copy holds of each lore index: how many entries, and a sum by which others of the same number are told from them.
_HELD = """
SELECT d.index_id, count(*) AS entries, sum(c.rev)::float8 AS revs
FROM lore_document d JOIN lore_chunk c USING (rev)
LEFT JOIN lore_vector v ON v.rev = c.rev AND v.ordinal = c.ordinal AND v.model_id = $1::integer
GROUP BY d.index_id
"""

_Held = dict[int, tuple[int, float]]


class Rebuilding:
    """Makes generations, and finds out when one is needed.

    Args:
        pool: The lore's own tables.
        client: Where the copy lies.
        copying: Fills a generation.
        settings: How an index is made.
    """

    def __init__(self, pool: Pool, client: Client, copying: Copying, settings: Settings) -> None:
        self._pool, self._client, self._copying, self._settings = pool, client, copying, settings

    async def perform(self, run: Run) -> Json:
        """The worker's handler: fill a new generation, let it serve, delete the others; goes on where it was killed."""
        always: bool = run.input["always"]
        for number in itertools.count():
            name: str | None = await run.commit(
                f"begin {number}", lambda connection: self._begin(connection, always=always)
            )
            if name is None:
                await self._delete_lost(run)
                return {"generation": None, "documents": 0}
            documents = await self._fill(run, name)
            if documents is not None:
                await self._delete_lost(run)
                return {"generation": name, "documents": documents}
        raise AssertionError("count() does not end")

    async def _begin(self, connection: Connection, *, always: bool) -> str | None:
        """The generation to fill; None where none is needed."""
        await ledger.alone(connection)
        model = await connection.fetchval(_SERVING_MODEL)
        for found in await ledger.generations(connection):
            if found.state == "serving" and not always and found.model_id == model:
                return None
            if found.state == "filling":  # another job's, which was cancelled
                await connection.execute("UPDATE lore_copy SET state = 'lost' WHERE generation = $1", found.name)
        return await ledger.begin_generation(connection, self._settings.opensearch_prefix)

    async def _fill(self, run: Run, name: str) -> int | None:
        """How many documents it holds, once it serves; None where it was lost, or was made for another model than now serves."""
        documents = 0
        while True:
            found = next((g for g in await ledger.generations(self._pool) if g.name == name), None)
            if found is None or found.state == "lost":
                return None
            if found.state == "serving":
                return documents
            try:
                await self._make(name, found.model_id)
                documents += await self._copying.drain(run, name, found.model_id)
            except faults.CopyGone:
                log.warning("opensearch_copy_lost_while_filling", generation=name)
                await self._lose(run, name)
                return None
            async with run.fenced() as connection:
                await ledger.alone(connection)
                if await connection.fetchval(_SERVING_MODEL) != found.model_id:
                    await connection.execute("UPDATE lore_copy SET state = 'lost' WHERE generation = $1", name)
                else:
                    await ledger.serve(connection, name)

    async def _lose(self, run: Run, name: str) -> None:
        async with run.fenced() as connection:
            await ledger.alone(connection)
            await connection.execute("UPDATE lore_copy SET state = 'lost' WHERE generation = $1", name)

    async def _make(self, name: str, model_id: int | None) -> None:
        """Return once the generation's index is there."""
        try:
            await self._copying.require_ours(name)
        except faults.CopyGone:
            dimensions = await self._pool.fetchval(_DIMENSIONS, model_id)
            body = definition(
                name,
                engine=self._settings.opensearch_engine,
                service=self._settings.opensearch_service,
                model_id=model_id,
                dimensions=dimensions,
            )
            await self._client.create(name, body)
            await self._until_there(name)

    async def _until_there(self, name: str) -> None:
        clock = asyncio.get_running_loop()
        end = clock.time() + _THERE_WITHIN_S
        while True:
            try:
                await self._copying.require_ours(name)
            except faults.CopyGone:
                if clock.time() > end:
                    raise
                await asyncio.sleep(_LOOK_S)
            else:
                return

    async def _delete_lost(self, run: Run) -> None:
        for found in await ledger.generations(self._pool):
            if found.state == "lost":
                await self._client.delete(found.name)
                async with run.fenced() as connection:
                    await ledger.alone(connection)
                    await ledger.forget(connection, found.name)

    async def check(self, run: Run) -> Json:
        """The worker's handler: have built or copied what is not there, or not whole; what is away is looked at another time."""
        try:
            damaged = await self._damaged()
        except Unavailable as away:
            return {"away": away.message}
        async with run.fenced() as connection:
            await ledger.alone(connection)
            found = await ledger.generations(connection)
            serving = next((g for g in found if g.state == "serving"), None)
            model = await connection.fetchval(_SERVING_MODEL)
            if serving is not None and serving.name == damaged:
                await ledger.lose(connection, serving.name)
            elif serving is None or serving.model_id != model or len(found) > 1:
                await ledger.enqueue_rebuild(connection, always=False)
            elif serving.due:
                await ledger.enqueue_copy(connection, serving.name)
        return {"lost": damaged}

    async def _damaged(self) -> str | None:
        """The generation that serves, where it is not there or does not hold what it should.

        Raises:
            CopyAway: OpenSearch cannot say.
        """
        serving = next((g for g in await ledger.generations(self._pool) if g.state == "serving"), None)
        if serving is None:
            return None
        try:
            await self._copying.require_ours(serving.name)
            before = await self._expected(serving.name, serving.model_id)
            if before is None:
                return None
            held = await self._held(serving.name)
        except faults.CopyGone:
            return serving.name
        if held == before or await self._expected(serving.name, serving.model_id) != before:
            return None
        log.warning("opensearch_copy_damaged", generation=serving.name)
        return serving.name

    async def _expected(self, generation: str, model_id: int | None) -> _Held | None:
        """What the generation should show; None while something is due to it."""
        async with self._pool.acquire() as connection, connection.transaction(isolation="repeatable_read"):
            if await connection.fetchval("SELECT true FROM lore_copy_due WHERE generation = $1 LIMIT 1", generation):
                return None
            rows = await connection.fetch(_HELD, model_id)
        return {row["index_id"]: (row["entries"], row["revs"]) for row in rows}

    async def _held(self, generation: str) -> _Held:
        aggregated: Json = {
            "indices": {
                "terms": {"field": "index_id", "size": _INDICES_MAX},
                "aggs": {"revs": {"sum": {"field": "rev"}}},
            }
        }
        answer = await self._client.look(generation, {"size": 0, "aggs": aggregated})
        buckets = answer["aggregations"]["indices"]["buckets"]
        return {int(bucket["key"]): (bucket["doc_count"], bucket["revs"]["value"]) for bucket in buckets}
