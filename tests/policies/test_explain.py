from __future__ import annotations

from inline_snapshot import snapshot

from policies.decision import Identity, Question
from policies.engine import Policy
from tests.policies.oracle import person


def render(policy: Policy, action: str, *chain: Identity, tainted: bool = False, **arguments: object) -> str:
    return policy.explain(Question(action, chain, arguments, tainted, 0, frozenset())).render()


def test_a_refusal_says_what_is_missing_and_who_may(policy: Policy) -> None:
    assert render(policy, "remove_document", Identity("tier:silver")) == snapshot()


def test_an_ask_says_who_is_asked_and_how(policy: Policy) -> None:
    assert render(policy, "queue_change", person("designer"), change={"op": "move"}) == snapshot()


def test_a_chain_is_explained_one_identity_at_a_time(policy: Policy) -> None:
    assert render(policy, "carry_out", person("engineer"), Identity("tier:bronze"), tainted=True) == snapshot()


def test_an_argument_that_would_change_it_is_named(policy: Policy) -> None:
    assert render(policy, "read_state", Identity("tier:gold"), fresh=True) == snapshot()


def test_an_allow_says_by_what_and_no_more(policy: Policy) -> None:
    assert render(policy, "page", Identity("tier:silver")) == snapshot()


def test_what_cannot_be_evaluated_is_said_to_be_a_no(policy: Policy) -> None:
    assert render(policy, "read_state", Identity("tier:gold"), fresh="no") == snapshot()


def test_an_unknown_action_is_explained_too(policy: Policy) -> None:
    assert render(policy, "no_such_tool", Identity("tier:gold")) == snapshot()


def test_an_unknown_identity_is_explained_too(policy: Policy) -> None:
    assert render(policy, "page", Identity("tier:platinum")) == snapshot()
