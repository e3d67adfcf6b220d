"""Requests: their size in bytes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tiers.model import InferenceRequest, Message, ToolCall, ToolOffer, prompt_bytes, request_bytes


@given(st.lists(st.text(), min_size=1, max_size=5))
def test_a_prompt_has_at_least_the_bytes_of_its_text(texts: list[str]) -> None:
    messages = tuple(Message(role="user", content=text) for text in texts)

    assert prompt_bytes(messages) >= sum(len(text.encode()) for text in texts)


def test_tools_and_calls_count_too() -> None:
    offer = ToolOffer("roll_dice", "Rolls dice.", {"type": "object"})
    call = ToolCall("c1", "roll_dice", '{"sides": 6}')
    plain = prompt_bytes((Message(role="user", content="hello"),))

    assert prompt_bytes((Message(role="user", content="hello"),), (offer,)) > plain + len("Rolls dice.roll_dice")
    assert prompt_bytes((Message(role="user", content="hello", tool_calls=(call,)),)) > plain + len('{"sides": 6}')


@pytest.mark.parametrize(
    "request_",
    [
        InferenceRequest(prompt="Grüße"),
        InferenceRequest(messages=(Message(role="user", content="hello"),)),
        InferenceRequest(prompt="hello", offers=(ToolOffer("a", "b", {}),)),
        InferenceRequest(prompt="hello", schema={"type": "object"}),
        InferenceRequest(prompt="hello", choices=("flee", "hide")),
    ],
    ids=["prompt", "messages", "offers", "schema", "choices"],
)
def test_a_request_is_as_large_as_its_conversation(request_: InferenceRequest) -> None:
    asked = request_
    assert request_bytes(asked) == prompt_bytes(asked.conversation(), asked.offers, asked.schema, asked.choices)


@given(st.text(min_size=1), st.lists(st.text(), max_size=3))
def test_a_schema_and_choices_count_with_every_byte(words: str, choices: list[str]) -> None:
    schema = {"description": words}
    plain = request_bytes(InferenceRequest(prompt="hello"))

    found = request_bytes(InferenceRequest(prompt="hello", schema=schema, choices=tuple(choices)))

    assert found >= plain + len(words.encode()) + sum(len(choice.encode()) for choice in choices)
