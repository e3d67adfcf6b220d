"""Owns what a text is held against: names, facts at a moment, plots, which place lies in which, and what the caller adds."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from body_broker.world.canon.model import Canon, Fact, PlotNode, Scalar
from body_broker.world.canon.predicates import STANDARD
from body_broker.world.kinds import name_of
from body_broker.world.model import Entity
from mcp_servers.storyteller.consistency.names import Kind, Named, Names

_KINDS: Mapping[str, Kind] = {
    "npc": "person", "player": "person", "region": "place", "place": "place", "faction": "faction", "item": "item", "quest": "quest",
}  # fmt: skip
_PERSON_OF = frozenset({"age", "eye_colour", "hair_colour", "home", "birthplace", "mother", "father", "spouse", "killed_by", "member_of", "status", "located_at", "occupation"})  # fmt: skip
OBJECT_KINDS: Mapping[str, Kind] = {
    "mother": "person", "father": "person", "spouse": "person", "killed_by": "person", "owner": "person", "home": "place",
    "located_at": "place", "birthplace": "place", "part_of": "place", "member_of": "faction",
}  # fmt: skip

FROM_CALLER = "existing_lore: "
"""How the source begins of what the caller says is so."""
_WORDS_OF = frozenset({"status", "age", "occupation", "eye_colour", "hair_colour"})
"""Predicates whose values are words, whatever else is called by them."""


@dataclass(frozen=True, slots=True)
class Held:
    """A value that is known, and where it stands."""

    value: Scalar
    source: str
    text: str
    fact_id: str | None = None


@dataclass(frozen=True, slots=True)
class Progress:
    """How far quests are known to be: what is done, what is known not to be, and flags and items, where they are known."""

    done: frozenset[str] = frozenset()
    not_done: frozenset[str] = frozenset()
    flags: Mapping[str, Scalar] = field(default_factory=dict[str, Scalar])
    source: str = "scope"


@dataclass(slots=True)
class Knowledge:
    """All that a text is held against.

    Attributes:
        doubtful: Who is dead at another time than the text's, so that how they are at that time is not sure.
        lore_not_understood: Sentences and values of the caller's lore that no rule could use.
    """

    names: Names = field(default_factory=Names)
    functional: set[str] = field(default_factory=set[str])
    values: dict[tuple[str, str], list[Held]] = field(default_factory=lambda: defaultdict(list))
    nodes: dict[str, PlotNode] = field(default_factory=dict[str, PlotNode])
    inside: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    predicates: list[str] = field(default_factory=list[str])
    occupations: set[str] = field(default_factory=set[str])
    canon: Canon = field(default_factory=lambda: Canon(predicates=(), facts=(), plots=()))
    progress: Progress = field(default_factory=Progress)
    doubtful: set[str] = field(default_factory=set[str])
    lore_not_understood: int = 0

    def copy(self) -> Knowledge:
        """Another one to add to."""
        return Knowledge(
            self.names.copy(),
            set(self.functional),
            defaultdict(list, {key: list(held) for key, held in self.values.items()}),
            dict(self.nodes),
            defaultdict(set, {key: set(outer) for key, outer in self.inside.items()}),
            list(self.predicates),
            set(self.occupations),
            self.canon,
            self.progress,
            set(self.doubtful),
            self.lore_not_understood,
        )

    def hold(self, subject: str, predicate: str, held: Held) -> None:
        """Know a value."""
        self.values[subject, predicate].append(held)
        if predicate == "part_of" and isinstance(held.value, str):
            self.inside[subject].add(held.value)
        if predicate == "occupation" and isinstance(held.value, str):
            self.occupations.add(held.value.lower())

    def known(self, subject: str, predicate: str) -> Sequence[Held]:
        """What is known of it."""
        return self.values.get((subject, predicate), ())

    def people_of(self, predicate: str) -> set[str]:
        """Of whom a predicate is known."""
        return {subject for subject, name in self.values if name == predicate}

    def apart(self, one: str, other: str) -> bool:
        """Whether two places are not one, and neither lies in the other, as far as that is known."""
        return one != other and other not in self._around(one) and one not in self._around(other)

    def _around(self, place: str) -> set[str]:
        found: set[str] = set()
        ask = [place]
        while ask and len(found) < 100:  # noqa: PLR2004 - places in places in places; a circle ends too
            for outer in self.inside.get(ask.pop(), ()):
                if outer not in found:
                    found.add(outer)
                    ask.append(outer)
        return found

    def label(self, key: Scalar) -> str:
        """How people write it."""
        named = self.names.by_key.get(key) if isinstance(key, str) else None
        return named.label if named else str(key)


def build(canon: Canon, entities: Iterable[Entity], moment: float | None) -> Knowledge:
    """What canon and world know at a moment of the story; None is the present.

    Args:
        canon: Facts, predicates and plots.
        entities: Of the world; what they are now counts only for the present.
        moment: Story time.
    """
    known = Knowledge(canon=canon)
    known.functional = {p.name for p in canon.predicates if p.functional}
    known.predicates = [p.name for p in canon.predicates]
    for entity in entities:
        if not entity.removed:
            _know_entity(known, entity, present=moment is None)
    for graph in canon.plots:
        for node in graph.nodes:
            known.nodes[node.id] = node
            known.names.add(Named(node.id, node.title, "quest"))
    aliases = defaultdict[str, list[str]](list)
    for fact in canon.facts:
        if fact.predicate == "alias" and isinstance(fact.object, str):
            aliases[fact.subject].append(fact.object)
    for fact in canon.facts:
        _know_names(known, fact, aliases.get(fact.subject, ()))
    for fact in canon.facts:
        _know_fact(known, fact, moment)
    return known


def _know_entity(known: Knowledge, entity: Entity, *, present: bool) -> None:
    kind = _KINDS.get(entity.kind)
    if kind is None:
        return
    label = name_of(entity)
    known.names.add(Named(entity.id, label, kind))
    if entity.region is not None and kind == "place":
        known.inside[entity.id].add(entity.region)
    if kind == "person" and not present and entity.data.get("alive") is False:
        known.doubtful.add(entity.id)  # since when, the world does not say
    if kind == "person" and present and entity.data.get("alive") is False:
        known.hold(entity.id, "status", Held("dead", f"world: {entity.id}", f"{label} is dead."))


def _know_names(known: Knowledge, fact: Fact, aliases: Iterable[str]) -> None:
    """Know a fact's names, whenever it holds."""
    name_subject(known, fact.subject, fact.predicate, aliases)
    if isinstance(fact.object, str) and fact.predicate in OBJECT_KINDS:
        name_value(known, fact.object, fact.predicate)


def _know_fact(known: Knowledge, fact: Fact, moment: float | None) -> None:
    """Know a fact where it holds at the moment; every name is known by then."""
    if fact.predicate == "status" and fact.object != "alive" and not fact.holds_at(moment):
        who = key_of_name(known, fact.subject)
        # Who is dead only later is alive; who was dead once may be anything.
        later = moment is not None and fact.valid_from is not None and moment < fact.valid_from
        (known.doubtful.discard if later else known.doubtful.add)(who)
    if fact.holds_at(moment) and fact.predicate != "alias":
        value = key_of(known, fact.predicate, fact.object)
        text = f"{known.label(fact.subject)}: {fact.predicate} = {known.label(value)}"
        known.hold(key_of_name(known, fact.subject), fact.predicate, Held(value, fact.source, text, fact.key))


def name_subject(known: Knowledge, subject: str, predicate: str, aliases: Iterable[str] = ()) -> None:
    """Know the name of what a fact is about; what it is follows from what is said of it."""
    key = key_of_name(known, subject)
    there = known.names.by_key.get(key)
    kind: Kind = "person" if predicate in _PERSON_OF else "place" if predicate == "part_of" else "other"
    label = there.label if there else subject
    known.names.add(Named(key, label, there.kind if there and there.kind != "other" else kind), aliases)


def name_value(known: Knowledge, value: str, predicate: str) -> None:
    """Know the name that a fact's object is."""
    key = key_of_name(known, value)
    there = known.names.by_key.get(key)
    if there is None or there.kind == "other":
        known.names.add(Named(key, there.label if there else value, OBJECT_KINDS[predicate]))


def key_of_name(known: Knowledge, name: str) -> str:
    """The key of a name or id; one that is not known yet is its own."""
    return known.names.find(name) or name


def key_of(known: Knowledge, predicate: str, value: Scalar) -> Scalar:
    """A value as claims have it: names by their key, words in lower case."""
    if not isinstance(value, str):
        return value
    if predicate in OBJECT_KINDS:
        return key_of_name(known, value)
    return value.lower() if predicate in _WORDS_OF else known.names.find(value) or value.lower()


def is_functional(known: Knowledge, predicate: str) -> bool:
    """Whether a predicate has one value at a time: as canon says, else as the standard does."""
    if predicate in known.predicates:
        return predicate in known.functional
    return predicate in STANDARD and STANDARD[predicate].functional
