"""What a yes is worth: the digest it binds, and when votes give a rule what it wants."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import get_args

from hypothesis import given
from hypothesis import strategies as st

from approvals.model import (
    Factor,
    Subject,
    Verdict,
    Via,
    Vote,
    arguments_text,
    given_by,
    met,
    parse_requirements,
    requirements_json,
)
from policies.decision import Requirement

GROUPS = ("sre", "admin", "security")
PEOPLE = ("person:anna", "person:ben", "person:cleo", "person:dora")
NOW = datetime(2026, 11, 21, tzinfo=UTC)

texts = st.text(max_size=20)
scalars = st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False) | texts
json_values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3), max_leaves=8
)
requirements = st.builds(
    Requirement,
    rule=st.sampled_from(["a", "b", "c"]),
    via=st.lists(st.sampled_from(get_args(Via)), min_size=1, unique=True).map(tuple),
    approvers=st.lists(st.sampled_from(GROUPS), min_size=1, unique=True).map(tuple),
    quorum=st.integers(1, 3),
    ttl_s=st.just(60),
    own=st.booleans(),
    rule_digest=st.sampled_from(["1", "2"]),
)
votes = st.lists(
    st.builds(
        Vote,
        voter=st.sampled_from(PEOPLE),
        verdict=st.sampled_from(get_args(Verdict)),
        via=st.sampled_from(get_args(Via)),
        factor=st.none() | st.sampled_from(get_args(Factor)),
        groups=st.frozensets(st.sampled_from(GROUPS)),
        reason=st.none(),
        at=st.just(NOW),
    ),
    max_size=5,
    unique_by=lambda vote: vote.voter,
)
askers = st.none() | st.sampled_from(PEOPLE)


def subject_of(**changed: object) -> Subject:
    usual = Subject(
        tool="ingest",
        server="rag",
        definition="d",
        arguments={"name": "lore"},
        chain=("tier:bronze",),
        sessions=("s",),
        tainted=False,
        depth=0,
        history=frozenset(),
        requirements=(Requirement("a", ("slack",), ("sre",), 1, 60, False, "1"),),  # noqa: FBT003 - a row of the table
        effect="once",
        destructive=False,
        headline="Ingest lore",
    )
    return replace(usual, **changed)


@given(json_values, json_values)
def test_another_argument_is_another_digest_and_the_same_one_the_same(one: object, other: object) -> None:
    first, second = subject_of(arguments={"value": one}), subject_of(arguments={"value": other})
    same = arguments_text(first.arguments) == arguments_text(second.arguments)
    assert (first.digest == second.digest) == same


@given(st.dictionaries(texts, json_values, max_size=5))
def test_arguments_are_kept_to_the_byte_whatever_their_order(values: dict[str, object]) -> None:
    turned = dict(reversed(values.items()))
    assert arguments_text(values) == arguments_text(turned)
    assert subject_of(arguments=values).digest == subject_of(arguments=turned).digest


def test_the_digest_binds_tool_definition_requester_and_the_rules_that_fired() -> None:
    usual = subject_of()
    rule = usual.requirements[0]
    others = [
        subject_of(tool="remove"),
        subject_of(definition="another"),
        subject_of(chain=("tier:silver",)),
        subject_of(chain=("person:anna", "tier:bronze")),
        subject_of(chain=("tier:bronze", "tier:silver")),
        subject_of(requirements=(replace(rule, rule_digest="2"),)),
        subject_of(requirements=(rule, replace(rule, rule="b"))),
        subject_of(arguments={"name": "lore", "more": None}),
    ]
    assert len({each.digest for each in (usual, *others)}) == len(others) + 1


def test_words_sessions_taint_and_the_order_of_rules_are_in_no_digest() -> None:
    rule = subject_of().requirements[0]
    both = (rule, replace(rule, rule="b"))
    for changed in ({"reason": "please"}, {"sessions": ("t",)}, {"preview": "+1"}, {"headline": "x"}, {"depth": 3}):
        assert subject_of(**changed).digest == subject_of().digest
    assert subject_of(requirements=both).digest == subject_of(requirements=both[::-1]).digest


def test_a_chain_cannot_be_spelled_as_another() -> None:
    # The requester's text joins principals with ">"; the digest takes the list, so no name can forge a border.
    assert subject_of(chain=("a>b",)).digest != subject_of(chain=("a", "b")).digest


@given(st.lists(requirements, max_size=4))
def test_requirements_are_read_as_they_were_kept(kept: list[Requirement]) -> None:
    assert parse_requirements(requirements_json(kept)) == tuple(kept)


@given(requirements, votes, askers)
def test_a_rule_is_met_by_so_many_others_of_its_groups_by_its_ways_or_by_the_askers_own_factor(
    requirement: Requirement, cast: list[Vote], asker: str | None
) -> None:
    others = {
        vote.voter
        for vote in cast
        if vote.verdict == "approve"
        and vote.voter != asker
        and vote.via in requirement.via
        and vote.groups & set(requirement.approvers)
    }
    own = requirement.own and any(
        vote.voter == asker and vote.verdict == "approve" and vote.factor and vote.via in requirement.via
        for vote in cast
    )
    assert met(requirement, cast, asker=asker) == (len(others) >= requirement.quorum or bool(own))


@given(requirements, votes, askers)
def test_no_vote_of_the_asker_and_no_denial_ever_adds_to_a_count(
    requirement: Requirement, cast: list[Vote], asker: str | None
) -> None:
    counted = [vote for vote in cast if vote.voter != asker and vote.verdict == "approve"]
    strict = replace(requirement, own=False)
    assert met(strict, cast, asker=asker) == met(strict, counted, asker=asker)
    assert given_by(cast, asker=asker).count == len(counted)
    assert given_by(cast, asker=asker).groups == frozenset(group for vote in counted for group in vote.groups)


@given(requirements, votes, askers)
def test_another_yes_never_takes_one_away(requirement: Requirement, cast: list[Vote], asker: str | None) -> None:
    for length in range(len(cast)):
        if met(requirement, cast[:length], asker=asker):
            assert met(requirement, cast, asker=asker)


@given(votes)
def test_without_an_asker_who_may_nothing_is_ones_own(cast: list[Vote]) -> None:
    assert not given_by(cast, asker=None).own
