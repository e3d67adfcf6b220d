from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from tests.retrieval.collections import cranfield
from tests.retrieval.conftest import Import

FLOOR = 0.39


@pytest.mark.requires("data")
async def test_bm25_ranks_cranfield_as_well_as_before(
    imported: Import, test_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    collection = cranfield(test_data / "cranfield")
    file = tmp_path / "cranfield.jsonl"
    lines = [
        json.dumps({"id": number, "title": title, "text": text})
        for number, (title, text) in collection.documents.items()
    ]
    file.write_text("\n".join(lines), "utf-8")

    services = await imported(file)

    sources = await services.pool.fetch("SELECT id, source FROM lore_document")
    numbers = {row["id"]: int(row["source"].partition("#")[2]) for row in sources}
    assert set(numbers.values()) == set(collection.documents)
    total = 0.0
    for query, relevant in collection.relevant.items():
        page = await services.lore.search("shared", collection.queries[query], limit=10, per_document=True)
        total += _ndcg([numbers[passage.doc_id] in relevant for passage in page.passages], len(relevant))
    figure = total / len(collection.relevant)
    with capsys.disabled():
        print(f"\nCranfield, BM25, {len(collection.relevant)} queries: nDCG@10 {figure:.4f}")

    assert figure >= FLOOR


def _ndcg(hits: list[bool], relevant: int) -> float:
    gain = sum(1 / math.log2(place + 2) for place, hit in enumerate(hits) if hit)
    return gain / sum(1 / math.log2(place + 2) for place in range(min(10, relevant)))
