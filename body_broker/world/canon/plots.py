"""Owns what plots mean: which nodes a state of the world has reached, what locks a node, and what is wrong with a graph. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from graphlib import CycleError, TopologicalSorter
from typing import Literal

from body_broker.world.canon.model import (
    Fact,
    FactTerm,
    FlagTerm,
    ItemTerm,
    Leaf,
    NodeTerm,
    PlotGraph,
    PlotNode,
    Requires,
    Scalar,
    Term,
)

Code = Literal[
    "dangling_ref",
    "cycle",
    "unreachable",
    "dead_end",
    "no_ending_reachable",
    "both_exclusive_required",
    "effect_without_reader",
    "item_never_granted",
]
LockKind = Literal["missing", "one_of", "forbidden"]
_WARNINGS = frozenset({"effect_without_reader", "dead_end"})


@dataclass(frozen=True, slots=True)
class Standing:
    """What is so for one player.

    Attributes:
        done: Quests that are done, by node id.
        quests: Nodes whose progress the world keeps: what of them is not done is not reached.
        facts: Those of canon that hold.
    """

    done: frozenset[str] = frozenset()
    quests: frozenset[str] = frozenset()
    flags: Mapping[str, Scalar] = field(default_factory=dict[str, Scalar])
    items: frozenset[str] = frozenset()
    facts: frozenset[tuple[str, str, Scalar]] = frozenset()


@dataclass(frozen=True, slots=True)
class Fault:
    """What is wrong with a graph, and where."""

    code: Code
    node: str
    text: str

    @property
    def severity(self) -> Literal["error", "warning"]:
        """Whether it breaks the plot, or may be meant."""
        return "warning" if self.code in _WARNINGS else "error"


def reached(nodes: Mapping[str, PlotNode], standing: Standing) -> frozenset[str]:
    """Nodes that have been reached.

    A quest that the world keeps is reached when it is done. Any other node is when what it requires holds and the flags that it
    sets are set: beats happen by themselves. One of an exclusive group that sets no flag is never taken as reached.
    """
    found = set(standing.done)
    open_nodes = {node.id: node for node in nodes.values() if node.id not in standing.quests and node.id not in found}
    readers = defaultdict[str, list[str]](list)
    for node in open_nodes.values():
        for needed in {term.node for term in node.requires.terms() if isinstance(term, NodeTerm)}:
            readers[needed].append(node.id)
    ask: Collection[str] = open_nodes.keys()
    while new := {each for each in ask if _happened(open_nodes[each], standing, found)}:
        found |= new
        # Only what reads of those that are new can be otherwise now.
        ask = {reader for each in new for reader in readers[each]} - found
    return frozenset(found)


def _happened(node: PlotNode, standing: Standing, found: Collection[str]) -> bool:
    flags = [effect for effect in node.effects if isinstance(effect, FlagTerm)]
    if not flags and (node.exclusive_group is not None or node.kind == "quest"):
        return False
    told = all(standing.flags.get(flag.flag) == flag.value for flag in flags)
    return told and not locks(node.requires, standing, found)


def locks(requires: Requires, standing: Standing, done: Collection[str]) -> list[tuple[LockKind, Term]]:
    """What is not met: `missing` terms of all, `one_of` where none of any holds, `forbidden` terms of none that hold."""
    missing = [term for term in requires.all if not holds(term, standing, done)]
    some = any(holds(term, standing, done) for term in requires.any)
    forbidden = [term for term in requires.none if holds(term, standing, done)]
    kinds: tuple[tuple[LockKind, Sequence[Term]], ...] = (
        ("missing", missing),
        ("one_of", () if some else requires.any),
        ("forbidden", forbidden),
    )
    return [(kind, term) for kind, terms in kinds for term in terms]


def holds(term: Term, standing: Standing, done: Collection[str]) -> bool:
    """Whether a term holds."""
    match term:
        case NodeTerm():
            return term.node in done
        case FlagTerm():
            return standing.flags.get(term.flag) == term.value
        case ItemTerm():
            return term.item in standing.items
        case FactTerm():
            return (term.subject, term.predicate, term.object) in standing.facts
        case Requires():
            return not locks(term, standing, done)


def available(nodes: Mapping[str, PlotNode], standing: Standing) -> list[PlotNode]:
    """Quests that could be taken on now: not done, what they require holds, and no other of their group is reached."""
    done = reached(nodes, standing)
    taken = {nodes[node].exclusive_group for node in done if node in nodes} - {None}
    return [
        node
        for node in nodes.values()
        if node.kind == "quest"
        and node.id not in done
        and node.exclusive_group not in taken
        and not locks(node.requires, standing, done)
    ]


def facts_now(facts: Iterable[Fact]) -> frozenset[tuple[str, str, Scalar]]:
    """Facts of the present as requirements name them."""
    return frozenset((fact.subject, fact.predicate, fact.object) for fact in facts if fact.holds_at(None))


def part_of(graph: PlotGraph, start: str | None, depth: int | None) -> list[PlotNode]:
    """The graph's nodes, or those that follow a node within so many steps, the node itself first; edges and requirements lead on."""
    if start is None:
        return list(graph.nodes)
    follows = _follows(graph)
    found, edge = {start: None}, [start]
    for _ in range(depth if depth is not None else len(graph.nodes)):
        edge = [after for node in edge for after in follows[node] if after not in found]
        found |= dict.fromkeys(edge)
        if not edge:
            break
    by_id = {node.id: node for node in graph.nodes}
    return [by_id[node] for node in found if node in by_id]


def _follows(graph: PlotGraph) -> Mapping[str, list[str]]:
    follows = defaultdict[str, dict[str, None]](dict)
    for edge in graph.edges:
        follows[edge.src][edge.dst] = None
    for node in graph.nodes:
        for term in node.requires.terms():
            if isinstance(term, NodeTerm):
                follows[term.node][node.id] = None
    return defaultdict(list, {src: list(after) for src, after in follows.items()})


def validate(graph: PlotGraph, plots: Sequence[PlotGraph], known: Mapping[str, str]) -> list[Fault]:
    """What is wrong with a graph.

    Args:
        graph: The graph.
        plots: All of them: nodes may require nodes of others.
        known: The kind of each entity of the world by its id: which flags and items there are.
    """
    nodes = {node.id: node for each in (*plots, graph) for node in each.nodes}
    faults = [*_dangling(graph, nodes, known), *_cycles(graph), *_exclusive(graph, nodes)]
    possible = _possible(nodes, (*plots, graph), known)
    faults += [
        Fault("unreachable", node.id, "No way through the plots leads here.")
        for node in graph.nodes
        if node.id not in possible
    ]
    endings = [node.id for node in graph.nodes if node.kind == "ending"]
    if not any(node in possible for node in endings):
        text = "No ending can be reached." if endings else "The graph has no ending."
        faults.append(Fault("no_ending_reachable", graph.id, text))
    return sorted([*faults, *_loose(graph, nodes, known)], key=lambda fault: (fault.severity, fault.code, fault.node))


def _dangling(graph: PlotGraph, nodes: Mapping[str, PlotNode], known: Mapping[str, str]) -> Iterator[Fault]:
    for node in graph.nodes:
        for term in (*node.requires.terms(), *node.effects):
            if isinstance(term, NodeTerm) and term.node not in nodes:
                yield Fault("dangling_ref", node.id, f"There is no node {term.node}.")
            if isinstance(term, FlagTerm) and known.get(term.flag) != "flag":
                yield Fault("dangling_ref", node.id, f"There is no flag {term.flag}.")
            if isinstance(term, ItemTerm) and known.get(term.item) != "item":
                yield Fault("dangling_ref", node.id, f"There is no item {term.item}.")
    here = {node.id for node in graph.nodes}
    for edge in graph.edges:
        for end in (edge.src, edge.dst):
            if end not in here:
                yield Fault("dangling_ref", end, f"The edge {edge.src} to {edge.dst} leaves the graph.")


def _cycles(graph: PlotGraph) -> Iterator[Fault]:
    needs = {node.id: {t.node for t in node.requires.all if isinstance(t, NodeTerm)} for node in graph.nodes}
    try:
        TopologicalSorter(needs).prepare()
    except CycleError as error:
        around: list[str] = error.args[1]
        yield Fault("cycle", around[0], f"Each needs the one before it: {', '.join(around[:20])}.")


def _exclusive(graph: PlotGraph, nodes: Mapping[str, PlotNode]) -> Iterator[Fault]:
    for node in graph.nodes:
        groups = [
            nodes[term.node].exclusive_group
            for term in node.requires.all
            if isinstance(term, NodeTerm) and term.node in nodes
        ]
        for group in {group for group in groups if group is not None and groups.count(group) > 1}:
            yield Fault("both_exclusive_required", node.id, f"It needs two nodes of {group}, and a player reaches one.")


def _possible(nodes: Mapping[str, PlotNode], plots: Sequence[PlotGraph], known: Mapping[str, str]) -> set[str]:
    """Nodes that some way through the plots reaches: a fixpoint, since any of several ways will do."""
    before = defaultdict[str, set[str]](set)
    for graph in plots:
        for edge in graph.edges:
            before[edge.dst].add(edge.src)
    readers = _readers(nodes.values(), before)
    found: set[str] = set()
    effects: set[object] = set()
    ask = list(nodes)
    while ask:
        node = nodes[ask.pop()]
        if node.id in found or (before[node.id] and before[node.id].isdisjoint(found)):
            continue
        if _can(node.requires, found, effects, known):
            found.add(node.id)
            new = {_effect_key(effect) for effect in node.effects} - effects
            effects |= new
            ask += [reader for key in (node.id, *new) for reader in readers[key] if reader not in found]
    return found


def _readers(nodes: Iterable[PlotNode], before: Mapping[str, Collection[str]]) -> Mapping[object, list[str]]:
    """Which nodes may become possible when a node or an effect does."""
    readers = defaultdict[object, list[str]](list)
    for node in nodes:
        read = {_effect_key(term) for term in node.requires.terms()}
        for key in (*read, *before[node.id]):
            readers[key].append(node.id)
    return readers


def _can(term: Term, found: Collection[str], effects: Collection[object], known: Mapping[str, str]) -> bool:
    def can(inner: Term) -> bool:
        return _can(inner, found, effects, known)

    match term:
        case NodeTerm():
            return term.node in found
        case FlagTerm():
            return (term.flag, term.value) in effects or known.get(term.flag) == "flag"
        case ItemTerm():
            return term.item in effects or known.get(term.item) == "item"
        case FactTerm():
            return True  # facts come from outside the plots too
        case Requires():
            return all(map(can, term.all)) and (not term.any or any(map(can, term.any)))


def _effect_key(effect: Leaf) -> object:
    match effect:
        case FlagTerm():
            return effect.flag, effect.value
        case ItemTerm():
            return effect.item
        case FactTerm():
            return effect.subject, effect.predicate, effect.object
        case NodeTerm():
            return effect.node


def _loose(graph: PlotGraph, nodes: Mapping[str, PlotNode], known: Mapping[str, str]) -> Iterator[Fault]:
    """Ends that lead nowhere, effects that nothing reads, items that nobody gives."""
    read = {_read_key(term) for node in nodes.values() for term in node.requires.terms()}
    granted = {effect.item for node in nodes.values() for effect in node.effects if isinstance(effect, ItemTerm)}
    follows = _follows(graph)
    reads: Callable[[PlotNode], bool] = lambda node: any(_read_key(effect) in read for effect in node.effects)  # noqa: E731 - one use each
    for node in graph.nodes:
        if node.kind != "ending" and not follows[node.id] and node.id not in read and not reads(node):
            yield Fault("dead_end", node.id, "Nothing follows it, and it is no ending.")
        for effect in node.effects:
            if isinstance(effect, FlagTerm) and effect.flag not in read:
                yield Fault("effect_without_reader", node.id, f"No node reads the flag {effect.flag}.")
        for term in node.requires.terms():
            if isinstance(term, ItemTerm) and term.item not in granted and known.get(term.item) != "item":
                yield Fault("item_never_granted", node.id, f"Nothing gives the item {term.item}.")


def _read_key(term: Leaf) -> str:
    match term:
        case FlagTerm():
            return term.flag
        case ItemTerm():
            return term.item
        case FactTerm():
            return f"{term.subject} {term.predicate}"
        case NodeTerm():
            return term.node
