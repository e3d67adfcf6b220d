from __future__ import annotations

from itertools import count
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies import engine
from policies.catalogue import Catalogue
from policies.decision import Allow, Deny, Identity, Question
from policies.engine import Policy
from tests.policies.conftest import Studio
from tests.policies.oracle import ALL_FACTS, IDENTITIES, call

STUDIO = """
@id("small-pages") forbid (principal, action == Hub::Action::"read_state", resource)
when { context.arguments.limit > 50 };
@id("not-the-north") forbid (principal, action == Hub::Action::"read_state", resource)
when { context.arguments has region && context.arguments.region like "north*" };
@id("not-health") forbid (principal, action == Hub::Action::"read_state", resource)
when { context.arguments.fields.contains("health") && context.history.contains("own") };
@id("not-so-deep") forbid (principal, action == Hub::Action::"read_state", resource)
when { context.arguments has "deep.deepest.bottom" && context.arguments["deep.deepest.bottom"] == "mud" };
"""

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-1, 60),
    st.sampled_from([0.0, 1.0, 2**63, 2**64, -(2**63)]),
    st.sampled_from(["", "1", "True", "north", "northern", "south", "health", "mood", "mud", "config", "x" * 300]),
)
values = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.sampled_from(["kind", "level", "deepest", "bottom", "op"]), inner, max_size=3),
    ),
    max_leaves=4,
)
arguments = st.dictionaries(
    st.sampled_from(["fresh", "limit", "region", "fields", "deep", "change_request", "change"]), values, max_size=6
)
good = st.fixed_dictionaries(
    {
        "fresh": st.booleans(),
        "limit": st.integers(45, 55),
        "region": st.sampled_from([None, "north", "south"]),
        "fields": st.lists(st.sampled_from(["health", "mood"]), max_size=3),
        "deep": st.sampled_from([None, {"level": 1, "deepest": {"bottom": "mud"}}]),
    }
)
questions = st.builds(
    Question,
    action=st.sampled_from(["read_state", "approve_change", "queue_change", "page", "remove_document"]),
    identities=st.lists(st.sampled_from(IDENTITIES), min_size=1, max_size=2).map(tuple),
    arguments=st.one_of(good, arguments),
    tainted=st.booleans(),
    depth=st.sampled_from([0, 8, 9]),
    history=st.sampled_from([frozenset[str](), frozenset({"own"}), frozenset({"own", "draft"})]),
    facts=st.sampled_from([frozenset[str](), ALL_FACTS]),
)


@pytest.fixture(scope="module")
def remembering(tmp_path_factory: pytest.TempPathFactory, catalogue: Catalogue) -> Policy:
    """One policy over all examples, so that each meets what the others left."""
    folder = tmp_path_factory.mktemp("studio")
    (folder / "studio.cedar").write_text(STUDIO, encoding="utf-8")
    return Policy.load(catalogue, folder)


@settings(max_examples=500, deadline=None)
@given(question=questions)
def test_what_is_remembered_is_what_would_be_decided(remembering: Policy, question: Question) -> None:
    entry = remembering.catalogue.entries[question.action]
    decided = remembering._decide(entry, question)  # pyright: ignore[reportPrivateUsage]  # what the memo stands before
    assert remembering.decide(question) == decided
    assert remembering.decide(question) == decided


def read(**more: Any) -> Question:
    usual: dict[str, Any] = {"fresh": False, "limit": 1, "fields": []}
    return call("read_state", Identity("tier:silver"), **usual | more)


def remembered(policy: Policy) -> int:
    return len(policy._memo)  # pyright: ignore[reportPrivateUsage]  # how much is kept shows nowhere else


def test_a_decision_is_made_once_for_what_the_policies_read(studio: Studio) -> None:
    policy = studio(STUDIO)
    first = policy.decide(read(npc_id="a", radius=1.5))
    assert policy.decide(read(npc_id="b", radius=2.5)) is first
    assert remembered(policy) == 1
    assert policy.decide(read(limit=51)) == Deny(("small-pages",))


def test_one_and_true_are_not_the_same_value(studio: Studio) -> None:
    policy = studio(STUDIO)
    assert isinstance(policy.decide(read(limit=1)), Allow)
    assert policy.decide(read(limit=True)) == Deny(("policy-error",))
    assert policy.decide(read(limit=1.0)) == Deny(("policy-error",))


def test_long_texts_and_real_approvals_are_not_remembered(studio: Studio) -> None:
    policy = studio(STUDIO)
    for long in ({"region": "n" * 257}, {"fields": ["m" * 200, "m" * 100]}, {"region": "north" + "n" * 300}):
        policy.decide(read(**long))
    assert remembered(policy) == 0
    policy.decide(read(region="n" * 256))
    assert remembered(policy) == 1


def test_the_oldest_unused_decisions_are_forgotten(studio: Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "MEMO_MAX", 50)
    policy = studio(STUDIO)
    kept, ages = read(limit=-1), count()
    first = policy.decide(kept)
    while remembered(policy) < engine.MEMO_MAX:
        policy.decide(read(region=f"r{next(ages)}"))
    assert policy.decide(kept) is first
    policy.decide(read(region="one more"))
    assert remembered(policy) == engine.MEMO_MAX
    assert policy.decide(kept) is first, "used lately"
