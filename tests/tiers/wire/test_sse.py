"""Server-sent events: read the same however their bytes are split and their lines end, and never without a bound."""

from __future__ import annotations

import itertools
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tiers.faults import EngineFault
from tiers.wire.sse import EVENT_BYTES_MAX, SseParser

Events = list[tuple[str, bytes]]


def read(*pieces: bytes) -> Events:
    parser = SseParser()
    return [event for piece in pieces for event in parser.feed(piece)]


def by_the_book(text: bytes) -> Events:
    """The algorithm of the standard, word by word, over the whole."""
    found: Events = []
    name, data = b"", list[bytes]()
    for line in re.split(rb"\r\n|\n|\r", text.removeprefix(b"\xef\xbb\xbf"))[:-1]:
        if not line:
            if data:
                found.append((name.decode("utf-8", "replace"), b"\n".join(data)))
            name, data = b"", []
            continue
        field, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if field == b"data":
            data.append(value)
        elif field == b"event":
            name = value
    return found


LINES = st.sampled_from(
    [
        b"data: a",
        b"data:b",
        b"data",
        b"data:  two",
        "data: Fähre ⛴".encode(),
        b"event: ping",
        b"event",
        b": comment",
        b"id: 7",
        b"retry: 10",
        b"",
        b"",
        b"\xef\xbb\xbfdata: bom",
        b"datax: no",
        b"data : no",
    ]
)
STREAMS = st.lists(st.tuples(LINES, st.sampled_from([b"\n", b"\r\n", b"\r"])), max_size=20).map(
    lambda lines: b"".join(line + end for line, end in lines)
)


@settings(max_examples=300, deadline=None)
@given(STREAMS, st.booleans(), st.lists(st.integers(0, 400), max_size=12))
def test_any_split_of_any_stream_reads_as_the_standard_says(stream: bytes, marked: bool, cuts: list[int]) -> None:  # noqa: FBT001  # hypothesis's
    text = (b"\xef\xbb\xbf" if marked else b"") + stream
    places = sorted({0, len(text), *(cut for cut in cuts if cut < len(text))})
    pieces = [text[start:end] for start, end in itertools.pairwise(places)]

    # A CR at the very end may be half of a line's end: what it ends is told all the same.
    assert read(*pieces) == read(text) == by_the_book(text)
    assert read(*(text[place : place + 1] for place in range(len(text)))) == by_the_book(text)


def test_what_has_no_blank_line_after_it_is_no_event() -> None:
    assert read(b"data: half\n") == []
    assert read(b"data: whole\n\ndata: half") == [("", b"whole")]


def test_several_lines_of_data_are_one_event_and_comments_are_none() -> None:
    assert read(b": keep-alive\n\nevent: delta\ndata: a\ndata: b\n\n") == [("delta", b"a\nb")]
    assert read(b"data: a\rdata: b\n\n", b"data: c\n\n") == [("", b"a\nb"), ("", b"c")]


@pytest.mark.parametrize("piece", [b"x" * 65_536, b"data: x\n" * 8_192, b"data: " + b"x" * 65_530])
def test_an_event_without_an_end_is_malformed_after_its_bound_however_it_goes_on(piece: bytes) -> None:
    parser, fed = SseParser(), 0
    with pytest.raises(EngineFault) as told:  # noqa: PT012  # it may come with any piece
        while fed < 10 * EVENT_BYTES_MAX:
            fed += len(piece)
            list(parser.feed(piece))

    assert told.value.reason == "malformed"
    assert fed <= 3 * EVENT_BYTES_MAX


def test_a_long_line_in_small_pieces_is_not_read_anew_with_each() -> None:
    parser, piece = SseParser(), b"x" * 32
    for _ in range(100_000):  # three megabytes; copying what is there with each would move 150 gigabytes
        list(parser.feed(piece))

    assert [event for event in parser.feed(b"\n\n") if event] == []
