"""Owns the storyteller's plot tools: quests, graphs, what a player may take on and what is in the way."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

from pydantic import BaseModel

from body_broker.calls import Call
from body_broker.errors import BadInput
from body_broker.world.canon import plots
from body_broker.world.canon.model import FactTerm, FlagTerm, ItemTerm, NodeTerm, PlotNode, Requires, Term
from body_broker.world.kinds import value_of
from mcp_servers.storyteller.models import (
    AvailableQuests,
    EdgeTold,
    ExplainLocked,
    FaultTold,
    ForPlayer,
    GetPlotGraph,
    Lock,
    Locked,
    NodeSummary,
    NodeTold,
    PlotGraphTold,
    QuestId,
    QuestTold,
    Validated,
    ValidatePlotGraph,
)
from mcp_servers.storyteller.services import Services

_FAULTS_TOLD = 100


async def get_quest(arguments: QuestId, _call: Call, services: Services) -> QuestTold:
    """A quest, stage, beat or ending, and how far the world has it."""
    graph, node = await services.node(arguments.id, arguments.spoiler_max)
    hidden = await services.hidden(arguments.spoiler_max)
    entity = (await services.entities()).get(node.id)
    quest = entity if entity is not None and entity.kind == "quest" and not entity.removed else None
    needed = (term.node for term in node.requires.terms() if isinstance(term, NodeTerm))
    before = [*needed, *(edge.src for edge in graph.edges if edge.dst == node.id)]
    return QuestTold(
        graph_id=graph.id,
        node=NodeTold(
            **node.model_dump(exclude={"requires", "effects"}),
            requires=_plain(_told(node.requires, hidden)),
            effects=[_plain(effect) for effect in node.effects],
        ),
        after=[each for each in dict.fromkeys(before) if each not in hidden],
        before=[each.id for each in plots.part_of(graph, node.id, 1)[1:] if each.id not in hidden],
        state=quest and value_of(quest, "state"),
        stage=quest and value_of(quest, "stage"),
    )


def _told(requires: Requires, hidden: Collection[str]) -> Requires:
    """Requirements without the nodes that are not to be told of."""

    def some(terms: Iterable[Term]) -> tuple[Term, ...]:
        kept = (_told(term, hidden) if isinstance(term, Requires) else term for term in terms)
        return tuple(term for term in kept if not (isinstance(term, NodeTerm) and term.node in hidden))

    return Requires(all=some(requires.all), any=some(requires.any), none=some(requires.none))


def _plain(part: BaseModel) -> dict[str, Any]:
    return part.model_dump(mode="json", exclude_defaults=True) | (
        {"value": part.value} if isinstance(part, FlagTerm) else {}
    )


async def get_plot_graph(arguments: GetPlotGraph, call: Call, services: Services) -> PlotGraphTold:
    """A graph's nodes, or those that follow one, with the edges from them."""
    graph = await services.graph(arguments.graph_id)
    hidden = await services.hidden(arguments.spoiler_max)
    graph = graph.model_copy(
        update={
            "nodes": tuple(node for node in graph.nodes if node.id not in hidden),
            "edges": tuple(edge for edge in graph.edges if not {edge.src, edge.dst} & hidden),
        }
    )
    if arguments.start is not None and arguments.start not in {node.id for node in graph.nodes}:
        raise BadInput(f"start is no node of {graph.id}.", next_step="Leave it out to see which there are.")
    nodes = await services.apart(plots.part_of, graph, arguments.start, arguments.depth)
    state = call.open_cursor(arguments.cursor)
    asked = [graph.id, graph.version, arguments.start, arguments.depth, arguments.spoiler_max]
    if state is not None and state[:-1] != asked:
        raise BadInput("The cursor belongs to another question, or the graph has changed.", next_step="Leave it out.")
    first = 0 if state is None else int(state[-1])
    page = nodes[first : first + arguments.limit]
    here = {node.id for node in page}
    after = first + len(page)
    return PlotGraphTold(
        graph_id=graph.id,
        title=graph.title,
        version=graph.version,
        nodes=[_summary(node) for node in page],
        edges=[EdgeTold(**edge.model_dump()) for edge in graph.edges if edge.src in here],
        next_cursor=call.seal_cursor([*asked, after] if after < len(nodes) else None),
    )


def _summary(node: PlotNode) -> NodeSummary:
    return NodeSummary(id=node.id, kind=node.kind, title=node.title)


async def list_available_quests(arguments: ForPlayer, _call: Call, services: Services) -> AvailableQuests:
    """Quests that a player could take on now."""
    found = await services.apart(plots.available, *(await services.standing(arguments.player_id)))
    items = [_summary(node) for node in found[: arguments.limit]]
    return AvailableQuests(items=items, omitted=len(found) - len(items))


async def explain_locked(arguments: ExplainLocked, _call: Call, services: Services) -> Locked:
    """What is in the way of a node for a player."""
    _, node = await services.node(arguments.node_id)
    nodes, standing = await services.standing(arguments.player_id)
    done = await services.apart(plots.reached, nodes, standing)
    found = [Lock(kind=kind, what=_term(term)) for kind, term in plots.locks(node.requires, standing, done)]
    if node.id in done:
        found.append(Lock(kind="done", what=f"{node.title} has been reached."))
    rivals = [nodes[each] for each in sorted(done) if each in nodes and each != node.id]
    found += [
        Lock(kind="exclusive", what=f"{rival.title} was chosen instead.")
        for rival in rivals
        if node.exclusive_group is not None and rival.exclusive_group == node.exclusive_group
    ]
    return Locked(node_id=node.id, locked=bool(found), locks=found)


def _term(term: Term) -> str:
    match term:
        case NodeTerm():
            return f"node {term.node}"
        case FlagTerm():
            return f"flag {term.flag} = {term.value}"
        case ItemTerm():
            return f"item {term.item}"
        case FactTerm():
            return f"fact {term.subject} {term.predicate} {term.object}"
        case _:
            return "several: " + ", ".join(_term(leaf) for leaf in term.terms())


async def validate_plot_graph(arguments: ValidatePlotGraph, _call: Call, services: Services) -> Validated:
    """What is wrong with a graph."""
    graph = await services.graph(arguments.graph_id)
    canon = await services.shelf.read()
    kinds = {entity.id: entity.kind for entity in (await services.entities()).values() if not entity.removed}
    faults = await services.apart(plots.validate, graph, canon.plots, kinds)
    told = [FaultTold(code=f.code, severity=f.severity, node=f.node, text=f.text) for f in faults[:_FAULTS_TOLD]]
    valid = not any(fault.severity == "error" for fault in faults)
    return Validated(
        graph_id=graph.id, version=graph.version, valid=valid, faults=told, omitted=len(faults) - len(told)
    )
