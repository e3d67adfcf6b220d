from __future__ import annotations

import math
from array import array
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from body_broker.lore.embedding.parts import parts_of
from body_broker.lore.embedding.vectors import checked, literal
from body_broker.lore.embedding.words import BadVectors, Text

NAN, INFINITE = float("nan"), float("inf")
NUMBERS = st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=20)


def size(texts: object) -> list[int]:
    assert isinstance(texts, list)
    return [len(str(text)) for text in texts]  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]  # texts


WRONG: list[tuple[list[list[Any]], int, int | None]] = [
    ([[1.0]], 2, None),
    ([[1.0], [1.0]], 1, None),
    ([[1.0, 0.0], [1.0]], 2, None),
    ([[1.0, 0.0]], 1, 3),
    ([[]], 1, None),
    ([[NAN, 1.0]], 1, None),
    ([[1.0, INFINITE]], 1, None),
    ([[-INFINITE, NAN]], 1, None),
    ([[0.0, 0.0]], 1, None),
    ([[None, 1.0]], 1, None),
    ([["1", "2"]], 1, None),
    ([[1.0] * 16_001], 1, None),
]


@pytest.mark.parametrize(("vectors", "count", "dimensions"), WRONG)
def test_what_is_no_vector_is_refused(vectors: list[list[float]], count: int, dimensions: int | None) -> None:
    with pytest.raises(BadVectors):
        checked(vectors, count=count, dimensions=dimensions)


@given(NUMBERS)
def test_a_vector_that_passes_has_length_one_and_its_direction(numbers: list[float]) -> None:
    try:
        (vector,) = checked([numbers], count=1, dimensions=None)
    except BadVectors:
        assert math.hypot(*numbers) == 0
        return
    assert math.hypot(*vector) == pytest.approx(1, abs=1e-5)
    assert [a * b >= 0 for a, b in zip(vector, numbers, strict=True)] == [True] * len(numbers)


@given(NUMBERS)
def test_a_literal_holds_a_vector_exactly(numbers: list[float]) -> None:
    vector = array("f", numbers)

    assert array("f", map(float, literal(vector)[1:-1].split(","))) == vector


@given(
    st.text(max_size=40),
    st.text(max_size=300),
    st.text(alphabet="ab .!?。\n船", max_size=2_000),
    st.integers(40, 400),
)
def test_the_parts_of_a_passage_fit_and_hold_all_of_it(title: str, heading: str, content: str, room: int) -> None:
    parts = parts_of(Text(title, heading, content), size, room)

    assert max(map(len, parts)) <= room
    whole = f"{title}\n{heading}\n{content}"
    if len(whole) <= room:
        assert parts == [whole]
        return
    named = f"{title}\n{heading}\n"
    head = named
    while len(head) > room // 2:
        head = f"{head[: len(head) // 2].rstrip()}\n"
    assert all(part.startswith(head) for part in parts)
    assert "".join("".join(part.removeprefix(head) for part in parts).split()) == "".join(content.split())


@given(
    st.text(alphabet="한국민속촌 ́̂a", max_size=200),
    st.text(alphabet="관람안내문́", max_size=120),
    st.text(alphabet="한국 민속촌.\ń̂", min_size=1, max_size=1_500),
    st.integers(120, 260),
)
def test_letters_that_take_much_room_or_none_end_in_parts_that_fit(
    title: str, heading: str, content: str, room: int
) -> None:
    def pieces(texts: Sequence[str]) -> list[int]:  # a syllable of Hangul is three letters to MiniLM, a mark is none
        return [sum(3 if "가" <= letter <= "힣" else 0 for letter in each) for each in texts]

    parts = parts_of(Text(title, heading, content), pieces, room)

    assert max(pieces(parts)) <= room
    assert "".join("".join(parts).split()).endswith("".join(content.split())[-1:])


def test_parts_are_of_like_size_and_end_with_sentences() -> None:
    content = " ".join(f"The lantern of pier {n:02} went out." for n in range(30))  # 34 characters and a blank each

    parts = parts_of(Text("The Quay", "", content), size, 500)

    assert len(parts) == 3
    assert all(part.rstrip().endswith("out.") for part in parts)
    assert max(map(len, parts)) - min(map(len, parts)) < 80
