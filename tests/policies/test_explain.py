from __future__ import annotations

from typing import Any

from inline_snapshot import snapshot

from policies.decision import Identity
from policies.engine import Policy
from tests.policies.oracle import call, person


def render(policy: Policy, action: str, *chain: Identity, tainted: bool = False, **arguments: Any) -> str:
    return policy.explain(call(action, *chain, tainted=tainted, **arguments)).render()


def test_a_fact_that_would_change_it_is_named(policy: Policy) -> None:
    asked = call("probe:security_scan", person("engineer"))._replace(facts=frozenset())
    assert policy.explain(asked).changes[0] == snapshot(
        "were the fact registered_repository established: allow (engineer-scans-registered)"
    )


def test_a_refusal_says_what_is_missing_and_who_may(policy: Policy) -> None:
    assert render(policy, "remove_document", Identity("tier:silver")) == snapshot("""\
tier:silver -> remove_document: deny (default-deny:write)
  is in write, destructive
  tier:silver
    permitted by: nothing
    held back by: destruction-by-agents-needs-two, destruction-needs-approval, writes-need-approval
  otherwise: as bronze, designer, engineer, sre, security, admin: ask\
""")


def test_an_ask_says_who_is_asked_and_how(policy: Policy) -> None:
    assert render(policy, "queue_change", person("designer"), change={"op": "move"}) == snapshot("""\
person:anna -> queue_change: ask (people-queue-with-approval)
  is in queued
  person:anna
    permitted by: designer
    held back by: people-queue-with-approval
  people-queue-with-approval asks 1 of sre, admin through slack or mfa or local within 900 s, or the asker's own second factor
  otherwise: as bronze, service: allow\
""")


def test_a_chain_is_explained_one_identity_at_a_time(policy: Policy) -> None:
    assert render(policy, "carry_out", person("engineer"), Identity("tier:bronze"), tainted=True) == snapshot("""\
person:anna > tier:bronze -> carry_out: ask (tainted-needs-approval, external-by-bronze-needs-approval)
  is in draft, external
  person:anna
    permitted by: engineer
    held back by: tainted-needs-approval
  tier:bronze
    permitted by: bronze-works
    held back by: external-by-bronze-needs-approval, tainted-needs-approval
  tainted-needs-approval asks 1 of security, sre, admin through slack or mfa or local within 900 s
  external-by-bronze-needs-approval asks 1 of security, admin through slack or mfa within 900 s\
""")


def test_an_argument_that_would_change_it_is_named(policy: Policy) -> None:
    assert render(policy, "read_state", Identity("tier:gold"), fresh=True) == snapshot("""\
tier:gold -> read_state: deny (default-deny:state_read)
  is in state_read
  tier:gold
    permitted by: nothing
    held back by: nothing
  otherwise: with another value of fresh: may be possible
  otherwise: as silver, bronze, service, designer, engineer, sre, admin: allow\
""")


def test_an_allow_says_by_what_and_no_more(policy: Policy) -> None:
    assert render(policy, "page", Identity("tier:silver")) == snapshot("""\
tier:silver -> page: allow (silver-looks-things-up)
  is in retrieval
  tier:silver
    permitted by: silver-looks-things-up
    held back by: nothing\
""")


def test_what_cannot_be_evaluated_is_said_to_be_a_no(policy: Policy) -> None:
    assert render(policy, "read_state", Identity("tier:gold"), fresh="no") == snapshot("""\
tier:gold -> read_state: deny (policy-error)
  is in state_read
  tier:gold
    permitted by: nothing
    held back by: nothing
    the policies could not be evaluated, which is a no
  otherwise: with another value of fresh: may be possible\
""")


def test_an_unknown_action_is_explained_too(policy: Policy) -> None:
    assert render(policy, "no_such_tool", Identity("tier:gold")) == snapshot(
        "tier:gold -> no_such_tool: deny (unknown-action)"
    )


def test_an_unknown_identity_is_explained_too(policy: Policy) -> None:
    assert render(policy, "page", Identity("tier:platinum")) == snapshot("""\
tier:platinum -> page: deny (policy-error)
  is in retrieval
  tier:platinum
    permitted by: nothing
    held back by: nothing
    the policies could not be evaluated, which is a no
  otherwise: as silver, bronze, service, designer, engineer, sre, security, admin: allow\
""")
