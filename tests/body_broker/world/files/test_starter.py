"""The starter world: as large as was asked for, sound, told by its lore, walkable, and with no plot that cannot be played to its end."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from graphlib import TopologicalSorter
from typing import Any

import pytest

from body_broker.world.canon.model import FlagTerm, ItemTerm, Leaf, NodeTerm, PlotGraph, PlotNode, Requires
from body_broker.world.files.checking import STARTER, World, examine
from body_broker.world.files.model import data_of, region_of
from body_broker.world.model import ENTITY_ID

WORDS = range(60, 215)
_SMALL = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"),
    *("thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"),
)
_TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
DEMO = ("lantern in the bow for each", "counts the dead of Ashmere Quay for the tax on mourning")


@pytest.fixture(scope="module")
def world() -> World:
    found, problems = examine(STARTER)
    assert problems == []
    return found


@pytest.fixture(scope="module")
def told(world: World) -> str:
    """All lore in one line, in lower case."""
    return " ".join(" ".join(entry.text or "" for entry in world.lore).lower().split())


def entries(world: World, kind: str) -> Mapping[str, dict[str, Any]]:
    return {entry.id: data_of(entry) | {"region": region_of(entry)} for k, entry in world.entities if k == kind}


def test_it_is_sound_and_nothing_in_it_is_odd(world: World) -> None:
    assert world.warnings == []


def test_it_holds_as_much_as_was_asked_for(world: World) -> None:
    counts = world.counts()

    assert counts["regions"] >= 4
    assert counts["places"] >= 20
    assert 4 <= counts["factions"] <= 6
    assert sum(npc["alive"] for npc in entries(world, "npc").values()) >= 25
    assert counts["items"] >= 20
    assert counts["quests"] >= 10
    assert counts["flags"] >= 10
    assert counts["facts"] >= 60
    assert counts["plots"] == 3
    assert counts["lore"] >= 60


def test_every_entry_of_the_lore_is_a_page_and_none_is_there_twice(world: World) -> None:
    for entry in world.lore:
        assert len((entry.text or "").split()) in WORDS, entry.id
        assert (entry.text or "").startswith(f"# {entry.title}\n"), entry.id
    assert len({entry.title for entry in world.lore}) == len(world.lore)
    sentences = [s for entry in world.lore for s in re.split(r"(?<=[.!?])\s+", " ".join((entry.text or "").split()))]
    long = [sentence for sentence in sentences if len(sentence) > 60]
    assert len(set(long)) == len(long), "no sentence is told twice"


def test_the_lore_tells_of_everybody_and_every_place_and_faction_by_name(world: World, told: str) -> None:
    named = {data["name"] for kind in ("npc", "place", "faction", "region") for data in entries(world, kind).values()}

    assert [name for name in sorted(named) if name.lower() not in told] == []


def test_it_has_what_the_demo_asks_for(told: str) -> None:
    assert [sentence for sentence in DEMO if sentence.lower() not in told] == []


def test_what_the_facts_say_stands_in_the_documents_that_they_name(world: World) -> None:
    texts = {entry.id: " ".join((entry.text or "").split()).lower() for entry in world.lore}
    kinds = ("npc", "place", "item", "faction", "region")
    names = {one: data["name"].lower() for kind in kinds for one, data in entries(world, kind).items()}
    counted = {fact.key for fact in world.facts if fact.predicate == "age" or fact.predicate.startswith("number_of")}
    for fact in world.facts:
        text = texts[fact.source.removeprefix("lore:")]
        assert named(names.get(fact.subject, fact.subject.lower()), text), fact.key
        if fact.predicate in {"eye_colour", "spouse", "father", "holds", "wears_body_of", "aboard", "alias"}:
            assert named(names.get(str(fact.object), str(fact.object).lower()), text), fact.key
        if fact.key in counted and fact.key != "isaure_lyle.age":  # hers is told by the year in which she was born
            assert isinstance(fact.object, int)
            assert spelled(fact.object) in text, fact.key


def named(name: str, text: str) -> bool:
    """Whether a text names somebody or something, by any word of the name."""
    return any(word.rstrip("s") in text for word in name.split() if word not in {"the", "of", "a"})


def spelled(number: int) -> str:
    """A whole number below 100, or the steps of a stair, as a text says it."""
    if number == 211:
        return "two hundred and eleven"
    if number < 20:
        return _SMALL[number]
    ten, one = divmod(number, 10)
    return _TENS[ten - 2] + (f"-{_SMALL[one]}" if one else "")


def test_who_knows_a_secret_of_the_lore_is_somebody_of_this_world(world: World) -> None:
    secret = [entry for entry in world.lore if entry.known_by]

    assert len(secret) >= 8
    assert {entry.spoiler_level or 0 for entry in world.lore} >= {0, 1, 2, 3, 4, 5}


def test_every_place_is_reached_on_foot_or_by_boat_from_every_other(world: World) -> None:
    exits = {here: set(data["exits"]) for here, data in entries(world, "place").items()}

    for start in exits:
        seen = {start}
        edge = {start}
        while edge := {there for here in edge for there in exits[here]} - seen:
            seen |= edge
        assert seen == exits.keys(), start
    assert all(here in exits[there] for here in exits for there in exits[here]), "every way leads back"


def test_everybody_has_a_part_and_some_are_driven_by_gold(world: World) -> None:
    npcs = entries(world, "npc")

    assert all(npc["role"] and npc["description"] and npc["persona"] and npc["memories"] == [] for npc in npcs.values())
    assert all(npc["place"] for npc in npcs.values())
    assert sum(npc["driver"] == "tier:gold" for npc in npcs.values()) >= 6
    assert {place["region"] for place in entries(world, "place").values()} == entries(world, "region").keys()
    factions = entries(world, "faction")
    assert all(faction["stance"].keys() == factions.keys() - {own} for own, faction in factions.items())


def test_quests_can_be_had_in_some_order(world: World) -> None:
    quests = entries(world, "quest")
    before = {name: {r["entity"] for r in quest["requires"] if r["entity"] in quests} for name, quest in quests.items()}

    assert set(TopologicalSorter(before).static_order()) == quests.keys()
    assert all(q["state"] == ("locked" if q["requires"] else "available") for q in quests.values())


def test_quests_of_the_plots_are_quests_of_the_world(world: World) -> None:
    quests = [node.id for graph in world.plots for node in graph.nodes if node.kind == "quest"]

    assert quests
    assert set(quests) <= entries(world, "quest").keys()


def key(term: Leaf) -> str:
    """What makes two terms the same."""
    return term.model_dump_json()


def holds(term: Leaf | Requires, reached: frozenset[str], so: frozenset[str]) -> bool:
    """Whether a term holds after these nodes and their effects."""
    if isinstance(term, Requires):
        return (
            all(holds(each, reached, so) for each in term.all)
            and (not term.any or any(holds(each, reached, so) for each in term.any))
            and not any(holds(each, reached, so) for each in term.none)
        )
    return term.node in reached if isinstance(term, NodeTerm) else key(term) in so


def runs(graphs: list[PlotGraph]) -> Iterator[frozenset[str]]:
    """What can be reached in the end, for every way of choosing within the groups of which one excludes the others."""
    nodes = [node for graph in graphs for node in graph.nodes]
    groups: dict[str, list[PlotNode]] = {}
    for node in nodes:
        if node.exclusive_group:
            groups.setdefault(node.exclusive_group, []).append(node)
    into = {(edge.dst, edge.src) for graph in graphs for edge in graph.edges}

    def play(chosen: Mapping[str, str]) -> frozenset[str]:
        reached: frozenset[str] = frozenset()
        known: frozenset[str] = frozenset()
        while True:
            more = [
                node
                for node in nodes
                if node.id not in reached
                and chosen.get(node.exclusive_group or "", node.id) == node.id
                and holds(node.requires, reached, known)
                and (not any(dst == node.id for dst, _ in into) or any((node.id, r) in into for r in reached))
            ]
            if not more:
                return reached
            reached |= {node.id for node in more}
            known |= {key(effect) for node in more for effect in node.effects}

    def choose(left: list[str], chosen: dict[str, str]) -> Iterator[frozenset[str]]:
        if not left:
            yield play(chosen)
            return
        for node in groups[left[0]]:
            yield from choose(left[1:], chosen | {left[0]: node.id})

    yield from choose(sorted(groups), {})


def test_every_ending_is_reached_by_some_choice_and_no_choice_ends_nowhere(world: World) -> None:
    every = list(runs(world.plots))
    nodes = {node.id: node for graph in world.plots for node in graph.nodes}
    endings = {name for name, node in nodes.items() if node.kind == "ending"}

    assert len(every) == 2 * 3 * 3
    assert frozenset[str]().union(*every) == nodes.keys(), "every node is reached by some choice"
    for graph in world.plots:
        own = {node.id for node in graph.nodes} & endings
        assert len(own) >= 2
        assert all(len(reached & own) == 1 for reached in every), f"{graph.id} always comes to one end"
        ways = {edge.src for edge in graph.edges}
        assert {node.id for node in graph.nodes} - ways == own, "what leads nowhere is an ending"
        assert {edge.kind for edge in graph.edges} == {"next", "choice"}


def test_what_a_plot_asks_for_some_plot_gives(world: World) -> None:
    nodes = [node for graph in world.plots for node in graph.nodes]
    given = {key(effect) for node in nodes for effect in node.effects}
    asked = {key(t) for node in nodes for t in node.requires.terms() if isinstance(t, FlagTerm | ItemTerm)}

    assert asked
    assert asked <= given


def test_flags_and_facts_speak_of_what_is_there(world: World) -> None:
    ids = {entry.id for _, entry in world.entities}
    by_id = [fact.subject for fact in world.facts if ENTITY_ID.fullmatch(fact.subject)]

    assert set(by_id) <= ids
    assert len({fact.id for fact in world.facts}) == len(world.facts), "each can be changed by a later file"
    assert sum(fact.known_by is not None for fact in world.facts) >= 8
    assert sum(fact.valid_from is not None for fact in world.facts) >= 5
    used = {fact.predicate for fact in world.facts}
    assert used == {predicate.name for predicate in world.predicates}
