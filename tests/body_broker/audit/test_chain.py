"""What follows one chain finds every change to it, and nothing where there is none."""

from __future__ import annotations

from itertools import pairwise

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from body_broker.audit.chain import Chain, genesis, key_id, link
from body_broker.audit.walk import Breach, Walk

KEY = b"k" * 32
OTHER = b"o" * 32
Rows = list[tuple[int, bytes, str]]
TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=40)


def chain_of(texts: list[str], key: bytes = KEY, name: str = "wrt_a", number: int = 1) -> Rows:
    chain = Chain(key, name, number)
    rows: Rows = []
    for text in texts:
        body = orjson.dumps({"seq": chain.sequence + 1, "text": text})
        mac = chain.extend(body)
        rows.append((chain.sequence, mac, body.decode()))
    return rows


def walked(rows: Rows, key: bytes = KEY, name: str = "wrt_a", number: int = 1) -> list[Breach]:
    walk = Walk(key, name, number)
    found = [breach for row in rows for breach in walk.step(*row)]
    return found + walk.finish()


@given(st.lists(TEXTS, max_size=12))
def test_an_untouched_chain_has_no_breach(texts: list[str]) -> None:
    assert walked(chain_of(texts)) == []


@given(st.lists(TEXTS, min_size=1, max_size=12), st.data())
def test_any_edit_is_found_at_its_place(texts: list[str], data: st.DataObject) -> None:
    rows = chain_of(texts)
    at = data.draw(st.integers(0, len(rows) - 1))
    sequence, mac, body = rows[at]
    edited = data.draw(TEXTS.filter(lambda text: text != body))
    rows[at] = (sequence, mac, edited)
    (breach,) = walked(rows)
    # With nothing after it, an edited record looks like one that was made without the key.
    assert breach.kind == ("edited" if sequence < len(rows) else "forged")
    assert breach.sequence == sequence


@given(st.lists(TEXTS, min_size=2, max_size=12), st.data())
def test_any_hole_is_found_and_measured(texts: list[str], data: st.DataObject) -> None:
    rows = chain_of(texts)
    first = data.draw(st.integers(0, len(rows) - 2))
    last = data.draw(st.integers(first, len(rows) - 2))
    (breach,) = walked(rows[:first] + rows[last + 1 :])
    assert (breach.kind, breach.sequence) == ("deleted", first + 1)
    assert str(last + 1) in breach.text


@given(st.lists(TEXTS, min_size=2, max_size=12), st.data())
def test_any_exchange_of_two_records_is_found(texts: list[str], data: st.DataObject) -> None:
    rows = chain_of(texts)
    one = data.draw(st.integers(0, len(rows) - 2))
    two = data.draw(st.integers(one + 1, len(rows) - 1))
    rows[one], rows[two] = (rows[one][0], *rows[two][1:]), (rows[two][0], *rows[one][1:])
    found = walked(rows)
    assert {breach.kind for breach in found} == {"reordered"}
    assert found[0].sequence == one + 1


@given(st.lists(TEXTS, max_size=6), st.lists(TEXTS, min_size=1, max_size=6))
def test_records_appended_without_the_key_are_found(genuine: list[str], forged: list[str]) -> None:
    rows = chain_of(genuine)
    mac = rows[-1][1] if rows else genesis(KEY, "wrt_a", 1)
    for text in forged:
        sequence = len(rows) + 1
        body = orjson.dumps({"seq": sequence, "text": text})
        mac = link(OTHER, "wrt_a", mac, sequence, body)
        rows.append((sequence, mac, body.decode()))
    (breach,) = walked(rows)
    assert (breach.kind, breach.sequence) == ("forged", len(genuine) + 1)


@pytest.mark.parametrize("place", [{"key": OTHER}, {"name": "wrt_b"}, {"number": 2}])
def test_a_chain_holds_only_under_its_own_key_name_and_number(place: dict[str, bytes]) -> None:
    assert walked(chain_of(["x", "y"]), **place) != []  # pyright: ignore[reportArgumentType] - one of three parameters


def test_a_record_is_bound_to_its_place() -> None:
    places = [("wrt_a", b"p" * 32, 1), ("wrt_a", b"p" * 32, 2), ("wrt_a", b"q" * 32, 1), ("wrt_b", b"p" * 32, 1)]
    macs = [link(KEY, name, previous, sequence, b"body") for name, previous, sequence in places]
    assert len(set(macs)) == len(macs)


def test_where_name_and_body_meet_cannot_be_moved() -> None:
    previous = b"p" * 32
    assert link(KEY, "ab", previous, 1, b"c") != link(KEY, "a", previous, 1, b"bc")


def test_a_key_id_says_which_key_and_no_more() -> None:
    assert len(key_id(KEY)) == 8
    assert key_id(KEY) != key_id(OTHER)


def test_a_line_that_stands_too_late_is_called_reordered() -> None:
    rows = chain_of(["a", "b", "c"])
    found = walked([rows[0], rows[2], rows[1]])
    assert [breach.kind for breach in found] == ["deleted", "reordered"]
    assert all(one != two for one, two in pairwise(found))
