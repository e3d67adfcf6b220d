"""Owns canon in PostgreSQL: loading it whole, adding and retiring facts, reading it. Whoever writes locks its one row first."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

import asyncpg
import orjson

from body_broker.calls import Receipt
from body_broker.errors import BadInput, Conflict, NotFound
from body_broker.storage.postgres import Connection, Executor
from body_broker.text import canonical_json, clean
from body_broker.world.canon.model import Canon, Fact, PlotEdge, PlotGraph, PlotNode, Predicate, StoredGraph

_LOADED_FACT = """
INSERT INTO fact (id, subject, predicate, object, valid_from, valid_to, known_by, source, loaded, by)
VALUES ($1, $2, $3, $4::text::jsonb, $5::float8, $6::float8, $7::text[], $8, $9::boolean, $10)
ON CONFLICT (id) DO UPDATE SET subject = EXCLUDED.subject, predicate = EXCLUDED.predicate, object = EXCLUDED.object,
    valid_from = EXCLUDED.valid_from, valid_to = EXCLUDED.valid_to, known_by = EXCLUDED.known_by, source = EXCLUDED.source,
    loaded = EXCLUDED.loaded, retired_at = NULL, by = EXCLUDED.by, at = now()
"""
_NODE = """
INSERT INTO plot_node (id, graph_id, ordinal, kind, title, summary, requires, effects, exclusive_group, story_time, spoiler_level)
VALUES ($1, $2, $3::integer, $4, $5, $6, $7::text::jsonb, $8::text::jsonb, $9, $10::float8, $11::integer)
"""
_FACTS = "SELECT *, object::text AS said FROM fact WHERE retired_at IS NULL"


@dataclass(frozen=True, slots=True)
class Effect:
    """Who changes canon, and under which decision of the audit."""

    by: str
    receipt: Receipt | None = None


@dataclass(frozen=True, slots=True)
class Loaded:
    """What a load did, in numbers; `changed` is false where everything was so already."""

    predicates: int = 0
    facts: int = 0
    facts_retired: int = 0
    plots: int = 0
    plots_removed: int = 0

    @property
    def changed(self) -> bool:
        """Whether anything is other than it was."""
        return self != Loaded()


async def replace_canon(
    connection: Connection,
    predicates: Sequence[Predicate],
    facts: Sequence[Fact],
    plots: Sequence[PlotGraph],
    by: str,
    *,
    receipt: Receipt | None = None,
) -> Loaded:
    """Make canon what a world file says, within the caller's transaction; what is so already is left as it is.

    Facts and plots of an earlier load that this one lacks are retired; facts that calls added stay. The same load again
    changes nothing. References are the caller's to check: a fact's predicate must be among `predicates`, an edge's nodes in
    its graph.

    Args:
        connection: In a transaction.
        predicates: All there are; those that facts still use are kept even where they are missing here.
        facts: Of the world file.
        plots: Of the world file; ids of nodes are unique over all of them.
        by: Who loads, such as `operator:anna`.
        receipt: The decision's place on the audit.
    """
    await connection.execute("SELECT FROM canon FOR UPDATE")
    there = await read_canon(connection)
    loaded = Loaded(
        predicates=await _put_predicates(connection, there.predicates, predicates),
        facts=await _put_facts(connection, there.facts, facts, by),
        facts_retired=await _retire_others(connection, {fact.key for fact in facts}),
        plots_removed=await _remove_plots(connection, there.plots, plots),
        plots=await _put_plots(connection, there.plots, plots, by),
    )
    if loaded.changed:
        await _bump(connection, "loaded", None, Effect(by, receipt))
    return loaded


async def read_canon(connection: Executor) -> Canon:
    """All that is canon now."""
    return Canon(
        predicates=tuple(await read_predicates(connection)),
        facts=tuple(await read_facts(connection)),
        plots=tuple(await read_plots(connection)),
        version=await read_version(connection),
    )


async def read_version(connection: Executor) -> int:
    """The number of changes of canon: the same number is the same canon."""
    found = await connection.fetchval("SELECT version FROM canon")
    assert isinstance(found, int)
    return found


async def read_predicates(connection: Executor) -> list[Predicate]:
    """Every predicate, by name."""
    rows = await connection.fetch("SELECT name, functional, meaning, says FROM predicate ORDER BY name")
    return [Predicate.model_validate(dict(row)) for row in rows]


async def read_facts(connection: Executor, subjects: Collection[str] | None = None) -> list[Fact]:
    """Facts that were not retired, of these subjects or of all, in a steady order."""
    rows = await connection.fetch(
        f"{_FACTS} AND ($1::text[] IS NULL OR subject = ANY($1::text[])) ORDER BY subject, predicate, valid_from NULLS FIRST, id",
        None if subjects is None else list(subjects),
    )
    return [_fact(row) for row in rows]


async def read_plots(connection: Executor, graph_id: str | None = None) -> list[StoredGraph]:
    """Every graph, or the one of this id, with its nodes as they were loaded."""
    graphs = await connection.fetch(
        "SELECT id, title, version FROM plot_graph WHERE $1::text IS NULL OR id = $1 ORDER BY id", graph_id
    )
    nodes = await connection.fetch(
        "SELECT *, requires::text AS needs, effects::text AS does FROM plot_node WHERE $1::text IS NULL OR graph_id = $1"
        " ORDER BY graph_id, ordinal",
        graph_id,
    )
    edges = await connection.fetch(
        "SELECT * FROM plot_edge WHERE $1::text IS NULL OR graph_id = $1 ORDER BY graph_id, src, dst", graph_id
    )
    return [
        StoredGraph(
            id=graph["id"],
            title=graph["title"],
            version=graph["version"],
            nodes=tuple(_node(row) for row in nodes if row["graph_id"] == graph["id"]),
            edges=tuple(
                PlotEdge(src=row["src"], dst=row["dst"], kind=row["kind"], label=row["label"])
                for row in edges
                if row["graph_id"] == graph["id"]
            ),
        )
        for graph in graphs
    ]


async def add_fact(connection: Connection, fact: Fact, effect: Effect) -> tuple[str, bool]:
    """The fact's id, and whether it is new; within the caller's transaction.

    Raises:
        BadInput: There is no such predicate.
        Conflict: The predicate has one value at a time, and another one holds at the same time.
    """
    await connection.execute("SELECT FROM canon FOR UPDATE")
    functional = await connection.fetchval("SELECT functional FROM predicate WHERE name = $1", fact.predicate)
    if functional is None:
        raise BadInput(
            f"There is no predicate {clean(fact.predicate, limit=64)}.",
            next_step="Predicates come with the world file; get_entity_facts shows some in use.",
        )
    same = [f for f in await read_facts(connection, {fact.subject}) if f.predicate == fact.predicate]
    for other in same:
        if other.key == fact.key:
            return other.key, False
        if functional and other.object != fact.object and _overlap(other, fact):
            raise Conflict(
                f"{fact.predicate} has one value at a time, and {other.key} says another.",
                next_step="Retire that fact first, or give both their time.",
                details={"fact": other.key},
            )
    await connection.execute(_LOADED_FACT, *_columns(fact, effect.by, loaded=False))
    await _bump(connection, "fact_added", fact.key, effect)
    return fact.key, True


async def retire_fact(connection: Connection, fact_id: str, effect: Effect) -> bool:
    """Whether it held until now; False where it had been retired before. Within the caller's transaction.

    Raises:
        NotFound: There never was such a fact.
    """
    await connection.execute("SELECT FROM canon FOR UPDATE")
    done = await connection.fetchval(
        "UPDATE fact SET retired_at = now() WHERE id = $1 AND retired_at IS NULL RETURNING true", fact_id
    )
    if done:
        await _bump(connection, "fact_retired", fact_id, effect)
    elif not await connection.fetchval("SELECT true FROM fact WHERE id = $1", fact_id):
        raise NotFound("There is no fact of that id.", next_step="get_entity_facts says which there are.")
    return bool(done)


async def _bump(
    connection: Connection, change: Literal["loaded", "fact_added", "fact_retired"], fact_id: str | None, effect: Effect
) -> None:
    await connection.execute(
        "WITH next AS (UPDATE canon SET version = version + 1 RETURNING version)"
        " INSERT INTO canon_change (version, change, fact_id, by, receipt_writer, receipt_sequence)"
        " SELECT version, $1, $2, $3, $4, $5::bigint FROM next",
        change,
        fact_id,
        effect.by,
        effect.receipt and effect.receipt.writer,
        effect.receipt and effect.receipt.sequence,
    )


async def _put_predicates(connection: Connection, there: Sequence[Predicate], wanted: Sequence[Predicate]) -> int:
    known = set(there)
    new = [predicate for predicate in wanted if predicate not in known]
    await connection.executemany(
        "INSERT INTO predicate (name, functional, meaning, says) VALUES ($1, $2::boolean, $3, $4::text[])"
        " ON CONFLICT (name) DO UPDATE SET functional = EXCLUDED.functional, meaning = EXCLUDED.meaning, says = EXCLUDED.says",
        [(p.name, p.functional, p.meaning, list(p.says)) for p in new],
    )
    return len(new)


async def _put_facts(connection: Connection, there: Sequence[Fact], wanted: Sequence[Fact], by: str) -> int:
    known = {fact.key: fact for fact in there}
    new = [fact for fact in wanted if known.get(fact.key) != fact.model_copy(update={"id": fact.key})]
    await connection.executemany(_LOADED_FACT, [_columns(fact, by, loaded=True) for fact in new])
    return len(new)


async def _retire_others(connection: Connection, kept: Collection[str]) -> int:
    rows = await connection.fetch(
        "UPDATE fact SET retired_at = now() WHERE loaded AND retired_at IS NULL AND id <> ALL($1::text[]) RETURNING id",
        list(kept),
    )
    return len(rows)


async def _remove_plots(connection: Connection, there: Sequence[StoredGraph], wanted: Sequence[PlotGraph]) -> int:
    gone = {graph.id for graph in there} - {graph.id for graph in wanted}
    await connection.execute("DELETE FROM plot_graph WHERE id = ANY($1::text[])", list(gone))
    return len(gone)


async def _put_plots(connection: Connection, there: Sequence[StoredGraph], wanted: Sequence[PlotGraph], by: str) -> int:
    known = {graph.id: _shape(graph) for graph in there}
    changed = [graph for graph in wanted if known.get(graph.id) != _shape(graph)]
    # All nodes go before any comes: one may have moved from graph to graph.
    await connection.execute("DELETE FROM plot_node WHERE graph_id = ANY($1::text[])", [graph.id for graph in changed])
    for graph in changed:
        await connection.execute(
            "INSERT INTO plot_graph (id, title, version, by) VALUES ($1, $2, 1, $3) ON CONFLICT (id) DO UPDATE"
            " SET title = EXCLUDED.title, version = plot_graph.version + 1, by = EXCLUDED.by, at = now()",
            graph.id,
            graph.title,
            by,
        )
        await connection.executemany(_NODE, [_node_columns(graph.id, n, node) for n, node in enumerate(graph.nodes)])
        await connection.executemany(
            "INSERT INTO plot_edge (graph_id, src, dst, kind, label) VALUES ($1, $2, $3, $4, $5)",
            [(graph.id, edge.src, edge.dst, edge.kind, edge.label) for edge in graph.edges],
        )
    return len(changed)


def _shape(graph: PlotGraph) -> bytes:
    said = graph.model_dump(mode="json", exclude={"version", "edges"})
    edges = sorted((edge.src, edge.dst, edge.kind, edge.label) for edge in graph.edges)
    return canonical_json([said, edges])


def _overlap(one: Fact, other: Fact) -> bool:
    def before(end: float | None, begin: float | None) -> bool:
        return end is not None and begin is not None and end <= begin

    return not before(one.valid_to, other.valid_from) and not before(other.valid_to, one.valid_from)


def _columns(fact: Fact, by: str, *, loaded: bool) -> tuple[object, ...]:
    said = orjson.dumps(fact.object).decode()
    known_by = None if fact.known_by is None else list(fact.known_by)
    times = (fact.valid_from, fact.valid_to)
    return (fact.key, fact.subject, fact.predicate, said, *times, known_by, fact.source, loaded, by)


def _node_columns(graph_id: str, ordinal: int, node: PlotNode) -> tuple[object, ...]:
    requires = node.requires.model_dump_json(exclude_defaults=True)
    effects = orjson.dumps([effect.model_dump(mode="json") for effect in node.effects]).decode()
    texts = (node.kind, node.title, node.summary, requires, effects)
    return (node.id, graph_id, ordinal, *texts, node.exclusive_group, node.story_time, node.spoiler_level)


def _fact(row: asyncpg.Record) -> Fact:
    names = ("id", "subject", "predicate", "valid_from", "valid_to", "known_by", "source")
    return Fact.model_validate({name: row[name] for name in names} | {"object": orjson.loads(row["said"])})


def _node(row: asyncpg.Record) -> PlotNode:
    names = ("id", "kind", "title", "summary", "exclusive_group", "story_time", "spoiler_level")
    built = {"requires": orjson.loads(row["needs"]), "effects": orjson.loads(row["does"])}
    return PlotNode.model_validate({name: row[name] for name in names} | built)
