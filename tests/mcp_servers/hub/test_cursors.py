"""Cursors: opened by whom and for what they were sealed, and by nobody and for nothing else."""

from __future__ import annotations

import base64
import re
import string
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from body_broker.errors import BadInput, InternalError
from mcp_servers.hub.cursors import CHARACTERS_MAX, CursorSeals

SEALS = CursorSeals(b"k" * 32)
ANNA = "person:anna search_lore"

states = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@given(bound_to=st.text(max_size=100), state=states)
def test_a_cursor_gives_back_what_was_sealed_and_fits_in_a_url(bound_to: str, state: Any) -> None:
    cursor = SEALS.seal(bound_to, state)

    assert SEALS.open(bound_to, cursor) == state
    assert re.fullmatch(r"[A-Za-z0-9_-]{1,1024}", cursor)


@pytest.mark.parametrize(
    "other", ["person:ben search_lore", "person:anna list_jobs", "person:anna>tier:silver search_lore", "", ANNA + " "]
)
def test_a_cursor_of_somebody_or_something_else_is_refused(other: str) -> None:
    with pytest.raises(BadInput, match="does not belong"):
        SEALS.open(other, SEALS.seal(ANNA, {"after": 7}))


def test_a_cursor_of_another_installation_is_refused() -> None:
    with pytest.raises(BadInput, match="does not belong"):
        CursorSeals(b"o" * 32).open(ANNA, SEALS.seal(ANNA, {"after": 7}))


@given(at=st.integers(0, 200), to=st.sampled_from(string.ascii_letters + string.digits + "-_=+/ \n\0é"))
def test_a_cursor_with_any_character_changed_is_refused(at: int, to: str) -> None:
    cursor = SEALS.seal(ANNA, {"after": 7, "index": "lore-shared"})
    at %= len(cursor)
    changed = cursor[:at] + to + cursor[at + 1 :]

    if changed != cursor:
        with pytest.raises(BadInput, match="does not belong"):
            SEALS.open(ANNA, changed)


@given(st.text(max_size=60))
def test_text_that_was_never_sealed_is_refused(text: str) -> None:
    with pytest.raises(BadInput, match="does not belong"):
        SEALS.open(ANNA, text)


@pytest.mark.parametrize("extra", ["=", "==", "A", "\n", " "])
def test_a_cursor_has_only_one_spelling(extra: str) -> None:
    with pytest.raises(BadInput, match="does not belong"):
        SEALS.open(ANNA, SEALS.seal(ANNA, 1) + extra)


def test_what_was_sealed_cannot_be_shifted_into_the_binding() -> None:
    raw = base64.urlsafe_b64decode(SEALS.seal("page 1", 23) + "==")
    shifted = base64.urlsafe_b64encode(raw[:16] + raw[17:]).rstrip(b"=").decode()

    with pytest.raises(BadInput, match="does not belong"):
        SEALS.open("page 12", shifted)


def test_a_cursor_longer_than_its_bound_is_neither_made_nor_opened() -> None:
    with pytest.raises(InternalError):
        SEALS.seal(ANNA, "x" * CHARACTERS_MAX)
    with pytest.raises(BadInput):
        SEALS.open(ANNA, "A" * (CHARACTERS_MAX + 1))
