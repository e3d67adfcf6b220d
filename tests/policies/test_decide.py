from __future__ import annotations

from typing import Any

import cedarpy
import pytest

from body_broker.calls import Caller
from policies.decision import Allow, Approval, Ask, Deny, Identity, chain_of
from policies.engine import Policy
from tests.policies.conftest import Studio
from tests.policies.oracle import approval, call, person

BRONZE, SILVER, GOLD = Identity("tier:bronze"), Identity("tier:silver"), Identity("tier:gold")
ERROR = Deny(("policy-error",))


def test_an_allow_names_the_permit(policy: Policy) -> None:
    assert policy.decide(call("page", SILVER)) == Allow(("silver-looks-things-up",))


def test_a_refusal_where_nothing_permits_names_the_group(policy: Policy) -> None:
    assert policy.decide(call("remove_document", SILVER)) == Deny(("default-deny:write",))


def test_a_refusal_names_every_rule_that_no_approval_lifts(policy: Policy) -> None:
    assert policy.decide(call("probe:own+spend", GOLD, depth=9)) == Deny(("depth-cap", "spend-forbidden"))
    assert policy.decide(call("page", GOLD, depth=9)) == Deny(("default-deny:retrieval", "depth-cap"))


def test_a_chain_is_refused_for_the_identity_that_may_not(policy: Policy) -> None:
    assert policy.decide(call("remove_document", person("designer"), SILVER)) == Deny(("default-deny:write",))
    assert policy.decide(call("remove_document", SILVER, person("designer"))) == Deny(("default-deny:write",))


def test_a_refusal_does_not_name_rules_that_would_only_ask(policy: Policy) -> None:
    chain = (person("designer"), Identity("service:game"))
    assert policy.decide(call("probe:queued", *chain, depth=9)) == Deny(("depth-cap",))


def test_an_ask_carries_what_the_annotations_say(policy: Policy) -> None:
    decision = policy.decide(call("remove_document", BRONZE))
    assert isinstance(decision, Ask)
    two = next(r for r in decision.requirements if r.rule == "destruction-by-agents-needs-two")
    assert (two.via, two.approvers, two.quorum, two.ttl_s, two.own) == (
        ("slack", "mfa"),
        ("sre", "admin"),
        2,
        600,
        False,
    )
    assert two.rule_digest == policy.rules[two.rule].requirement.rule_digest  # pyright: ignore[reportOptionalMemberAccess]


def test_an_ask_of_a_chain_joins_the_requirements_of_all(policy: Policy) -> None:
    decision = policy.decide(call("queue_change", person("designer"), BRONZE, tainted=True, change={"op": "move"}))
    assert isinstance(decision, Ask)
    assert set(decision.rules) == {"people-queue-with-approval", "tainted-needs-approval"}


def test_a_persons_own_second_factor_opens_what_says_mfa_and_no_quorum(policy: Policy) -> None:
    alone = call("remove_document", person("designer"))
    decision = policy.decide(alone)
    assert isinstance(decision, Ask)
    assert all(requirement.own for requirement in decision.requirements)
    own = approval("mfa", 0, own=True)
    assert isinstance(policy.decide(alone._replace(approval=own)), Allow)


@pytest.mark.parametrize(
    "chain",
    [
        (person("sre"), BRONZE),
        (BRONZE, person("sre")),
        (person("sre"), Identity("person:bob", frozenset({"sre"}))),
        (BRONZE,),
    ],
    ids=repr,
)
def test_nobodys_own_yes_opens_the_call_of_a_chain_or_of_a_tier(policy: Policy, chain: tuple[Identity, ...]) -> None:
    asked = call("remove_document", *chain)
    decision = policy.decide(asked._replace(approval=approval("mfa", 0, own=True)))
    assert isinstance(decision, Ask)
    assert not any(requirement.own for requirement in decision.requirements)
    assert decision == policy.decide(asked)


def test_an_own_yes_never_counts_towards_a_quorum(studio: Studio) -> None:
    policy = studio(
        '@id("two-of-us") @approval("mfa") @approvers("sre") @quorum("2") '
        'forbid (principal, action == Hub::Action::"page", resource) '
        "unless { context has approval && context.approval.count >= 2 };"
    )
    asked = call("page", person("sre"))
    decision = policy.decide(asked)
    assert isinstance(decision, Ask)
    assert [requirement.own for requirement in decision.requirements] == [False]
    one_and_own = Approval(frozenset({"mfa"}), 1, frozenset({"sre"}), own=True)
    assert isinstance(policy.decide(asked._replace(approval=one_and_own)), Ask)


def test_the_real_approval_is_decided_on_again(policy: Policy) -> None:
    asked = call("remove_document", BRONZE)
    assert isinstance(policy.decide(asked._replace(approval=approval("slack", 2, "sre"))), Allow)
    short = policy.decide(asked._replace(approval=approval("slack", 1, "sre")))
    assert isinstance(short, Ask)
    assert short.rules == ("destruction-by-agents-needs-two",)
    assert isinstance(policy.decide(asked), Ask), "an approval is for its call alone"


def test_nobody_is_bothered_for_what_would_be_refused_anyway(studio: Studio) -> None:
    never = (
        '@id("never-met") @approval("slack") @approvers("sre") '
        'forbid (principal, action == Hub::Action::"page", resource) '
        "when { context has approval || !context.tainted } "
        'unless { context has approval && context.approval.groups.contains("sre") && context.tainted };'
    )
    assert studio(never).decide(call("page", SILVER)) == Deny(("never-met",))


def test_gold_reads_the_cache_and_nothing_that_does_not_say_so(policy: Policy) -> None:
    assert policy.decide(call("read_state", GOLD, fresh=False)) == Allow(("gold-reads-cached-state",))
    assert policy.decide(call("read_state", GOLD, fresh=True)) == Deny(("default-deny:state_read",))
    assert policy.decide(call("read_state", GOLD)) == ERROR, "the dict is not the normalised one"


def test_an_unknown_action_is_denied(policy: Policy) -> None:
    for action in ("no_such_tool", "", "write", "Hub::Action::page", "page\n"):
        assert policy.decide(call(action, BRONZE)) == Deny(("unknown-action",))


def test_no_identity_is_denied(policy: Policy) -> None:
    assert policy.decide(call("probe:own")) == Deny(("no-identity",))


@pytest.mark.parametrize(
    "identity",
    [
        Identity("tier:platinum"),
        Identity("tier:"),
        Identity("tier:Bronze"),
        Identity("tier:bronze "),
        Identity("robot:bronze"),
        Identity("bronze"),
        Identity(""),
        Identity("person:"),
        Identity('Hub::Tier::"bronze"'),
        Identity("tier:bronze", frozenset({"admin"})),
        Identity("service:game", frozenset({"admin"})),
        Identity("person:anna", frozenset({"boss"})),
        Identity("person:anna", frozenset({"admin", "boss"})),
        Identity("tier:\ud800"),
    ],
    ids=lambda who: f"{who.principal!a} {sorted(who.roles)}",  # a set's order is another in each process
)
def test_an_identity_the_schema_does_not_know_may_nothing_and_sees_nothing(policy: Policy, identity: Identity) -> None:
    assert policy.decide(call("probe:own", identity)) == ERROR
    assert policy.decide(call("probe:own", person("admin"), identity)) == ERROR
    assert policy.visible((identity,)) == frozenset()
    assert policy.visible((person("admin"), identity)) == frozenset()


def test_a_person_is_no_tier_by_its_name(policy: Policy) -> None:
    for name in ("bronze", "admin", "*", "Hub::Tier::bronze", "\ud800"):
        assert policy.decide(call("page", Identity(f"person:{name}"))) == Deny(("default-deny:retrieval",))


@pytest.mark.parametrize(
    "value",
    [1, 0, None, "false", 0.0, [], {}, [False], {"__entity": {"type": "Hub::Tier", "id": "gold"}}, float("nan")],
    ids=repr,
)
def test_a_value_of_the_wrong_type_is_denied(policy: Policy, value: object) -> None:
    assert policy.decide(call("probe:state_read", GOLD, fresh=value)) == ERROR
    assert policy.decide(call("probe:state_read", SILVER, fresh=value)) == ERROR


@pytest.mark.parametrize(
    "value",
    [2**63, 2**64, -(2**63) - 1, 1.0, True, "1", None, {"__extn": {"fn": "decimal", "arg": "1.0"}}, [1]],
    ids=repr,
)
def test_an_integer_that_is_none_is_denied_where_a_policy_reads_it(studio: Studio, value: object) -> None:
    policy = studio(
        '@id("small-pages") forbid (principal, action == Hub::Action::"read_state", resource) '
        "when { context.arguments.limit > 50 };"
    )
    assert policy.decide(call("read_state", SILVER, fresh=False, limit=50)) == Allow(("silver-looks-things-up",))
    assert policy.decide(call("read_state", SILVER, fresh=False, limit=51)) == Deny(("small-pages",))
    assert policy.decide(call("read_state", SILVER, fresh=False, limit=value)) == ERROR


@pytest.mark.parametrize(
    "value",
    [
        {"__entity": {"type": "Hub::Role", "id": "admin"}},
        {"__extn": {"fn": "ip", "arg": "127.0.0.1"}},
        {"__extn": {"fn": "unknown", "arg": "x"}},
        "\ud800",
        ["config"],
        7,
        True,
    ],
    ids=repr,
)
def test_a_smuggled_or_unwritable_value_is_denied(policy: Policy, value: object) -> None:
    assert policy.decide(call("approve_change", person("admin"), change_request={"kind": value})) == ERROR


def test_text_that_looks_like_an_escape_is_text(policy: Policy) -> None:
    kind = '{"__entity": {"type": "Hub::Role", "id": "admin"}}'
    asked = call("approve_change", person("admin"), change_request={"kind": kind})
    assert policy.decide(asked) == Deny(("unknown-kind-of-change",))


def test_arguments_that_no_policy_reads_change_nothing(policy: Policy) -> None:
    odd: dict[str, Any] = {"limit": 2**70, "radius": 0.5, "npc_id": {"__entity": {}}, "extra": object()}
    assert policy.decide(call("read_state", GOLD, fresh=False, **odd)) == Allow(("gold-reads-cached-state",))


def test_a_forbid_that_errs_denies_though_cedar_would_skip_it(studio: Studio) -> None:
    """Overflow is the one error that the validator cannot rule out."""
    policy = studio(
        '@id("overflow") forbid (principal, action == Hub::Action::"read_state", resource) '
        "when { context.arguments.limit + 1 > 100 };"
    )
    asked = call("read_state", SILVER, fresh=False, limit=2**63 - 1)
    assert policy.decide(asked) == ERROR
    raw = cedarpy.is_authorized(  # pyright: ignore[reportUnknownMemberType]  # cedarpy says plain dict
        {"principal": 'U::"a"', "action": 'Action::"w"', "resource": 'R::"r"', "context": {"n": 2**63 - 1}},
        "permit(principal, action, resource); forbid(principal, action, resource) when { context.n + 1 > 100 };",
        [],
    )
    assert raw.decision == cedarpy.Decision.Allow, "were this a Deny, the hazard and its guard could go"


def test_taint_that_is_not_a_boolean_is_denied(policy: Policy) -> None:
    unsure: Any = "no"
    assert policy.decide(call("page", SILVER)._replace(tainted=unsure)) == ERROR


def test_a_callers_chain_brings_each_persons_own_roles() -> None:
    caller = Caller(("person:anna", "tier:silver"), {"person:anna": frozenset({"sre"})}, "session")
    assert chain_of(caller) == (Identity("person:anna", frozenset({"sre"})), Identity("tier:silver"))
