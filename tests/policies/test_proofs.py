from __future__ import annotations

from itertools import chain, combinations, product

import pytest

from policies.catalogue import GROUPS, MODIFIERS, Catalogue, Entry
from policies.checks import promises
from policies.decision import Allow, Approval, Ask, Identity, Question
from policies.engine import Policy
from policies.probes import with_probes
from policies.proofs import proves_denied
from policies.rules import Rule
from tests.policies.oracle import ALL_FACTS, APPROVALS, IDENTITIES, KINDS_THAT_DESTROY, approval, person
from tests.policies.rooms import WORLD

ROLES = ("designer", "engineer", "sre", "security", "admin")
AGENTS = (Identity("tier:gold"), Identity("tier:silver"), Identity("tier:bronze"), Identity("service:any"))
PEOPLE = [person(*roles) for roles in chain.from_iterable(combinations(ROLES, n) for n in range(len(ROLES) + 1))]

# Every group with every set of modifiers, whether or not a tool has them today.
SHAPES = [
    Entry("+".join([f"shape:{group}", *sorted(modifiers)]), "shapes", group, frozenset(modifiers))
    for group in GROUPS
    for modifiers in chain.from_iterable(combinations(MODIFIERS, n) for n in range(len(MODIFIERS) + 1))
]


@pytest.fixture(scope="module")
def shapes() -> Policy:
    return Policy.load(with_probes(Catalogue.of([WORLD])).with_entries(SHAPES))


def operations(policy: Policy, *marks: str) -> list[str]:
    return [e.name for e in policy.catalogue.entries.values() if {e.group, *e.modifiers} & set(marks)]


def test_no_principal_and_no_argument_reaches_a_gated_operation_without_approval(shapes: Policy) -> None:
    gated = operations(shapes, "write", "admin_change", "destructive")
    assert len(gated) > 100
    assert [name for name in gated if not proves_denied(shapes, name)] == []


def test_what_is_not_gated_is_not_proved_denied(shapes: Policy) -> None:
    gated = set(operations(shapes, "write", "admin_change", "destructive"))
    open_to_some = [name for name in shapes.catalogue.entries if name not in gated]
    assert [name for name in open_to_some if proves_denied(shapes, name)] == []


def test_no_tainted_session_reaches_a_changing_or_carrying_operation_without_approval(shapes: Policy) -> None:
    held = operations(shapes, "queued", "security_scan", "write", "admin_change", "external", "destructive")
    assert [name for name in held if not proves_denied(shapes, name, tainted=True)] == []


def test_no_tier_scans_and_bronze_carries_nothing_out_without_approval(shapes: Policy) -> None:
    for tier in AGENTS[:3]:
        assert all(proves_denied(shapes, name, identity=tier) for name in operations(shapes, "security_scan"))
    assert all(proves_denied(shapes, name, identity=AGENTS[2]) for name in operations(shapes, "external"))


def test_no_person_queues_a_change_without_approval(shapes: Policy) -> None:
    for who, name in product(PEOPLE, operations(shapes, "queued")):
        assert proves_denied(shapes, name, identity=who), (who, name)


def test_one_vote_does_not_let_an_agent_destroy_and_two_do(shapes: Policy) -> None:
    one, two = approval("slack", 1, "sre", "admin", "security"), approval("slack", 2, "sre", "admin", "security")
    for agent, name in product(AGENTS, operations(shapes, "destructive")):
        assert proves_denied(shapes, name, identity=agent, approval=one), (agent, name)
    assert not proves_denied(shapes, "remove_document", identity=AGENTS[2], approval=two)
    for kind in KINDS_THAT_DESTROY:
        known = {"change_request.kind": kind}
        assert proves_denied(shapes, "approve_change", identity=AGENTS[2], approval=one, arguments=known)
        assert not proves_denied(shapes, "approve_change", identity=AGENTS[2], approval=two, arguments=known)


def test_no_own_yes_opens_anything_for_an_agent(shapes: Policy) -> None:
    own = approval("mfa", 0, own=True)
    gated = operations(shapes, "write", "admin_change", "destructive")
    for agent in AGENTS:
        assert [name for name in gated if not proves_denied(shapes, name, identity=agent, approval=own)] == []
    assert not proves_denied(shapes, "remove_document", identity=person("designer"), approval=own)


def test_gold_and_silver_never_spend_nor_wait_nor_write(shapes: Policy) -> None:
    everything = approval("mfa", 9, "sre", "admin", "security")
    for tier in AGENTS[:2]:
        for name in operations(shapes, "long_running", "spend", "write", "admin_change"):
            assert proves_denied(shapes, name, identity=tier, approval=everything), (tier, name)


def test_nobody_goes_deeper_than_the_cap(shapes: Policy) -> None:
    everything = approval("mfa", 9, "sre", "admin", "security")
    assert all(proves_denied(shapes, name, depth=9, approval=everything) for name in shapes.catalogue.entries)


def test_an_unknown_kind_of_change_is_nobodys(shapes: Policy) -> None:
    everything = approval("mfa", 9, "sre", "admin", "security")
    assert proves_denied(
        shapes, "approve_change", arguments={"change_request.kind": "format_disk"}, approval=everything
    )


def test_a_stranger_reaches_what_is_everybodys_and_no_more(shapes: Policy) -> None:
    everything = approval("mfa", 9, "sre", "admin", "security")
    reached = {
        n for n in shapes.catalogue.entries if not proves_denied(shapes, n, identity=person(), approval=everything)
    }
    assert reached == {e.name for e in shapes.catalogue.entries.values() if e.group == "own"}


GATES = [rule for rule in Policy.load(Catalogue(())).rules.values() if rule.requirement]


@pytest.mark.parametrize("rule", GATES, ids=lambda rule: rule.id)
def test_each_promise_of_an_annotation_opens_its_own_gate_and_nothing_less_does(policy: Policy, rule: Rule) -> None:
    requirement = rule.requirement
    assert requirement is not None
    asked = next(question for question in gated_calls(policy) if rule.id in asking(policy, question))
    for promise in promises(requirement):
        assert rule.id not in asking(policy, asked_by(asked, promise)._replace(approval=promise)), promise
    less = [
        Approval(frozenset({"slack"}), requirement.quorum - 1, frozenset(), own=False),
        Approval(frozenset({"slack", "mfa", "local"} - set(requirement.via)), 9, frozenset(requirement.approvers)),
        Approval(frozenset({"slack", "mfa"}), 9, frozenset({"designer"})),
    ]
    if requirement.quorum > 1:
        less.append(Approval(frozenset({"slack", "mfa"}), requirement.quorum - 1, frozenset(requirement.approvers)))
    if not requirement.own:
        less.append(approval("mfa", 0, own=True))
    for short in less:
        assert rule.id in asking(policy, asked._replace(approval=short)), short


def gated_calls(policy: Policy) -> list[Question]:
    kinds = ({"change_request": {"kind": "config"}}, {"change_request": {"kind": "redeploy"}})
    return [
        Question(name, (who,), arguments, tainted, 0, frozenset(), ALL_FACTS)
        for name in policy.catalogue.entries
        for who in IDENTITIES
        for arguments in (kinds if "approve" in name else ({"fresh": False},))
        for tainted in (False, True)
    ]


def asking(policy: Policy, question: Question) -> tuple[str, ...]:
    decision = policy.decide(question)
    return decision.rules if isinstance(decision, Ask) else ()


def asked_by(question: Question, promise: Approval) -> Question:
    """An own yes is a person's alone; every gate that takes one is shut to a person with this role too."""
    return question._replace(identities=(person("admin"),)) if promise.own else question


def test_the_approval_that_meets_every_requirement_turns_each_ask_into_an_allow(policy: Policy) -> None:
    for question in gated_calls(policy):
        if isinstance(policy.decide(question), Ask):
            best = policy.best_approval
            assert isinstance(policy.decide(question._replace(approval=best)), Allow), question


def test_an_approval_never_turns_an_allow_into_anything_else(policy: Policy) -> None:
    for question in gated_calls(policy):
        if isinstance(policy.decide(question), Allow):
            assert all(isinstance(policy.decide(question._replace(approval=a)), Allow) for a in APPROVALS), question
