"""What an NPC does when no model says it: rules over its state, the same each time."""

from __future__ import annotations

import inspect

import pytest

from tiers.gold import policy
from tiers.gold.intents import ALONE, TOWARDS, Present, Scene

ANNA, WOLF, MARLOW = Present("player-anna", "player"), Present("wolf", "npc"), Present("marlow", "npc")


def scene(**more: object) -> Scene:
    fields: dict[str, object] = {"version": 3, "place": "quay", "present": (ANNA,)}
    return Scene(**(fields | more))  # pyright: ignore[reportArgumentType]  # a test's own fields


@pytest.mark.parametrize(
    ("state", "line", "rule"),
    [
        ({"disposition": {"wolf": -90}, "present": (WOLF,)}, "attack wolf", "attacks_whom_it_hates"),
        ({"disposition": {"wolf": -50}, "present": (WOLF,), "mood": "angry"}, "attack wolf", "attacks_whom_it_hates"),
        ({"disposition": {"wolf": -50}, "present": (WOLF,)}, "watch wolf", "watches_enemies"),
        ({"disposition": {"wolf": -90}, "present": (WOLF,), "health": 20}, "flee wolf", "flees_when_weak_or_afraid"),
        (
            {"disposition": {"wolf": -90}, "present": (WOLF,), "mood": "scared"},
            "flee wolf",
            "flees_when_weak_or_afraid",
        ),
        ({"disposition": {"wolf": -90}, "health": 20}, "rest", "rests_when_weak"),
        ({"mood": "terrified", "present": ()}, "hide", "hides_when_afraid"),
        ({"disposition": {"player-anna": 50}}, "greet player-anna", "meets_friends"),
        ({"disposition": {"player-anna": 90}}, "approach player-anna", "meets_friends"),
        ({}, "watch player-anna", "watches_strangers"),
        ({"present": (MARLOW,), "role": "Night Guard"}, "patrol", "patrols_on_duty"),
        ({"present": (MARLOW,)}, "wait", "nothing_to_do"),
        ({"alive": False, "disposition": {"player-anna": -90}}, "wait", "dead"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_npc_acts_on_its_state(state: dict[str, object], line: str, rule: str) -> None:
    assert policy.decide(scene(**state)) == (line, rule)


def test_an_npc_of_which_nothing_is_known_waits() -> None:
    assert policy.decide(None) == ("wait", "nothing_known")


def test_the_worst_enemy_counts_and_equals_are_told_apart_by_id() -> None:
    bear = Present("bear", "npc")
    both = scene(present=(WOLF, bear), disposition={"wolf": -90, "bear": -90})
    assert policy.decide(both)[0] == "attack bear"
    assert policy.decide(scene(present=(WOLF, bear), disposition={"wolf": -95, "bear": -90}))[0] == "attack wolf"


def test_nobody_who_is_not_there_is_a_target() -> None:
    away = scene(present=(), disposition={"wolf": -100, "player-anna": 100})
    assert [wanted.line for wanted, _ in policy.wants(away)] == ["wait"]


def test_the_same_state_gives_the_same_answer_whatever_the_order() -> None:
    leaning = {"wolf": -90, "player-anna": 70}
    answers = {
        policy.decide(scene(present=p, disposition=leaning)) for p in ((ANNA, WOLF, MARLOW), (MARLOW, WOLF, ANNA))
    }
    assert answers == {("attack wolf", "attacks_whom_it_hates")}


@pytest.mark.parametrize(
    ("choices", "line"),
    [
        (("attack", "flee"), "attack"),
        (("Attack wolf", "flee"), "Attack wolf"),
        (("flee", "observe"), "observe"),
        (("attack player-anna", "hold"), "hold"),
        (("dance", "sing"), "dance"),
    ],
    ids=str,
)
def test_an_answer_is_one_of_the_choices_and_never_another_target(choices: tuple[str, ...], line: str) -> None:
    assert policy.decide(scene(present=(WOLF,), disposition={"wolf": -90}), choices)[0] == line


def test_without_knowledge_what_harms_nobody_is_chosen() -> None:
    assert policy.decide(None, ("attack", "flee", "wait")) == ("wait", "nothing_known")
    assert policy.decide(None, ("attack", "stay")) == ("stay", "calm")
    assert policy.decide(None, ("left", "right")) == ("left", "first_choice")


def test_everything_a_rule_wants_is_an_intent_that_gold_knows() -> None:
    for health in (10, 100):
        for mood in ("calm", "angry", "afraid"):
            for leaning in (-90, -50, 0, 50, 90):
                state = scene(health=health, mood=mood, disposition={"player-anna": leaning}, role="guard")
                for wanted, _ in policy.wants(state):
                    assert wanted.kind in {*ALONE, *TOWARDS}


def test_the_policy_waits_for_nothing() -> None:
    assert not any(inspect.iscoroutinefunction(each) for each in vars(policy).values())
