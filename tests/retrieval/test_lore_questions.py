from __future__ import annotations

from pathlib import Path

import pytest

from body_broker.storage.postgres import Pool
from mcp_servers.rag.services import Services
from tests.retrieval.collections import questions
from tests.retrieval.measuring import NAMES, WAYS, Answered, halves, questions_by

NOVELS = ("frankenstein", "dracula")
# hit@3 and MRR by words, by meaning and by both. Words alone cannot find a passage that shares none with the question.
FLOORS = {
    "words": {"shares a word": (1.0, 0.88), "shares none": (0.0, 0.002), "all": (0.46, 0.41)},
    "meaning": {"shares a word": (0.6, 0.6), "shares none": (0.0, 0.05), "all": (0.3, 0.3)},
    "both": {"shares a word": (0.8, 0.8), "shares none": (0.0, 0.02), "all": (0.4, 0.38)},
}


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


@pytest.mark.timeout(1_500)
async def test_both_novels_answer_the_questions_as_well_as_before(
    collected: Services, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = ["", f"{'by':8} {'half':16} {'questions':>9} {'hit@3':>6} {'MRR':>6}"]
    found: dict[tuple[str, str], Answered] = {}
    for by in WAYS:
        for half, asked in halves(questions()).items():
            figures = found[by, half] = await questions_by(collected, asked, by)
            lines.append(
                f"{NAMES[by]:8} {half:16} {figures.questions:9} {figures.hit_at_3:6.3f} {figures.reciprocal_rank:6.3f}"
            )
    with capsys.disabled():
        print("\n".join(lines))

    for by, floors in FLOORS.items():
        for half, (hits, reciprocal) in floors.items():
            assert found[by, half].hit_at_3 >= hits, (by, half)
            assert found[by, half].reciprocal_rank >= reciprocal, (by, half)
