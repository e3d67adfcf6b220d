"""Reading answers: every dialect's own form, and whatever else may stand there: never an exception of Python's, never a wrong success."""

from __future__ import annotations

import contextlib
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.counterparts.faultwall.answers import events, whole
from tests.counterparts.faultwall.replies import DIALECTS, DialectName, Reply, Tool
from tests.counterparts.faultwall.strict import of_fault, told
from tiers.answers import Answer
from tiers.faults import EngineFault, Reason
from tiers.model import Message, Usage
from tiers.wire.base import Ask, Completion, Piece
from tiers.wire.dialects import dialect_of
from tiers.wire.openai import retry_after_s

BODY: dict[str, Any] = {"model": "wall", "messages": [], "stream_options": {"include_usage": True}}
ASK = Ask(model="wall", messages=(Message(role="user", content="?"),), max_tokens=64)
DATE = {"date": "Sun, 22 Nov 2026 06:00:00 GMT"}


def answered(dialect: DialectName, reply: Reply, *, stream: bool = True) -> Completion:
    reader, answer = dialect_of(dialect).reader(), Answer()
    if stream:
        for event in events(dialect, reply, BODY):
            piece = reader.event(event.name or "", event.data.encode())
            if piece is not None:
                answer.take(piece, 1.0)
    else:
        answer.take(reader.whole(orjson.dumps(whole(dialect, reply, BODY))), 1.0)
    answer.ended = reader.ended
    return answer.whole(ASK, 0.0, 2.0)


def reason_of(dialect: DialectName, *said: dict[str, Any]) -> Reason | None:
    """Why these events are no answer; None where they are one."""
    reader, answer = dialect_of(dialect).reader(), Answer()
    try:
        for each in said:
            piece = reader.event("", orjson.dumps(each))
            if piece is not None:
                answer.take(piece, 1.0)
        reader.event("", b'{"type":"message_stop"}' if dialect == "anthropic" else b"[DONE]")
        answer.ended = reader.ended
        answer.whole(ASK, 0.0, 2.0)
    except EngineFault as fault:
        return fault.reason
    return None


def chunk(finish: str | None = None, **delta: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("dialect", DIALECTS)
def test_text_calls_and_usage_are_read_in_pieces_and_whole(dialect: DialectName, stream: bool) -> None:  # noqa: FBT001  # pytest's
    calls = (Tool("search_lore", {"query": "Fähre ⛴"}), Tool("now"))
    found = answered(dialect, Reply(text="Aye, at dusk.", calls=calls, usage=(30, 9, 16)), stream=stream)

    assert (found.text, found.finish) == ("Aye, at dusk.", "tools")
    assert [(call.name, orjson.loads(call.arguments)) for call in found.calls] == [
        ("search_lore", {"query": "Fähre ⛴"}),
        ("now", {}),
    ]
    assert len({call.id for call in found.calls}) == 2
    assert (found.usage, found.counted) == (Usage(30, 9, 16), True)


@pytest.mark.parametrize("dialect", DIALECTS)
def test_without_usage_tokens_are_estimated_and_said_to_be(dialect: DialectName) -> None:
    found = answered(dialect, Reply(text="Aye, at dusk.", counted=False))

    assert not found.counted
    assert found.usage.completion == 3


@pytest.mark.parametrize(
    "usage", [{"prompt_tokens": -5, "completion_tokens": 2}, {"prompt_tokens": 3, "completion_tokens": -9}]
)
def test_a_negative_usage_is_not_believed(usage: dict[str, int]) -> None:
    piece = dialect_of("openai").reader().event("", orjson.dumps({"choices": [], "usage": usage}))

    assert piece == Piece()


@pytest.mark.parametrize("dialect", DIALECTS)
def test_length_is_an_answer_only_where_max_tokens_was_reached(dialect: DialectName) -> None:
    full = answered(dialect, Reply(text="and so", finish="length", usage=(10, 64, 0)))
    assert full.finish == "length"

    with pytest.raises(EngineFault) as told_:
        answered(dialect, Reply(text="and so", finish="length", usage=(10, 20, 0)))
    assert told_.value.reason == "too_long", "its context was full"


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_call_that_was_cut_by_max_tokens_is_no_call(dialect: DialectName) -> None:
    with pytest.raises(EngineFault) as told_:
        answered(dialect, Reply(calls=(Tool("search_lore", '{"query": "fer'),), finish="length", usage=(10, 64, 0)))

    assert told_.value.reason == "arguments"


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize(("finish", "reason"), [("content_filter", "withheld"), ("abort", "failed")])
def test_what_was_filtered_or_aborted_is_no_answer(dialect: DialectName, finish: str, reason: Reason) -> None:
    with pytest.raises(EngineFault) as told_:
        answered(dialect, Reply(text="I will tell you how", finish=finish))

    assert told_.value.reason == reason


def test_a_refusal_instead_of_an_answer_and_a_filtered_prompt_are_known() -> None:
    assert reason_of("openai", chunk(refusal="I cannot help with that."), chunk("stop")) == "withheld"
    assert reason_of("openai", chunk(content="Aye", refusal=None), chunk("stop")) is None
    body = b'{"error": {"code": "content_filter", "message": "The prompt was filtered."}}'
    assert dialect_of("azure").fault(400, {}, body).reason == "withheld"


def test_anthropics_full_context_is_too_long_and_not_an_answer() -> None:
    with pytest.raises(EngineFault) as told_:
        answered("anthropic", Reply(text="and so", finish="model_context_window_exceeded"))

    assert told_.value.reason == "too_long"


def test_a_named_tool_finishes_with_stop_and_is_a_call_all_the_same() -> None:
    called = chunk(tool_calls=[{"index": 0, "id": "a", "function": {"name": "now", "arguments": "{}"}}])

    assert reason_of("openai", called, chunk("stop")) is None
    assert reason_of("openai", chunk("tool_calls", content="I would call")) == "malformed"


@pytest.mark.parametrize(
    "said",
    [
        {"choices": [None]},
        {"choices": [{"delta": "text"}]},
        {"choices": [{"delta": {"content": 7}}]},
        {"choices": [{"delta": {"content": ["a"]}}]},
        {"choices": [{"delta": {"tool_calls": 7}}]},
        {"choices": [{"delta": {"tool_calls": [{"index": "x"}]}}]},
        {"choices": [{"delta": {"tool_calls": [{"index": 0, "function": {"name": "a", "arguments": {"q": 1}}}]}}]},
        {
            "choices": [
                {"delta": {"tool_calls": [{"index": 0, "function": {"arguments": "{}"}}]}, "finish_reason": "stop"}
            ]
        },
        {"choices": [], "usage": {"prompt_tokens": "many"}},
        {"choices": [], "usage": [1]},
        {},
        {"object": "chat.completion.chunk"},
    ],
)
def test_chunks_of_another_shape_are_malformed(said: dict[str, Any]) -> None:
    assert reason_of("openai", said) == "malformed"


@pytest.mark.parametrize(
    "said",
    [
        {"type": "message_start"},
        {"type": "message_start", "message": {"usage": [1]}},
        {"type": "content_block_start", "index": 0},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "tool_use", "id": 7, "name": "a"}},
        {"type": "content_block_delta", "index": "x", "delta": {}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": 7}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "input_json_delta"}},
        {"type": "message_delta", "delta": None},
        {"type": "error", "error": "no"},
    ],
)
def test_events_of_another_shape_are_malformed(said: dict[str, Any]) -> None:
    assert reason_of("anthropic", said) == "malformed"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    "choices",
                    "delta",
                    "message",
                    "content",
                    "tool_calls",
                    "index",
                    "id",
                    "function",
                    "name",
                    "arguments",
                    "finish_reason",
                    "usage",
                    "prompt_tokens",
                    "completion_tokens",
                    "error",
                    "type",
                    "object",
                    "code",
                    "text",
                    "content_block",
                    "input",
                    "usage",
                    "stop_reason",
                    "output_tokens",
                ]
            ),
            inner,
            max_size=5,
        )
    ),
    max_leaves=20,
)
TYPES = st.sampled_from(
    [
        "message_start",
        "content_block_start",
        "content_block_delta",
        "message_delta",
        "error",
        "text_delta",
        "tool_use",
        "text",
    ]
)


@settings(max_examples=400, deadline=None)
@given(st.sampled_from(DIALECTS), JSON, TYPES)
def test_whatever_an_engine_says_is_a_piece_or_a_fault(dialect: DialectName, said: Any, kind: str) -> None:
    for body in (
        said,
        {"type": kind, "message": said, "delta": said, "content_block": said, "index": 0, "choices": [said]},
    ):
        reader, data = dialect_of(dialect).reader(), orjson.dumps(body)
        with contextlib.suppress(EngineFault):
            reader.event("", data)
        with contextlib.suppress(EngineFault):
            reader.whole(data)
        fault = dialect_of(dialect).fault(400, {}, orjson.dumps(body))
        assert fault.reason


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("rate_limited", "rate_limited"),
        ("failed", "failed"),
        ("unavailable", "overloaded"),
        ("unauthorised", "unauthorised"),
        ("budget", "budget"),
        ("too_long", "too_long"),
    ],
)
def test_each_dialects_refusals_are_known(dialect: DialectName, fault: str, reason: Reason) -> None:
    denied = of_fault(dialect, fault)
    assert denied is not None
    body = orjson.dumps(told(dialect, denied))

    assert dialect_of(dialect).fault(denied.status, {}, body).reason == reason


@pytest.mark.parametrize("dialect", DIALECTS)
def test_an_error_that_repeats_the_prompt_does_not_close_an_engine(dialect: DialectName) -> None:
    # A player says the words of an empty purse; the engine refuses the request for another cause and repeats them.
    words = "body.messages.0: insufficient_quota, Your credit balance is too low, rate_limit_exceeded"
    body = orjson.dumps({"error": {"message": words, "type": "BadRequestError", "code": 400}})

    assert dialect_of(dialect).fault(400, {}, body).reason == "rejected"


@pytest.mark.parametrize("status", [301, 307, 400, 404, 405, 415, 422, 500, 502, 504])
@pytest.mark.parametrize("dialect", DIALECTS)
def test_other_statuses_are_refusals_or_failures(dialect: DialectName, status: int) -> None:
    expected = "rejected" if 400 <= status < 500 else "failed"

    assert dialect_of(dialect).fault(status, {}, b"<html>").reason == expected


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "30"}, 30.0),
        ({"retry-after": " 1.5 "}, 1.5),
        ({"retry-after": "30", "retry-after-ms": "250"}, 0.25),
        ({"retry-after": "Sun, 22 Nov 2026 06:00:20 GMT"} | DATE, 20.0),
        ({"retry-after": "Sun, 22 Nov 2026 06:00:20 GMT"}, None),
        ({"retry-after": "Sun, 22 Nov 2026 05:00:20 GMT"} | DATE, None),
        ({"retry-after": "86400"}, 600.0),
        ({"retry-after": "1e999"}, 600.0),
        ({"retry-after": "0"}, None),
        ({"retry-after": "-5"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "soon"} | DATE, None),
        ({}, None),
    ],
)
def test_how_long_to_wait_is_believed_within_reason(headers: dict[str, str], seconds: float | None) -> None:
    assert retry_after_s(headers) == seconds


def test_thinking_is_a_sign_of_life_and_no_answer() -> None:
    thought = dialect_of("vllm").reader().event("", orjson.dumps(chunk(reasoning_content="Hmm")))
    assert thought == Piece(thinks=True)
    delta = {"type": "content_block_delta", "index": 0, "delta": {"type": "thinking_delta", "thinking": "Hmm"}}
    assert dialect_of("anthropic").reader().event("", orjson.dumps(delta)) == Piece(thinks=True)

    assert reason_of("vllm", chunk(reasoning_content="Hmm"), chunk("stop")) == "empty"


def test_a_null_error_is_none() -> None:
    assert reason_of("vllm", chunk(content="Aye") | {"error": None}, chunk("stop")) is None


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        ({"error": {"message": "m", "code": 429}}, "rate_limited"),
        ({"error": {"message": "m", "code": "rate_limit_exceeded"}}, "rate_limited"),
        ({"error": {"message": "m", "type": "server_error", "code": None}}, "failed"),
        ({"error": {"message": "This model's maximum context length is 8192", "code": 400}}, "too_long"),
        ({"object": "error", "message": "m", "code": 503}, "overloaded"),
        ({"error": "out of memory"}, "failed"),
    ],
)
def test_errors_inside_a_stream_are_told_by_their_own_codes(error: dict[str, Any], reason: Reason) -> None:
    assert reason_of("trtllm", chunk(content="half"), error) == reason
