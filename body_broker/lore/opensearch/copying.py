"""Owns bringing a generation up to date: what is due is added, what is gone or was there before is deleted, and only what is seen
to be found again is no longer due.

OpenSearch gives the ids, and shows what was written only later. So every attempt to copy a rev marks its entries; when all of
them are found, those of other attempts are deleted. What a kill leaves twice changes no answer, and is deleted by the next attempt.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from body_broker.calls import Json
from body_broker.lore.opensearch import entries, faults, ledger
from body_broker.lore.opensearch.ledger import Due
from body_broker.lore.opensearch.mapping import LAYOUT
from body_broker.storage.postgres import Pool
from body_broker.text import new_id
from body_broker.work.run import Run

if TYPE_CHECKING:
    from body_broker.lore.opensearch.client import Client

_REVS_MAX, _CHUNKS_MAX = 1000, 4000
_IDS_MAX = 5000
_BULK_BYTES = 1_000_000
"""aiohttp writes a body of more than 1 MiB in one go, and warns of it."""
_SHOWN_WITHIN_S = 90.0
"""Serverless shows a write after ten seconds and more."""
_LOOK_S, _LOOK_MAX_S = 0.1, 2.0
_ORDER: Json = [{"rev": "asc"}, {"ordinal": "asc"}, {"part": "asc"}, {"attempt": "asc"}]


@dataclass(frozen=True, slots=True)
class Seen:
    """How many entries of a rev are found: all, and those of one attempt."""

    all: int
    ours: int


class Copying:
    """Copies what is due.

    Args:
        pool: The lore's own tables.
        client: Where to.
    """

    def __init__(self, pool: Pool, client: Client) -> None:
        self._pool, self._client = pool, client

    async def perform(self, run: Run) -> Json:
        """The worker's handler: bring the generation that serves up to date."""
        generation: str = run.input["generation"]
        async with run.fenced() as connection:
            await ledger.alone(connection)  # whoever counted on this job has committed
        found = next((g for g in await ledger.generations(self._pool) if g.name == generation), None)
        if found is None or found.state != "serving":
            return {"copied": 0}
        try:
            return {"copied": await self.drain(run, generation, found.model_id)}
        except faults.CopyGone:
            async with run.fenced() as connection:
                await ledger.alone(connection)
                await ledger.lose(connection, generation)
            return {"copied": 0, "lost": generation}

    async def drain(self, run: Run, generation: str, model_id: int | None) -> int:
        """How many revs were brought up to date, until nothing was due.

        Raises:
            CopyGone: The generation's index is not there, or is not ours.
            CopyAway: OpenSearch cannot do it now.
        """
        done = 0
        while dues := await ledger.due(self._pool, generation, revs_max=_REVS_MAX, chunks_max=_CHUNKS_MAX):
            await self.require_ours(generation)
            await self._copy(run, generation, model_id, dues)
            async with run.fenced() as connection:
                await ledger.shown(connection, generation, dues)
            done += len(dues)
            left = next((g.due for g in await ledger.generations(self._pool) if g.name == generation), 0)
            await run.progress(done, done + left, f"{done} of {done + left} documents")
        return done

    async def require_ours(self, generation: str) -> None:
        """Go on only where the index is the one that was made for this generation.

        Raises:
            CopyGone: It is not.
        """
        meta = (await self._client.mapping(generation)).get("_meta", {})
        if meta.get("generation") != generation or meta.get("layout") != LAYOUT:
            raise faults.lost()

    async def _copy(self, run: Run, generation: str, model_id: int | None, dues: Sequence[Due]) -> None:
        attempt = new_id("cpy")
        wanted = dict.fromkeys((each.rev for each in dues), 0)
        sent = size = 0
        lines: list[bytes] = []
        for rev in wanted:
            async for entry in entries.of_rev(self._pool, rev, model_id=model_id, attempt=attempt):
                if lines and size + len(entry) > _BULK_BYTES:
                    await self._client.bulk(generation, lines)
                    sent += len(lines)
                    lines, size = [], 0
                    await run.progress(0, None, f"{sent} entries written")
                wanted[rev] += 1
                lines.append(entry)
                size += len(entry) + 1
        if lines:
            await self._client.bulk(generation, lines)
        await self._settle(generation, attempt, wanted)

    async def _settle(self, generation: str, attempt: str, wanted: Mapping[int, int]) -> None:
        """Return once the index shows each rev as this attempt wrote it, and nothing else of it."""
        pause_s = _LOOK_S
        deleted: set[str] = set()
        async with asyncio.timeout(_SHOWN_WITHIN_S) as patience:
            try:
                while True:
                    await self.require_ours(
                        generation
                    )  # a write to an index that was deleted makes another of its name
                    seen = await self._seen(generation, attempt, list(wanted))
                    complete = all(seen[rev].ours == count for rev, count in wanted.items())
                    if complete and all(each.all == each.ours for each in seen.values()):
                        return
                    if complete:
                        await self._delete_others(generation, attempt, list(wanted), deleted)
                    await asyncio.sleep(pause_s)
                    pause_s = min(1.5 * pause_s, _LOOK_MAX_S)
            except TimeoutError as error:
                if not patience.expired():
                    raise
                raise faults.CopyAway("OpenSearch does not show what was written to it.") from error

    async def _seen(self, generation: str, attempt: str, revs: Sequence[int]) -> dict[int, Seen]:
        by_rev: Json = {"revs": {"terms": {"field": "rev", "size": len(revs)}}}
        body: Json = {
            "size": 0,
            "query": {"bool": {"filter": [{"terms": {"rev": list(revs)}}]}},
            "aggs": {**by_rev, "ours": {"filter": {"term": {"attempt": attempt}}, "aggs": by_rev}},
        }
        found = (await self._client.look(generation, body))["aggregations"]
        everything, ours = _counts(found), _counts(found["ours"])
        return {rev: Seen(everything.get(rev, 0), ours.get(rev, 0)) for rev in revs}

    async def _delete_others(self, generation: str, attempt: str, revs: Sequence[int], deleted: set[str]) -> None:
        """Delete what other attempts left of these revs; `deleted` are ids that were, though they are still found."""
        others: Json = {"filter": [{"terms": {"rev": list(revs)}}], "must_not": [{"term": {"attempt": attempt}}]}
        body: Json = {"size": _IDS_MAX, "_source": False, "query": {"bool": others}, "sort": _ORDER}
        while hits := (await self._client.look(generation, body))["hits"]["hits"]:
            ids = [hit["_id"] for hit in hits if hit["_id"] not in deleted]
            if ids:
                await self._client.bulk(generation, [b'{"delete":{"_id":"%s"}}' % each.encode() for each in ids])
                deleted.update(ids)
            body = {**body, "search_after": hits[-1]["sort"]}


def _counts(aggregated: Json) -> dict[int, int]:
    return {bucket["key"]: bucket["doc_count"] for bucket in aggregated["revs"]["buckets"]}
