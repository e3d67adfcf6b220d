from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from body_broker.storage.postgres import Pool
from mcp_servers.rag.services import Services
from tests.retrieval.collections import Question, questions
from tests.retrieval.conftest import Import

NOVELS = ("frankenstein", "dracula")
# Words alone cannot find a passage that shares none with the question: that half waits for vectors, and is measured until then.
FLOORS = {"shares a word": (1.0, 0.88), "shares none": (0.0, 0.002)}


def test_thirty_questions_half_of_them_paraphrases() -> None:
    asked = questions()

    assert len({question.id for question in asked}) == len(asked) == 30
    assert {question.novel for question in asked} == set(NOVELS)
    assert sum(not question.shares_word for question in asked) >= 15


@pytest.mark.requires("data")
async def test_questions_said_to_share_no_word_with_their_passage_share_none(pool: Pool, test_data: Path) -> None:
    novels = {name: (test_data / "lore" / f"{name}.txt").read_text("utf-8") for name in NOVELS}

    for question in questions():
        passage = novels[question.novel][question.start : question.end]
        assert passage.strip() == passage
        shared = await pool.fetchval(
            "SELECT array(SELECT unnest(tsvector_to_array(lore_words($1))) INTERSECT"
            " SELECT unnest(tsvector_to_array(lore_words($2))))",
            question.question,
            passage,
        )
        assert bool(shared) == question.shares_word, (question.id, shared)


@pytest.mark.requires("data")
async def test_both_novels_answer_the_questions_as_well_as_before(
    imported: Import, test_data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    services = await imported(*(test_data / "lore" / f"{name}.txt" for name in NOVELS))

    lines = ["", f"{'half':16} {'questions':>9} {'hit@3':>6} {'MRR':>6}"]
    figures: dict[str, tuple[float, float]] = {}
    for half, shares in (("shares a word", True), ("shares none", False)):
        asked = [question for question in questions() if question.shares_word == shares]
        ranks = [await _rank(services, question) for question in asked]
        figures[half] = (
            _mean([rank is not None and rank <= 3 for rank in ranks]),
            _mean([1 / r if r else 0 for r in ranks]),
        )
        lines.append(f"{half:16} {len(asked):9} {figures[half][0]:6.3f} {figures[half][1]:6.3f}")
    with capsys.disabled():
        print("\n".join(lines))

    for half, (hits, reciprocal) in FLOORS.items():
        assert figures[half][0] >= hits, half
        assert figures[half][1] >= reciprocal, half


async def _rank(services: Services, question: Question) -> int | None:
    """The place of the first passage that answers, among fifty."""
    page = await services.lore.search("shared", question.question, limit=50)
    for rank, passage in enumerate(page.passages, 1):
        if passage.title.lower() == question.novel and question.answered_by(passage.start, passage.end):
            return rank
    return None


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
