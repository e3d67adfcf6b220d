"""Owns searching the copy: BM25 and nearest vectors in OpenSearch, and what PostgreSQL says it does not show."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from body_broker.calls import Json
from body_broker.lore.index import EVERYTHING, Filter, Found, Hit, QueryVector
from body_broker.lore.opensearch import faults, knowledge, ledger
from body_broker.lore.opensearch.ledger import GONE_MAX, Standing
from body_broker.storage.postgres import Pool

if TYPE_CHECKING:
    from body_broker.lore.opensearch.client import Client

NEIGHBOURS_MAX = 10_000
"""As many as OpenSearch gives at once."""
_NEIGHBOURS_PER_HIT = 2  # a passage has several entries where it has several vectors
_TRIES = 2  # a generation may take the place of another one while it is asked
# The last one decides nothing: an index that came about without our mapping refuses to sort by it (mapping.py).
_ORDER: Json = [{"_score": "desc"}, {"rev": "asc"}, {"ordinal": "asc"}, {"index_id": "asc"}]
# What counts of a hit stands in its sort values; reading nothing else of it makes a query three times as fast.
_PLAIN: Json = {"stored_fields": "_none_", "track_total_hits": False, "sort": _ORDER}


@dataclass(frozen=True, slots=True)
class _Question:
    """What is asked of a generation: how its hits are had, and which of them count."""

    index_id: int
    hits: Callable[[Standing], Awaitable[list[Hit]]]


class OpenSearchIndex:
    """A `SearchIndex` over the generation that serves.

    Args:
        pool: The lore's own tables, which say what the copy does not show.
        client: Of its OpenSearch.
    """

    name = "opensearch"
    copies = True

    def __init__(self, pool: Pool, client: Client) -> None:
        self._pool, self._client = pool, client

    async def lexical(
        self, index_id: int, query: str, *, limit: int, per_document: bool = False, where: Filter = EVERYTHING
    ) -> Found | None:
        """BM25 by OpenSearch; what a word is worth follows from all lore of the studio, not from this index alone."""

        async def hits(standing: Standing) -> list[Hit]:
            asked = {"must": [{"match": {"text": {"query": query}}}], **_narrowed(index_id, standing, where)}
            body: Json = {**_PLAIN, "size": limit, "query": {"bool": asked}}
            if per_document:
                body["collapse"] = {"field": "rev"}
            return _hits(await self._client.search(standing.generation, body), per_document=per_document)[:limit]

        _, found = await self._ask(_Question(index_id, hits))
        if not found.hits and not await self._pool.fetchval("SELECT length(lore_words($1)) > 0", query):
            return None
        return found

    async def nearest(
        self,
        index_id: int,
        query: QueryVector,
        *,
        limit: int,
        per_document: bool = False,
        where: Filter = EVERYTHING,
    ) -> Found:
        """The nearest by cosine: exactly where few passages are looked at, by HNSW where many are."""

        async def hits(standing: Standing) -> list[Hit]:
            if standing.model_id != query.model_id:
                raise faults.CopyAway("The copy in OpenSearch does not hold vectors of the model that serves yet.")
            neighbours = _NEIGHBOURS_PER_HIT * limit
            while True:
                count = min(neighbours, NEIGHBOURS_MAX)
                body = {**_PLAIN, "size": count, "query": _near(query, count, _narrowed(index_id, standing, where))}
                raw = await self._client.search(standing.generation, body)
                found = [Hit(h.rev, h.ordinal, _cosine(h.score)) for h in _hits(raw, per_document=per_document)]
                if len(found) >= limit or len(raw) < count or count == NEIGHBOURS_MAX:
                    return found[:limit]
                neighbours *= 4

        standing, found = await self._ask(_Question(index_id, hits))
        bare = await ledger.vectorless(self._pool, index_id, query.model_id, standing.generation)
        return Found(found.hits, missing=max(found.missing, bare))

    async def _ask(self, question: _Question) -> tuple[Standing, Found]:
        """The hits of revs that readers see, from one generation that served before and after it was asked."""
        for left in reversed(range(_TRIES)):
            before = await ledger.standing(self._pool, question.index_id)
            if before is None:
                break
            if len(before.gone) > GONE_MAX:
                raise faults.CopyAway("The copy in OpenSearch is too far behind to be searched.")
            try:
                hits = await question.hits(before)
            except faults.CopyGone:
                if left:
                    continue
                raise
            after = await ledger.standing(self._pool, question.index_id)
            if after is None or after.generation != before.generation:
                continue
            current = await ledger.current(self._pool, {hit.rev for hit in hits})
            # A rev that went while OpenSearch was asked was perhaps replaced by one that it did not show.
            went = len({hit.rev for hit in hits} - current)
            missing = max(before.missing, after.missing, went)
            return before, Found([hit for hit in hits if hit.rev in current], missing)
        raise faults.lost()


def _narrowed(index_id: int, standing: Standing, where: Filter) -> dict[str, Json]:
    """The clauses of a bool query that say which entries are looked at."""
    found: dict[str, Json] = {"filter": [{"term": {"index_id": str(index_id)}}, *knowledge.clauses(where)]}
    if standing.gone:
        found["must_not"] = [{"terms": {"rev": list(standing.gone)}}]
    return found


def _near(query: QueryVector, count: int, narrowed: dict[str, Json]) -> Json:
    return {
        "knn": {
            "vector": {"vector": [float(value) for value in query.values], "k": count, "filter": {"bool": narrowed}}
        }
    }


def _hits(raw: Iterable[Json], *, per_document: bool) -> list[Hit]:
    """Each passage once, by its best entry, and with `per_document` each rev; whatever was copied twice is found once."""
    seen: set[tuple[int, int]] = set()
    found: list[Hit] = []
    for hit in raw:
        score, rev, ordinal, _ = hit["sort"]
        key = (rev, 0 if per_document else ordinal)
        if key not in seen:
            seen.add(key)
            found.append(Hit(rev, ordinal, score))
    return found


def _cosine(score: float) -> float:
    """The inner product that OpenSearch's score of it stands for."""
    return score - 1 if score >= 1 else 1 - 1 / score
