"""States between two rounds: opened by every hub, for one call of one caller, for ten minutes."""

from __future__ import annotations

from typing import Any

import pytest

from body_broker.errors import InternalError
from body_broker.inputs import STATE_BYTES_MAX, AskClient, Form, Link, Question, Roots, Turn
from mcp_servers.hub.rounds import CHARACTERS_MAX, TTL_S, BadRound, Rounds
from tests.mcp_servers.hub.clocks import Clock

KEY = bytes(range(32))


def sent(sealed: str) -> dict[str, Any]:
    return {"requestState": sealed}


def test_another_hub_with_the_same_key_opens_a_state() -> None:
    state = {"step": 2, "name": "Osric"}
    assert Rounds(KEY).read("anna tool x", sent(Rounds(KEY).seal("anna tool x", state))).state == state


def test_a_state_tells_its_client_nothing_and_is_never_the_same_twice() -> None:
    one, other = (Rounds(KEY).seal("anna tool x", "the-secret-step") for _ in range(2))
    assert "secret" not in one
    assert len(one) == len(other)
    assert one[:16] != other[:16]


@pytest.mark.parametrize("bound_to", ["anna tool y", "bert tool x", ""])
def test_a_state_belongs_to_one_call_of_one_caller(bound_to: str) -> None:
    with pytest.raises(BadRound):
        Rounds(KEY).read(bound_to, sent(Rounds(KEY).seal("anna tool x", 1)))


def test_a_state_of_another_installation_is_refused() -> None:
    with pytest.raises(BadRound):
        Rounds(KEY).read("a", sent(Rounds(bytes(32)).seal("a", 1)))


def test_a_state_is_worth_nothing_after_ten_minutes() -> None:
    clock = Clock()
    rounds = Rounds(KEY, clock)
    sealed = rounds.seal("a", 1)
    clock.now += TTL_S - 1
    assert rounds.read("a", sent(sealed)).state == 1
    clock.now += 1
    with pytest.raises(BadRound):
        rounds.read("a", sent(sealed))


def test_no_change_of_a_single_character_passes() -> None:
    rounds = Rounds(KEY)
    sealed = rounds.seal("a", {"step": 1})
    assert rounds.read("a", sent(sealed)).state == {"step": 1}
    for place, character in enumerate(sealed.rstrip("=")[:-1]):
        changed = sealed[:place] + ("A" if character != "A" else "B") + sealed[place + 1 :]
        with pytest.raises(BadRound):
            rounds.read("a", sent(changed))


@pytest.mark.parametrize("text", ["", "x", "-TAMPERED", "é", "A" * (CHARACTERS_MAX + 4), "AAAA\n"])
def test_what_is_no_state_is_refused(text: str) -> None:
    with pytest.raises(BadRound):
        Rounds(KEY).read("a", sent(text))


def test_the_longest_state_comes_back_and_a_longer_one_is_the_operation_s_fault() -> None:
    ask = AskClient({"q": Roots()}, state="x" * (STATE_BYTES_MAX - 2))
    rounds = Rounds(KEY)
    assert rounds.read("a", sent(rounds.seal("a", ask.state))).state == ask.state
    with pytest.raises(InternalError):
        AskClient({"q": Roots()}, state="x" * (STATE_BYTES_MAX - 1))


@pytest.mark.parametrize(
    ("given", "means"),
    [
        ({"action": "accept", "content": {"name": "Osric"}}, {"name": "Osric"}),
        ({"action": "accept"}, {}),
        ({"action": "decline"}, None),
        ({"action": "cancel", "content": {"name": "Osric"}}, None),
        ({"role": "assistant", "content": {"type": "text", "text": "Paris"}, "model": "m"}, "Paris"),
        ({"roots": [{"uri": "file:///work"}]}, ["file:///work"]),
    ],
)
def test_answers_come_in_the_forms_that_their_questions_say(given: dict[str, Any], means: object) -> None:
    assert Rounds(KEY).read("a", {"inputResponses": {"q": given}}).answers == {"q": means}


def test_answers_lose_their_invisible_characters() -> None:
    given = {"action": "accept", "content": {"name": "Os\u202eric\u0007"}}
    assert Rounds(KEY).read("a", {"inputResponses": {"q": given}}).answers == {"q": {"name": "Osric"}}


@pytest.mark.parametrize("given", [None, 7, [], {"q": 12345}, {"q": {}}, {"q": {"action": "perhaps"}}])
def test_what_is_no_answer_is_refused(given: object) -> None:
    with pytest.raises(BadRound):
        Rounds(KEY).read("a", {"inputResponses": given})


@pytest.mark.parametrize(
    ("declared", "kinds"),
    [
        (None, set[type[Question]]()),
        ("yes", set[type[Question]]()),
        ({}, set[type[Question]]()),
        ({"elicitation": None}, set[type[Question]]()),
        ({"elicitation": {}}, {Form}),
        ({"elicitation": {"form": {}}}, {Form}),
        ({"elicitation": {"url": {}}}, {Link}),
        ({"elicitation": {"form": {}, "url": {}}, "sampling": {}, "roots": {}}, {Form, Link, Turn, Roots}),
    ],
)
def test_a_client_can_be_asked_what_it_declared(declared: object, kinds: set[type[Question]]) -> None:
    meta = {"io.modelcontextprotocol/clientCapabilities": declared}
    assert Rounds(KEY).read("a", {"_meta": meta}).askable == kinds
