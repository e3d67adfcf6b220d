"""Whether an answer holds: what is empty, of another shape or cut short is none."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from body_broker.errors import BadInput, TooLarge
from tiers.accepting import SCHEMA_BYTES_MAX, accepting, prepared
from tiers.faults import EngineFault
from tiers.model import Finish, InferenceRequest, ToolCall, ToolOffer
from tiers.wire.base import Completion

SCHEMA = {"type": "object", "properties": {"mood": {"type": "string"}}, "required": ["mood"]}


def refusal(request: InferenceRequest, text: str = "", *calls: ToolCall, finish: Finish = "stop") -> str | None:
    try:
        accepting(request)(Completion(text, finish, calls))
    except EngineFault as fault:
        return fault.reason
    return None


def test_an_answer_with_nothing_in_it_is_none() -> None:
    assert refusal(InferenceRequest(prompt="x"), " \n\t") == "empty"
    assert refusal(InferenceRequest(prompt="x"), "Aye.") is None


@pytest.mark.parametrize("text", ['{"mood": 3}', "{}", '{"mood": "sad"', "sad", ""])
def test_an_answer_that_does_not_obey_its_schema_is_none(text: str) -> None:
    assert refusal(InferenceRequest(prompt="x", schema=SCHEMA), text) in {"schema", "empty"}


def test_one_that_obeys_it_holds() -> None:
    assert refusal(InferenceRequest(prompt="x", schema=SCHEMA), ' {"mood": "sad"}') is None


def test_an_answer_is_one_of_the_choices() -> None:
    request = InferenceRequest(prompt="x", choices=("flee", "hide"))
    assert refusal(request, "flee\n") is None
    assert refusal(request, "fle") == "schema"


@pytest.mark.parametrize(
    ("finish", "reason"), [("stop", None), ("grammar", None), ("length", "too_short"), ("deadline", "schema")]
)
def test_what_was_cut_may_fit_by_chance_and_is_no_answer(finish: Finish, reason: str | None) -> None:
    for request, text in (
        (InferenceRequest(prompt="x", choices=("go", "go home")), "go"),
        (InferenceRequest(prompt="x", schema={"type": "integer"}), "12"),
    ):
        assert refusal(request, text, finish=finish) == reason
    assert refusal(InferenceRequest(prompt="x"), "and so", finish=finish) is None


def test_calls_of_the_clients_own_tools_fit_their_schemas() -> None:
    request = InferenceRequest(prompt="x", offers=(ToolOffer("feel", "Feel.", SCHEMA),))
    assert refusal(request, "", ToolCall("1", "feel", '{"mood": "sad"}')) is None
    assert refusal(request, "", ToolCall("1", "feel", '{"mood": ')) == "arguments"
    assert refusal(request, "", ToolCall("1", "feel", "{}")) == "arguments"


def test_what_is_no_schema_is_refused_before_anything_is_asked() -> None:
    with pytest.raises(BadInput) as caught:
        accepting(InferenceRequest(prompt="x", schema={"type": "nonsense"}))
    assert caught.value.details["problems"] == ["response_schema: no JSON Schema"]
    with pytest.raises(TooLarge):
        accepting(InferenceRequest(prompt="x", schema={"enum": ["x" * SCHEMA_BYTES_MAX]}))


def test_a_clients_tool_whose_schema_is_none_is_called_with_any_object() -> None:
    request = InferenceRequest(prompt="x", offers=(ToolOffer("feel", "Feel.", {"type": 3, "properties": "none"}),))
    assert refusal(request, "", ToolCall("1", "feel", '{"mood": 3}')) is None
    assert refusal(request, "", ToolCall("1", "feel", "[]")) == "arguments"


def test_a_clients_tool_whose_schema_is_too_long_to_be_read_is_called_with_any_object() -> None:
    schema = {"type": "object", "required": ["mood"], "description": "x" * SCHEMA_BYTES_MAX}
    request = InferenceRequest(prompt="x", offers=(ToolOffer("feel", "Feel.", schema),))
    assert refusal(request, "", ToolCall("1", "feel", "{}")) is None


async def test_schemas_are_read_off_the_loop() -> None:
    loop_thread, seen = threading.get_ident(), list[int]()

    class Watched(dict[str, Any]):
        def __contains__(self, key: object) -> bool:
            seen.append(threading.get_ident())
            return super().__contains__(key)

    for request in (
        InferenceRequest(prompt="x", schema=Watched(SCHEMA)),
        InferenceRequest(prompt="x", offers=(ToolOffer("feel", "Feel.", Watched(SCHEMA)),)),
    ):
        await prepared(request)

    assert seen
    assert loop_thread not in seen
