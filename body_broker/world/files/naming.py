"""Owns what the parts of a world say of each other: that everything named is there, of the right kind, once, and without rings."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from body_broker.text import clean
from body_broker.world import kinds
from body_broker.world.canon import plots
from body_broker.world.canon.model import Fact, FactTerm, FlagTerm, ItemTerm, Leaf, NodeTerm, PlotGraph, PlotNode
from body_broker.world.files import holding
from body_broker.world.files.holding import Placed
from body_broker.world.files.model import SECTIONS, WorldFile, data_of, region_of
from body_broker.world.files.reading import Source
from body_broker.world.model import ENTITY_ID, Kind

KINDS_OF_FIELD: Mapping[str, tuple[Kind, ...]] = {
    "region": ("region",),
    "place": ("place",),
    "exits": ("place",),
    "key": ("item",),
    "inventory": ("item",),
    "faction": ("faction",),
    "holder": ("npc", "player", "item"),
    "players": ("player",),
}
"""Where a field of a kind may name only some kinds; everywhere else any entity will do."""

_SOURCE_LORE = "lore:"
"""What a fact's source begins with that is a document of the file."""
_TAKES_ENTITY = "The id of "
_OR_NAME = "The id or name of "
"""How the meaning of a predicate begins whose object is an entity: one is named by its id."""
_PLOTS_LOOKED_AT_MAX = 1_000_000
"""Graphs times nodes: whether plots can be played to their ends is looked into up to here."""


@dataclass(frozen=True, slots=True)
class Part:
    """One file of a world as far as it fits the format.

    Attributes:
        kept: By section, the places in the file of the entries that fit; sections that fit whole are not in it.
    """

    source: Source
    file: WorldFile
    kept: Mapping[str, Sequence[int]] = field(default_factory=dict[str, Sequence[int]])

    def at(self, section: str, number: int, rest: str = "") -> str:
        """A place in the file as problems name it: file, section, number there."""
        kept = self.kept.get(section)
        return self.source.at(f"{section}[{number if kept is None else kept[number]}]{rest}")


def problems(parts: Sequence[Part], ids: Mapping[str, str]) -> Iterator[str]:
    """What is wrong between the parts of a world.

    Args:
        parts: Its files.
        ids: Kind by id of all that the files give, also of entries that did not fit.
    """
    entities = list(placed(parts))
    yield from _twice([(each.entry.id, f"{each.where}.id") for each in entities])
    for each in entities:
        yield from _entity(each, ids)
    yield from holding.rings(entities)
    yield from _canon(parts, ids)
    yield from _lore(parts, ids)


def warnings(parts: Sequence[Part], ids: Mapping[str, str]) -> Iterator[str]:
    """What is odd but can be: somebody in two places, a document that is not here, a plot that cannot be played to its end."""
    yield from holding.oddities(list(placed(parts)))
    yield from _unplayable(parts, ids)
    documents = {entry.id for part in parts for entry in part.file.lore}
    for part in parts:
        for number, fact in enumerate(part.file.facts if documents else ()):
            document = fact.source.removeprefix(_SOURCE_LORE)
            if document != fact.source and document not in documents:
                yield f"{part.at('facts', number)}.source: there is no lore {clean(document, limit=80)!r}"


def _unplayable(parts: Sequence[Part], ids: Mapping[str, str]) -> Iterator[str]:
    every = [graph for part in parts for graph in part.file.plots]
    if len(every) * sum(len(graph.nodes) for graph in every) > _PLOTS_LOOKED_AT_MAX:
        return
    for part in parts:
        for number, graph in enumerate(part.file.plots):
            for fault in plots.validate(graph, every, ids):
                if fault.severity == "error" and fault.code != "dangling_ref":
                    yield f"{part.at('plots', number)}: {fault.node} ({fault.code}): {fault.text}"


def placed(parts: Sequence[Part]) -> Iterator[Placed]:
    """Every entity of the files."""
    for part in parts:
        for kind, number, entry in part.file.each_entity():
            yield Placed(kind, entry, part.at(f"entities.{SECTIONS[kind]}", number), data_of(entry))


def _twice(named: Sequence[tuple[str, str]]) -> Iterator[str]:
    first: dict[str, str] = {}
    for name, where in named:
        if name in first:
            yield f"{where}: {name!r} is already at {first[name]}"
        first.setdefault(name, where)


def _entity(each: Placed, ids: Mapping[str, str]) -> Iterator[str]:
    region = region_of(each.entry)
    if region is not None:
        yield from _reference(f"{each.where}.region", region, ids, KINDS_OF_FIELD["region"])
    for name, value in each.data.items():
        if not value or isinstance(value, int | float):
            continue
        allowed = KINDS_OF_FIELD.get(name, ())
        for named in sorted(kinds.references(each.kind, {name: value})):
            where = f"{each.where}.{name}{_within(value, named)}"
            yield from _reference(where, named, ids, allowed)
    if each.kind == "quest":
        yield from _requirements(each, ids)


def _requirements(each: Placed, ids: Mapping[str, str]) -> Iterator[str]:
    for number, wanted in enumerate(cast("list[dict[str, Any]]", each.data["requires"])):
        kind = cast("Kind | None", ids.get(wanted["entity"]))
        if kind is not None:
            for problem in kinds.problems_of_fields(kind, {wanted["field"]: wanted["equals"]}):
                yield f"{each.where}.requires[{number}]: {problem}"


def _within(value: object, named: str) -> str:
    """Where in a field's value an id stands."""
    if isinstance(value, list):
        for number, each in enumerate(cast("list[object]", value)):
            if each == named:
                return f"[{number}]"
            if isinstance(each, dict) and cast("dict[str, object]", each).get("entity") == named:
                return f"[{number}].entity"
    if isinstance(value, dict) and named in value:
        return f".{named}"
    return ""


def _reference(where: str, named: str, ids: Mapping[str, str], allowed: Sequence[str] = ()) -> Iterator[str]:
    if named not in ids:
        yield f"{where}: there is no {' or '.join(allowed) or 'entity'} {clean(named, limit=80)!r}"
    elif allowed and ids[named] not in allowed:
        yield f"{where}: {named!r} is of kind {ids[named]}, not {' or '.join(allowed)}"


def _canon(parts: Sequence[Part], ids: Mapping[str, str]) -> Iterator[str]:
    predicates = {each.name: each for part in parts for each in part.file.predicates}
    nodes = {node.id for part in parts for graph in part.file.plots for node in graph.nodes}
    yield from _twice(
        [(p.name, part.at("predicates", n, ".name")) for part in parts for n, p in enumerate(part.file.predicates)]
    )
    yield from _twice([(f.key, part.at("facts", n, ".id")) for part in parts for n, f in enumerate(part.file.facts)])
    yield from _twice([(g.id, part.at("plots", n, ".id")) for part in parts for n, g in enumerate(part.file.plots)])
    yield from _twice(
        [
            (node.id, part.at("plots", n, f".nodes[{m}].id"))
            for part in parts
            for n, graph in enumerate(part.file.plots)
            for m, node in enumerate(graph.nodes)
        ]
    )
    names = _names(parts)
    told: dict[tuple[str, str], list[tuple[Fact, str]]] = defaultdict(list)
    for part in parts:
        for number, fact in enumerate(part.file.facts):
            where = part.at("facts", number)
            yield from _said(where, fact, ids, {name: p.meaning for name, p in predicates.items()})
            yield from _by_id(where, fact.subject, ids, names)
            yield from _known(f"{where}.known_by", fact.known_by or (), ids)
            if fact.predicate in predicates and predicates[fact.predicate].functional:
                yield from _contradiction(where, fact, told[fact.subject, fact.predicate])
                told[fact.subject, fact.predicate].append((fact, where))
        for number, graph in enumerate(part.file.plots):
            for place, problem in _plot(graph, nodes, ids, {name: p.meaning for name, p in predicates.items()}):
                yield f"{part.at('plots', number)}.{place}: {problem}"


def _names(parts: Sequence[Part]) -> Mapping[str, set[str]]:
    """Who has each name: what entities are called, and the aliases that facts give them."""
    found = defaultdict[str, set[str]](set)
    for each in placed(parts):
        for name in (each.data.get("name"), each.data.get("title")):
            if isinstance(name, str) and name:
                found[_plain(name)].add(each.entry.id)
    for part in parts:
        for fact in part.file.facts:
            if fact.predicate == "alias" and isinstance(fact.object, str):
                found[_plain(fact.object)].add(fact.subject)
    return found


def _plain(name: str) -> str:
    return " ".join(name.casefold().split())


def _by_id(where: str, subject: str, ids: Mapping[str, str], names: Mapping[str, set[str]]) -> Iterator[str]:
    """A fact about an entity names it by its id, or two facts about one subject would never meet."""
    meant = sorted(each for each in names.get(_plain(subject), ()) if each in ids)
    if subject not in ids and meant:
        yield f"{where}.subject: {clean(subject, limit=80)!r} is a name of {' and of '.join(map(repr, meant))}: give the id"


def _said(where: str, fact: Fact | FactTerm, ids: Mapping[str, str], meanings: Mapping[str, str]) -> Iterator[str]:
    """A subject and an object in the form of an id name entities, where the predicate takes one."""
    if fact.predicate not in meanings:
        yield f"{where}.predicate: there is no predicate {fact.predicate!r}"
    if ENTITY_ID.fullmatch(fact.subject):
        yield from _reference(f"{where}.subject", fact.subject, ids)
    meaning = meanings.get(fact.predicate, "")
    if meaning.startswith((_TAKES_ENTITY, _OR_NAME)):
        told = fact.object
        if isinstance(told, str) and (meaning.startswith(_TAKES_ENTITY) or ENTITY_ID.fullmatch(told)):
            yield from _reference(f"{where}.object", told, ids)
        elif not isinstance(told, str):
            yield f"{where}.object: {fact.predicate!r} takes an entity's id"


def _contradiction(where: str, fact: Fact, others: Sequence[tuple[Fact, str]]) -> Iterator[str]:
    for other, there in others:
        if fact.object != other.object and overlap(fact, other):
            yield f"{where}: {there} says another {fact.predicate!r} of {clean(fact.subject, limit=80)!r} at the same time"
            return


def overlap(one: Fact, other: Fact) -> bool:
    """Whether two facts hold at the same time at any moment."""
    lowest, highest = float("-inf"), float("inf")
    begin = max(lowest if f.valid_from is None else f.valid_from for f in (one, other))
    end = min(highest if f.valid_to is None else f.valid_to for f in (one, other))
    return begin < end


def _plot(
    graph: PlotGraph, nodes: set[str], ids: Mapping[str, str], meanings: Mapping[str, str]
) -> Iterator[tuple[str, str]]:
    own = {node.id for node in graph.nodes}
    edges = Counter((edge.src, edge.dst) for edge in graph.edges)
    for number, edge in enumerate(graph.edges):
        for end, named in (("src", edge.src), ("dst", edge.dst)):
            if named not in own:
                yield f"edges[{number}].{end}", f"there is no node {named!r} in this graph"
        if edges[edge.src, edge.dst] > 1:
            yield f"edges[{number}]", f"{edge.src!r} goes to {edge.dst!r} more than once"
    for number, node in enumerate(graph.nodes):
        for place, term in _terms(node):
            for problem in _term(term, nodes, ids, meanings):
                yield f"nodes[{number}].{place}", problem


def _terms(node: PlotNode) -> Iterator[tuple[str, Leaf]]:
    for term in node.requires.terms():
        yield "requires", term
    for number, effect in enumerate(node.effects):
        yield f"effects[{number}]", effect


def _term(term: Leaf, nodes: set[str], ids: Mapping[str, str], meanings: Mapping[str, str]) -> Iterator[str]:
    match term:
        case NodeTerm(node=named):
            if named not in nodes:
                yield f"there is no node {named!r}"
        case FlagTerm(flag=named):
            yield from (_bare(p) for p in _reference("", named, ids, ("flag",)))
        case ItemTerm(item=named):
            yield from (_bare(p) for p in _reference("", named, ids, ("item",)))
        case FactTerm():
            yield from (_bare(p) for p in _said("", term, ids, meanings))


def _bare(problem: str) -> str:
    return problem.split(": ", 1)[1]


def _lore(parts: Sequence[Part], ids: Mapping[str, str]) -> Iterator[str]:
    yield from _twice(
        [
            (f"{entry.index}/{entry.id}", part.at("lore", number, ".id"))
            for part in parts
            for number, entry in enumerate(part.file.lore)
        ]
    )
    for part in parts:
        for number, entry in enumerate(part.file.lore):
            where = part.at("lore", number)
            yield from _known(f"{where}.known_by", entry.known_by or (), ids)
            if entry.region is not None:
                yield from _reference(f"{where}.region", entry.region, ids, ("region",))


def _known(where: str, names: Sequence[str], ids: Mapping[str, str]) -> Iterator[str]:
    for number, named in enumerate(names):
        yield from _reference(f"{where}[{number}]", named, ids, ("npc", "player", "faction"))
