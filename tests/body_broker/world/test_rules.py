"""Owns the proof of the rules by which an engine decides: on examples, and on many worlds that nobody thought of."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from body_broker.world.kinds import KINDS, LEANINGS_MAX, references, text_in
from body_broker.world.model import Change, Effect, Entity, Kind, Verdict
from body_broker.world.operations import OPERATIONS
from body_broker.world.overlay import Overlay
from body_broker.world.recorder import play
from body_broker.world.rules import decide, signature
from tests.body_broker.world.scene import NOW, change, entities, judged

IDS = sorted(entities())


def decided(*changes: Change) -> list[tuple[str, str]]:
    """Each change's id and its state or rule, in the order of deciding."""
    return [(v.change_id, v.rule or v.state) for v in decide(changes, entities(), 7, now=NOW)]


def test_a_stale_version_is_a_conflict_that_names_the_present_one() -> None:
    verdict = judged(change("mara", "set", {"fields": {"mood": "afraid"}}, expect_version=4))

    assert (verdict.state, verdict.current_version, verdict.effects) == ("conflict", 1, ())


def test_only_what_commutes_goes_without_a_version() -> None:
    assert judged(change("mara", "hurt", {"by": 1}, expect_version=None)).state == "applied"
    assert judged(change("mara", "move", {"to": "alley"}, expect_version=None)).state == "conflict"


def test_of_two_that_saw_the_same_version_the_second_is_a_conflict() -> None:
    first, second = (change("mara", "move", {"to": "alley"}, seq=n) for n in (1, 2))

    assert decided(first, second) == [("sch_1", "applied"), ("sch_2", "conflict")]


def test_players_go_before_the_game_and_the_game_before_everybody_else_then_priority_then_order() -> None:
    asked = [
        change("mara", "hurt", {"by": 1}, seq=seq, rank=rank, priority=priority)
        for seq, rank, priority in ((1, 0, 9), (2, 1, 0), (3, 2, 0), (4, 1, 5), (5, 1, 0))
    ]

    assert [change_id for change_id, _ in decided(*asked)] == ["sch_3", "sch_4", "sch_2", "sch_5", "sch_1"]


def test_what_has_expired_or_is_caused_too_deeply_is_not_applied() -> None:
    assert judged(change("mara", "hurt", {"by": 1}, expires_at=NOW)).state == "expired"
    assert judged(change("mara", "hurt", {"by": 1}, expires_at=NOW + timedelta(microseconds=1))).state == "applied"
    assert judged(change("mara", "hurt", {"by": 1}, depth=8)).state == "applied"
    assert judged(change("mara", "hurt", {"by": 1}, depth=9)).rule == "depth"


def test_a_change_that_is_among_its_own_causes_is_refused() -> None:
    mine = signature("mara", "say", {"text": "You first."})

    looped = change("mara", "say", {"text": "You first."}, ancestry=frozenset({"other", mine}))
    assert judged(looped).rule == "same_cause"
    assert judged(change("mara", "say", {"text": "No, you."}, ancestry=frozenset({mine}))).state == "applied"
    assert judged(change("ben", "say", {"text": "You first."}, ancestry=frozenset({mine}))).state == "applied"


def test_a_batch_is_applied_whole_or_not_at_all() -> None:
    whole = [
        change("mara", "move", {"to": "alley"}, seq=1, batch="b"),
        change("mara", "hurt", {"by": 5}, seq=2, batch="b"),
    ]
    assert decided(*whole) == [("sch_1", "applied"), ("sch_2", "applied")]

    broken = [*whole, change("olga", "say", {"text": "…"}, seq=3, batch="b")]
    assert decided(*broken) == [("sch_1", "batch"), ("sch_2", "batch"), ("sch_3", "dead_actor")]


def test_a_batch_that_falls_leaves_no_trace_for_those_after_it() -> None:
    asked = [
        change("mara", "die", {}, seq=1, batch="b"),
        change("slab", "give", {"to": "mara"}, seq=2, batch="b"),
        change("mara", "move", {"to": "alley"}, seq=3),
    ]

    assert decided(*asked) == [("sch_1", "batch"), ("sch_2", "not_held"), ("sch_3", "applied")]


def test_versions_within_a_batch_are_those_before_it() -> None:
    asked = [
        change("mara", "hurt", {"by": 1}, seq=1, batch="b", expect_version=None),
        change("mara", "move", {"to": "alley"}, seq=2, batch="b", expect_version=1),
    ]

    assert [state for _, state in decided(*asked)] == ["applied", "applied"]


def test_what_a_batch_makes_its_later_changes_use() -> None:
    asked = [
        change("coin", "spawn", {"kind": "item", "data": {"name": "A coin"}}, seq=1, batch="b", expect_version=None),
        change("coin", "set", {"fields": {"description": "Worn."}}, seq=2, batch="b", expect_version=1),
    ]

    assert [state for _, state in decided(*asked)] == ["applied", "applied"]


def test_an_operation_that_fails_inside_is_refused_and_the_world_goes_on() -> None:
    broken = Entity(id="mara", kind="npc", region="harbour", version=1, tick=1, data={"health": "none"})
    world = {**entities(), "mara": broken}
    asked = [change("mara", "hurt", {"by": 1}, seq=1), change("ben", "hurt", {"by": 1}, seq=2)]

    assert [v.rule or v.state for v in decide(asked, world, 7, now=NOW)] == ["fault", "applied"]


SOME_ID = st.sampled_from([*IDS, "nobody", "newcomer"])
PAYLOADS: Mapping[str, st.SearchStrategy[dict[str, Any]]] = {
    "set": st.fixed_dictionaries(
        {
            "fields": st.dictionaries(
                st.sampled_from(["name", "mood", "exits", "weather", "health"]), st.text(max_size=5)
            )
        }
    ),
    "add": st.fixed_dictionaries(
        {
            "field": st.sampled_from(["sanity", "danger", "disposition", "stance", "value"]),
            "by": st.integers(-200, 200),
        },
        optional={"key": SOME_ID},
    ),
    "spawn": st.fixed_dictionaries(
        {"kind": st.sampled_from(sorted(KINDS)), "data": st.fixed_dictionaries({"name": st.just("Somebody")})},
        optional={"region": SOME_ID},
    ),
    "say": st.fixed_dictionaries({"text": st.just("Hello.")}, optional={"to": SOME_ID}),
    "append_memory": st.fixed_dictionaries({"text": st.just("A smell.")}, optional={"by": SOME_ID}),
    "hurt": st.fixed_dictionaries({"by": st.integers(-5, 120)}),
    "heal": st.fixed_dictionaries({"by": st.integers(1, 100)}),
    "set_flag": st.fixed_dictionaries({"value": st.one_of(st.booleans(), st.integers(), st.text(max_size=3))}),
    "set_weather": st.fixed_dictionaries({"weather": st.sampled_from(["rain", "frogs"])}),
    "set_time": st.fixed_dictionaries({"time_of_day": st.sampled_from(["dusk", "noon"])}),
    "advance_quest": st.fixed_dictionaries(
        {},
        optional={"state": st.sampled_from(["available", "active", "done"]), "stage": st.sampled_from(["find", "x"])},
    ),
    "join_quest": st.fixed_dictionaries({"player": SOME_ID}),
    "give": st.fixed_dictionaries({"to": SOME_ID}),
    "move": st.fixed_dictionaries({"to": SOME_ID}),
    "relocate": st.fixed_dictionaries({"to": SOME_ID}),
    "take": st.fixed_dictionaries({"by": SOME_ID}),
    "revive": st.just({}),
    "die": st.just({}),
    "drop": st.just({}),
    "destroy": st.just({}),
    "remove": st.just({}),
}


@st.composite
def changes(draw: st.DrawFn) -> list[Change]:
    """Up to thirty changes of any kind, good and bad, some in batches."""
    count = draw(st.integers(1, 30))
    found: list[Change] = []
    for seq in range(count):
        op = draw(st.sampled_from(sorted(OPERATIONS)))
        found.append(
            change(
                draw(SOME_ID),
                op,
                draw(PAYLOADS[op]),
                seq=seq,
                rank=draw(st.integers(0, 2)),
                priority=draw(st.integers(0, 9)),
                batch=draw(st.sampled_from([None, None, None, "a", "b"])),
                expect_version=draw(st.sampled_from([None, None, 1, 1, 2])),
                depth=draw(st.sampled_from([0, 0, 0, 9])),
                tainted=draw(st.booleans()),
                expires_at=NOW + timedelta(seconds=draw(st.sampled_from([5, 5, 5, -5]))),
            )
        )
    return found


def left_behind(asked: Sequence[Change], verdicts: Sequence[Verdict]) -> Mapping[str, Entity]:
    """The world as the record would have it."""
    by_id = {each.id: each for each in asked}
    steps = [(effect, by_id[v.change_id]) for v in verdicts for effect in v.effects]
    return {**entities(), **play(steps, entities(), after_pos=0, epoch=1, tick=7)[1]}


def test_every_operation_is_among_the_changes_that_are_tried() -> None:
    assert PAYLOADS.keys() == OPERATIONS.keys()


@given(changes())
def test_each_change_gets_one_verdict_whatever_order_they_came_in(asked: list[Change]) -> None:
    verdicts = decide(asked, entities(), 7, now=NOW)

    assert Counter(v.change_id for v in verdicts) == Counter(each.id for each in asked)
    assert decide(asked[::-1], entities(), 7, now=NOW) == verdicts
    assert all(bool(v.effects) == (v.state == "applied") for v in verdicts)
    assert all((v.rule is not None) == (v.state == "rejected") for v in verdicts)
    assert all((v.current_version is not None) == (v.state == "conflict") for v in verdicts)


@given(changes())
def test_a_batch_is_never_applied_in_part(asked: list[Change]) -> None:
    states = {v.change_id: v.state for v in decide(asked, entities(), 7, now=NOW)}

    for batch in ("a", "b"):
        assert len({states[each.id] == "applied" for each in asked if each.batch == batch}) <= 1


@given(changes())
def test_every_version_is_the_number_of_its_events(asked: list[Change]) -> None:
    verdicts = decide(asked, entities(), 7, now=NOW)
    steps = Counter(effect.entity_id for v in verdicts for effect in v.effects)

    for each in left_behind(asked, verdicts).values():
        assert each.version == steps[each.id] + (1 if each.id in entities() else 0)


@given(changes())
def test_the_world_stays_one_that_fits_its_kinds_and_that_hands_and_items_agree_on(asked: list[Change]) -> None:
    world = left_behind(asked, decide(asked, entities(), 7, now=NOW))

    for each in world.values():
        data = {name: value for name, value in each.data.items() if value is not None}
        KINDS[each.kind].model_validate(data)
        if not each.removed:
            for item in each.data.get("inventory", []):
                assert world[item].data.get("holder") == each.id, (each, item)
        if each.kind == "item" and not each.removed and each.data.get("holder") is not None:
            assert each.id in world[each.data["holder"]].data["inventory"]
        if each.kind in {"npc", "player"}:
            assert each.data["alive"] == (each.data["health"] > 0)
        place = world.get(each.data.get("place") or "")
        if each.kind in {"npc", "player"} and place is not None and not place.removed:
            assert each.region == place.region


@given(changes())
def test_what_refers_to_something_referred_to_it_while_it_was_there(asked: list[Change]) -> None:
    world = left_behind(asked, decide(asked, entities(), 7, now=NOW))

    for each in world.values():
        assert references(each.kind, each.data) <= world.keys()


@given(changes())
def test_the_dead_do_nothing_and_the_gone_stay_as_they_were(asked: list[Change]) -> None:
    world = Overlay(entities())
    by_id = {each.id: each for each in asked}
    for verdict in decide(asked, entities(), 7, now=NOW):
        asked_for = by_id[verdict.change_id]
        entity = world.get(asked_for.entity_id)
        for effect in verdict.effects:
            assert effect.entity_id not in world or not world[effect.entity_id].removed
        if verdict.effects and entity is not None and entity.data.get("alive") is False:
            assert OPERATIONS[asked_for.op].on_the_dead
        world.apply(verdict.effects, 7)


@given(changes())
def test_a_taint_is_never_lost_where_words_go_into_the_world(asked: list[Change]) -> None:
    by_id = {each.id: each for each in asked}
    kinds: dict[str, Kind] = {each.id: each.kind for each in entities().values()}
    for verdict in decide(asked, entities(), 7, now=NOW):
        for effect in verdict.effects:
            kind = kinds.setdefault(effect.entity_id, effect.kind or "npc")
            if text_in(kind, effect.patch) and by_id[verdict.change_id].tainted:
                assert effect.outside


def test_what_is_in_a_place_is_known_through_every_overlay() -> None:
    world = Overlay(entities())
    assert sorted(world.inside("morgue")) == ["anna", "mara", "olga", "scalpel", "shards", "slab"]
    world.apply([Effect(entity_id="mara", type="moved", patch={"place": "alley"})], 7)
    trial = Overlay(world)
    trial.apply([Effect(entity_id="anna", type="removed", removed=True)], 7)
    trial.apply([Effect(entity_id="ben", type="moved", patch={"place": "morgue"}, region="hills")], 7)
    assert sorted(trial.inside("morgue")) == ["ben", "olga", "scalpel", "shards", "slab"]
    assert sorted(trial.inside("hills")) == ["ben", "chapel"]
    assert sorted(world.inside("morgue")) == ["anna", "olga", "scalpel", "shards", "slab"]


class Counted(dict[str, Entity]):
    """Entities that count how often all of them are looked through."""

    looks = 0

    def values(self):  # noqa: ANN201 - as dict's
        self.looks += 1
        return super().values()


def test_a_tick_that_removes_many_places_looks_through_the_world_once() -> None:
    world = Counted(entities())
    for n in range(20):
        world[f"p{n}"] = Entity(id=f"p{n}", kind="place", region="hills", version=1, tick=1, data={"name": "P"})
    asked = [change(f"p{n}", "remove", seq=n + 1) for n in range(20)]
    assert {each.state for each in decide(asked, world, 7, now=NOW)} == {"applied"}
    assert world.looks == 1


def test_a_map_of_leanings_takes_as_many_as_it_may_hold_and_no_more() -> None:
    world = entities()
    for n in range(LEANINGS_MAX + 1):
        world[f"n{n}"] = Entity(id=f"n{n}", kind="npc", region=None, version=1, tick=1, data={"name": "N"})
    lean = {"field": "disposition", "by": 1}
    asked = [
        change("mara", "add", {**lean, "key": f"n{n}"}, seq=n + 1, expect_version=None) for n in range(LEANINGS_MAX + 1)
    ]
    asked.append(change("mara", "add", {**lean, "key": "n0"}, seq=500, expect_version=None))
    asked.append(change("mara", "set", {"fields": {"mood": "afraid"}}, seq=501, expect_version=LEANINGS_MAX + 2))
    *most, last, again, then = decide(asked, world, 7, now=NOW)
    assert {each.state for each in most} == {"applied"}
    assert (last.rule, again.state, then.state) == ("too_many", "applied", "applied")


def test_overlays_count_and_list_what_is_under_them_and_new() -> None:
    world = Overlay({"a": entities()["mara"]})
    world.changed["b"] = entities()["ben"]

    assert (sorted(world), len(world)) == (["a", "b"], 2)
