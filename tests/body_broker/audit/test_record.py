"""A record comes back as it was written, and no text in it is unclean or endless."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from body_broker.audit.record import RECORD_BYTES_MAX, Record, decode, encode, fact
from body_broker.calls import Receipt
from body_broker.errors import Conflict
from body_broker.text import is_clean

FULL = Record(
    kind="outcome",
    at=12.5,
    action="search_lore",
    server="rag",
    requester="person:anna>tier:silver",
    session="ses_1",
    verdict="allow",
    rules=("tiers/silver-reads",),
    digest="d" * 64,
    depth=2,
    tainted=True,
    call="cal_1",
    refers_to=Receipt("wrt_a", 7),
    details={"ms": 3, "why": "asked", "names": ["a", "b"]},
)


def test_a_record_comes_back_as_it_was_written() -> None:
    assert decode(encode(FULL, 8, 12.5, FULL.digest).decode()) == FULL


def test_a_record_with_nothing_but_a_kind_comes_back_too() -> None:
    body = encode(Record(kind="refusal"), 1, 0.0, None)
    assert decode(body.decode()) == Record(kind="refusal", at=0.0)


@given(st.text(max_size=2000), st.text(max_size=2000))
def test_text_of_any_kind_is_recorded_clean_and_on_one_line(action: str, detail: str) -> None:
    body = encode(Record(kind="refusal", action=action, details={"tool": detail}), 1, 1.0, None)
    assert len(body) <= RECORD_BYTES_MAX
    found = decode(body.decode())
    for text in (found.action or "", str(found.details.get("tool", ""))):
        assert is_clean(text)
        assert "\n" not in text
        assert "\t" not in text


@pytest.mark.parametrize(
    "hostile",
    ["\ud800", "\x1b[2J", "\x7f", "a\nb", "\u202e", "x" * 100_000, "\\\\"],
    ids=["surrogate", "escape", "delete", "newline", "bidi", "endless", "backslash"],
)
def test_hostile_names_do_not_stop_the_record(hostile: str) -> None:
    body = encode(Record(kind="refusal", action=hostile, rules=(hostile,) * 100), 1, 1.0, None)
    found = decode(body.decode())
    assert is_clean(found.action or "")
    assert "\n" not in (found.action or "")
    assert len(found.action or "") <= 500
    assert len(found.rules) <= 100


def test_a_number_that_json_has_not_is_described() -> None:
    body = encode(Record(kind="refusal", details={"n": 10**5000}), 1, 1.0, None)
    assert decode(body.decode()).details == {"n": "an integer of 16610 bits"}


@pytest.mark.parametrize("body", ["[]", "{}", "no", '{"kind": 1, "at": 0, "refers_to": 5}'])
def test_what_is_no_record_is_refused_with_the_next_step(body: str) -> None:
    with pytest.raises(Conflict) as caught:
        decode(body)
    assert "audit verify" in caught.value.next_step


@pytest.mark.parametrize("body", ["[]", "no", "{}"])
def test_a_fact_that_is_not_there_is_none(body: str) -> None:
    assert fact(body, "seq") is None
