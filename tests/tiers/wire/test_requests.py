"""Requests on the wire: each dialect is sent what it takes, all of it, and nothing of another's; the FaultWall is as strict as they are."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from tests.counterparts.faultwall.replies import DIALECTS
from tests.counterparts.faultwall.strict import ignored, refusal
from tests.counterparts.faultwall.wall import KEY, DialectName
from tests.tiers.asking import LORE, MOOD, ask
from tiers.faults import EngineFault
from tiers.model import Message, ToolCall
from tiers.wire.base import Ask
from tiers.wire.dialects import dialect_of

TURNS = (
    Message(role="system", content="You are Osric."),
    Message(role="user", content="Who owes you?"),
    Message(
        role="assistant",
        content="",
        tool_calls=(ToolCall("a", "search_lore", '{"query": "debt"}'), ToolCall("b", "search_lore", "{}")),
    ),
    Message(role="tool", content="Nobody.", tool_call_id="a"),
    Message(role="tool", content="Everybody.", tool_call_id="b"),
    Message(role="user", content="Well?"),
)
OPEN: list[dict[str, Any]] = [
    {"type": "object", "properties": {"mood": {"type": "string"}}, "required": ["mood"]},
    {"type": "object", "properties": {"mood": {"type": "string"}}, "additionalProperties": False},
    {**MOOD, "properties": {"mood": {"type": "array", "items": {"type": "object"}}}},
    {**MOOD, "properties": {"mood": {"anyOf": [{"type": "object", "properties": {}}, {"type": "null"}]}}},
]
FULL: dict[str, Any] = {
    "messages": TURNS,
    "offers": (LORE,),
    "tool_choice": "search_lore",
    "temperature": 0.7,
    "seed": 7,
    "stop": ("\n\n",),
    "schema": MOOD,
    "urgency": 0.9,
    "cache_salt": "npc-osric",
}


def sent(dialect: DialectName, request: Ask) -> dict[str, Any]:
    """What goes over the wire; the real one would take it, and would ignore nothing of it."""
    spoken = dialect_of(dialect)
    prepared = spoken.ask(request)
    body = orjson.loads(prepared.body)
    headers = dict(spoken.authorised(KEY))
    assert refusal(dialect, headers, body) is None
    assert ignored(dialect, body) == frozenset()
    return body


@pytest.mark.parametrize("dialect", DIALECTS)
def test_the_fullest_request_is_taken_by_each(dialect: DialectName) -> None:
    sent(dialect, ask(**FULL))
    sent(dialect, ask())


@pytest.mark.parametrize("choice", ["auto", "none", "required", "search_lore"])
@pytest.mark.parametrize("dialect", DIALECTS)
def test_every_choice_of_tools_is_taken(dialect: DialectName, choice: str) -> None:
    sent(dialect, ask(offers=(LORE,), tool_choice=choice))


def test_urgency_has_the_sign_and_scale_of_each() -> None:
    # vLLM: an integer, lower first. trtllm-serve: 0 to 1, higher first. The clouds have none.
    assert [sent("vllm", ask(urgency=u))["priority"] for u in (1.0, 0.5, 0.0)] == [0, 50, 100]
    assert [sent("trtllm", ask(urgency=u))["priority"] for u in (1.0, 0.5, 0.0)] == [1.0, 0.5, 0.0]
    assert all("priority" not in sent(dialect, ask()) for dialect in ("openai", "azure", "anthropic"))


def test_salts_keep_prefixes_apart_where_there_are_any() -> None:
    assert {d: sent(d, ask(cache_salt="npc")).get("cache_salt") for d in DIALECTS} == {
        "vllm": "npc",
        "trtllm": "npc",
        "openai": None,
        "azure": None,
        "anthropic": None,
    }
    # An empty one is refused by both engines.
    assert "cache_salt" not in sent("vllm", ask(cache_salt="")) | sent("trtllm", ask(cache_salt=""))


def test_choices_are_held_by_a_grammar_or_the_engine_cannot() -> None:
    choices = ("flee (now)", "hide")
    assert sent("vllm", ask(choices=choices))["structured_outputs"] == {"choice": list(choices)}
    assert sent("trtllm", ask(choices=choices))["response_format"] == {"type": "regex", "regex": r"(flee \(now\)|hide)"}
    for dialect in ("openai", "azure", "anthropic"):
        forms: list[dict[str, Any]] = [{"choices": choices}, {"regex": "[a-z]+"}]
        for form in forms:
            with pytest.raises(EngineFault) as told:
                dialect_of(dialect).ask(ask(**form))
            assert told.value.reason == "cannot"


def test_schemas_are_asked_for_in_the_form_of_each() -> None:
    formed = {"type": "json_schema", "json_schema": {"name": "answer", "schema": MOOD, "strict": True}}
    assert sent("vllm", ask(schema=MOOD))["response_format"] == formed
    assert sent("openai", ask(schema=MOOD))["response_format"] == formed
    assert sent("trtllm", ask(schema=MOOD))["response_format"] == {"type": "json", "schema": MOOD}
    assert sent("anthropic", ask(schema=MOOD))["output_config"] == {"format": {"type": "json_schema", "schema": MOOD}}


@pytest.mark.parametrize("schema", OPEN)
def test_openai_is_asked_to_be_strict_only_with_schemas_that_it_takes_as_such(schema: dict[str, Any]) -> None:
    for dialect in ("openai", "azure"):
        assert sent(dialect, ask(schema=schema))["response_format"]["json_schema"]["strict"] is False
        assert sent(dialect, ask(schema=MOOD))["response_format"]["json_schema"]["strict"] is True
    assert sent("vllm", ask(schema=schema))["response_format"]["json_schema"]["strict"] is True


def test_vllm_holds_arguments_to_the_schema_of_the_tool_only_where_it_is_told_to() -> None:
    assert sent("vllm", ask(offers=(LORE,)))["tools"][0]["function"]["strict"] is True
    assert "strict" not in sent("trtllm", ask(offers=(LORE,)))["tools"][0]["function"]


@pytest.mark.parametrize("model", ["gpt-5-mini", "o4-mini"])
def test_reasoning_models_of_openai_get_no_temperature_and_are_told_to_think_little(model: str) -> None:
    body = sent("openai", ask(model=model, temperature=0.7, stop=("x",), seed=1))

    assert body["reasoning_effort"] == "low"
    assert {"temperature", "stop"} & set(body) == set()
    assert body["max_completion_tokens"] == 64


def test_anthropic_gets_instructions_apart_and_results_of_tools_as_one_turn_of_the_users() -> None:
    body = sent("anthropic", ask(messages=TURNS, offers=(LORE,)))

    assert body["system"] == "You are Osric."
    assert [turn["role"] for turn in body["messages"]] == ["user", "assistant", "user", "user"]
    assert [block["input"] for block in body["messages"][1]["content"]] == [{"query": "debt"}, {}]
    assert [block["tool_use_id"] for block in body["messages"][2]["content"]] == ["a", "b"]
    assert "temperature" not in sent("anthropic", ask(temperature=0.7))


def test_anthropic_is_told_nothing_of_turns_in_which_nobody_said_anything() -> None:
    turns = (
        Message(role="user", content="Hm?"),
        Message(role="assistant", content=" "),
        Message(role="user", content="?"),
    )

    assert [turn["content"] for turn in sent("anthropic", ask(messages=turns))["messages"]] == ["Hm?", "?"]


def test_a_call_with_arguments_that_were_no_object_is_told_to_anthropic_as_one_without() -> None:
    turns = (
        Message(role="user", content="Hm?"),
        Message(role="assistant", tool_calls=(ToolCall("a", "search_lore", "[1"),)),
        Message(role="tool", content="Bad arguments.", tool_call_id="a"),
    )

    assert sent("anthropic", ask(messages=turns))["messages"][1]["content"][0]["input"] == {}


@pytest.mark.parametrize("dialect", DIALECTS)
def test_each_carries_its_key_in_its_own_header(dialect: DialectName) -> None:
    headers = dialect_of(dialect).authorised("secret")

    name = {"azure": "api-key", "anthropic": "x-api-key"}.get(dialect, "authorization")
    assert headers[name].removeprefix("Bearer ") == "secret"
    assert all("secret" not in value for value in dialect_of(dialect).authorised(None).values())
