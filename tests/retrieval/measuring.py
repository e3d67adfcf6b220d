"""Owns what retrieval is measured by: nDCG@10 on Cranfield, hit@3 and MRR on the lore questions, and the time of a query."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

from body_broker.lore.ranking import By
from mcp_servers.rag.services import Services
from tests.retrieval.collections import Cranfield, Question

CRANFIELD, NOVELS = "persona:cranfield", "shared"
WAYS: tuple[By, ...] = ("words", "meaning", "both")
NAMES: dict[By, str] = {"words": "BM25", "meaning": "vectors", "both": "hybrid"}


@dataclass(frozen=True)
class Ranked:
    """What one way of searching does on Cranfield; times are of one query after the other, in milliseconds."""

    ndcg_at_10: float
    p50_ms: float
    p95_ms: float
    unavailable: frozenset[str]


@dataclass(frozen=True)
class Answered:
    """What one way of searching does on some of the lore questions."""

    questions: int
    hit_at_3: float
    reciprocal_rank: float


async def cranfield_by(services: Services, collection: Cranfield, by: By) -> Ranked:
    """Every judged query, asked by one way; a document is its best passage."""
    sources = await services.pool.fetch(
        "SELECT d.id, d.source FROM lore_document d JOIN lore_index i ON i.id = d.index_id WHERE i.name = $1", CRANFIELD
    )
    numbers = {row["id"]: int(row["source"].partition("#")[2]) for row in sources}
    assert set(numbers.values()) == set(collection.documents)
    total, times_ms, unavailable = 0.0, list[float](), set[str]()
    for query, relevant in collection.relevant.items():
        began = time.perf_counter()
        page = await services.lore.search(CRANFIELD, collection.queries[query], limit=10, per_document=True, by=by)
        times_ms.append((time.perf_counter() - began) * 1000)
        unavailable.update(page.unavailable)
        total += _ndcg([numbers[passage.doc_id] in relevant for passage in page.passages], len(relevant))
    return Ranked(
        total / len(collection.relevant),
        statistics.median(times_ms),
        statistics.quantiles(times_ms, n=20)[-1],
        frozenset(unavailable),
    )


async def questions_by(services: Services, asked: Sequence[Question], by: By) -> Answered:
    """Questions to the two novels, asked by one way."""
    ranks = [await _rank(services, question, by) for question in asked]
    hits = [rank is not None and rank <= 3 for rank in ranks]
    return Answered(len(ranks), sum(hits) / len(hits), sum(1 / rank for rank in ranks if rank) / len(ranks))


def halves(asked: Sequence[Question]) -> dict[str, list[Question]]:
    """The questions that share a word with their passage, those that share none, and all."""
    return {
        "shares a word": [question for question in asked if question.shares_word],
        "shares none": [question for question in asked if not question.shares_word],
        "all": list(asked),
    }


async def _rank(services: Services, question: Question, by: By) -> int | None:
    """The place of the first passage that answers, among fifty."""
    page = await services.lore.search(NOVELS, question.question, limit=50, by=by)
    for rank, passage in enumerate(page.passages, 1):
        if passage.title.lower() == question.novel and question.answered_by(passage.start, passage.end):
            return rank
    return None


def _ndcg(hits: list[bool], relevant: int) -> float:
    gain = sum(1 / math.log2(place + 2) for place, hit in enumerate(hits) if hit)
    return gain / sum(1 / math.log2(place + 2) for place in range(min(10, relevant)))
