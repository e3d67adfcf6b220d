from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from body_broker.lore.fusing import best_of_each, fuse
from body_broker.lore.index import Hit


def ranking(*chunks: tuple[int, int]) -> list[Hit]:
    return [Hit(rev, ordinal, 100.0 - place) for place, (rev, ordinal) in enumerate(chunks)]


def test_what_both_rank_well_comes_before_what_one_ranks_best() -> None:
    fused = fuse([ranking((1, 0), (2, 0), (3, 0)), ranking((4, 0), (2, 0), (3, 0))])

    assert [hit.rev for hit in fused] == [2, 3, 1, 4]
    assert fused[0].score == pytest.approx(2 / 62)


def test_scores_count_for_nothing() -> None:
    small = [Hit(hit.rev, hit.ordinal, hit.score / 1e6) for hit in ranking((1, 0), (2, 0))]

    assert fuse([small, ranking((3, 0))]) == fuse([ranking((1, 0), (2, 0)), ranking((3, 0))])


def test_passages_of_one_document_are_ranked_apart_until_its_best_is_kept() -> None:
    fused = fuse([ranking((1, 0), (1, 1)), ranking((2, 0), (1, 1))])

    assert [(hit.rev, hit.ordinal) for hit in best_of_each(fused)] == [(1, 1), (2, 0)]


_CHUNKS = st.lists(st.tuples(st.integers(1, 5), st.integers(0, 3)), unique=True, max_size=12)


@given(st.lists(_CHUNKS, min_size=1, max_size=3))
def test_nothing_is_lost_nothing_doubled_and_the_order_is_one(rankings: list[list[tuple[int, int]]]) -> None:
    fused = fuse([ranking(*chunks) for chunks in rankings])

    chunks = [(hit.rev, hit.ordinal) for hit in fused]
    assert sorted(chunks) == sorted({chunk for given_chunks in rankings for chunk in given_chunks})
    assert all((-a.score, a.rev, a.ordinal) < (-b.score, b.rev, b.ordinal) for a, b in pairwise(fused))
    assert {hit.rev for hit in best_of_each(fused)} == {rev for rev, _ in chunks}
