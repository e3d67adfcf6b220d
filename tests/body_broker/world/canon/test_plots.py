"""Plots, purely: what is reached, what locks a node, and that each fault put into a sound graph is named."""

from __future__ import annotations

import itertools
import random
import sys
from collections.abc import Callable
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from body_broker.world.canon.model import (
    FactTerm,
    FlagTerm,
    ItemTerm,
    NodeTerm,
    PlotEdge,
    PlotGraph,
    PlotNode,
    Requires,
    Term,
)
from body_broker.world.canon.plots import Standing, available, holds, locks, part_of, reached, validate

KNOWN = {"paid": "flag", "key": "item"}


def node(key: str, *needs: Term, kind: str = "quest", **more: object) -> PlotNode:
    return PlotNode.model_validate({"id": key, "kind": kind, "title": key, "requires": Requires(all=needs), **more})


SOUND = PlotGraph(
    id="g",
    title="G",
    nodes=(
        node("a", effects=(FlagTerm(flag="paid"),)),
        node("b", NodeTerm(node="a"), FlagTerm(flag="paid")),
        node("left", NodeTerm(node="b"), kind="beat", exclusive_group="way"),
        node("right", NodeTerm(node="b"), kind="beat", exclusive_group="way"),
        PlotNode(
            id="end",
            kind="ending",
            title="end",
            requires=Requires(any=(NodeTerm(node="left"), NodeTerm(node="right")), all=(ItemTerm(item="key"),)),
        ),
    ),
    edges=(PlotEdge(src="a", dst="b"),),
)
NODES = {each.id: each for each in SOUND.nodes}


def test_a_sound_graph_has_no_fault() -> None:
    assert validate(SOUND, (SOUND,), KNOWN) == []


def _with(**replaced: PlotNode) -> PlotGraph:
    nodes = [replaced.pop(each.id, each) for each in SOUND.nodes]
    return SOUND.model_copy(update={"nodes": (*nodes, *replaced.values())})


FAULTS: dict[str, tuple[Callable[[], PlotGraph], str]] = {
    "a node that is not there": (lambda: _with(b=node("b", NodeTerm(node="nowhere"))), "dangling_ref"),
    "a flag that is not there": (lambda: _with(b=node("b", FlagTerm(flag="nothing"))), "dangling_ref"),
    "an item that is not there": (lambda: _with(b=node("b", ItemTerm(item="nothing"))), "item_never_granted"),
    "a circle": (lambda: _with(a=node("a", NodeTerm(node="b"), effects=(FlagTerm(flag="paid"),))), "cycle"),
    "a node nobody reaches": (lambda: _with(lost=node("lost", NodeTerm(node="gone"))), "unreachable"),
    "a dead end": (lambda: _with(cul=node("cul", NodeTerm(node="a"))), "dead_end"),
    "both ways at once": (
        lambda: _with(end=node("end", NodeTerm(node="left"), NodeTerm(node="right"), kind="ending")),
        "both_exclusive_required",
    ),
    "an ending nobody reaches": (
        lambda: _with(end=node("end", NodeTerm(node="gone"), kind="ending")),
        "no_ending_reachable",
    ),
    "an effect nobody reads": (lambda: _with(b=node("b", NodeTerm(node="a"))), "effect_without_reader"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_named(fault: str) -> None:
    make, code = FAULTS[fault]
    graph = make()
    assert code in {found.code for found in validate(graph, (graph,), KNOWN)}


def test_faults_put_into_large_graphs_are_all_found() -> None:
    rng = random.Random(7)  # noqa: S311 - seeded, so that a graph can be made again
    for size in (20, 200, 1_000):
        nodes = [node("n0"), *(node(f"n{n}", NodeTerm(node=f"n{rng.randrange(n)}")) for n in range(1, size))]
        nodes.append(node("end", NodeTerm(node=f"n{size - 1}"), kind="ending"))
        sound = PlotGraph(id="g", title="G", nodes=tuple(nodes))
        assert not [fault for fault in validate(sound, (sound,), {}) if fault.severity == "error"]
        for at in rng.sample(range(1, size), 5):
            broken = sound.model_copy(
                update={"nodes": (*nodes[:at], node(f"n{at}", NodeTerm(node="gone")), *nodes[at + 1 :])}
            )
            found = {(fault.code, fault.node) for fault in validate(broken, (broken,), {})}
            assert {("dangling_ref", f"n{at}"), ("unreachable", f"n{at}")} <= found


def test_what_is_done_in_the_world_reaches_what_follows_by_itself() -> None:
    quests = frozenset({"a", "b"})
    assert reached(NODES, Standing(quests=quests)) == frozenset()
    after_a = Standing(done=frozenset({"a"}), quests=quests, flags={"paid": True})
    assert [each.id for each in available(NODES, after_a)] == ["b"]
    after_b = Standing(done=quests, quests=quests, flags={"paid": True})
    assert reached(NODES, after_b) == {"a", "b"}, "a choice is never taken by itself"


def test_a_beat_without_a_quest_of_its_own_happens_when_what_it_needs_is_done() -> None:
    beats = {
        "a": node("a"),
        "then": node("then", NodeTerm(node="a"), kind="beat"),
        "b": node("b", NodeTerm(node="then")),
    }
    standing = Standing(done=frozenset({"a"}), quests=frozenset({"a", "b"}))
    assert reached(beats, standing) == {"a", "then"}
    assert [each.id for each in available(beats, standing)] == ["b"]


def test_locks_say_what_is_missing_which_of_several_and_what_must_not_be() -> None:
    requires = Requires(
        all=(FlagTerm(flag="paid"), FactTerm(subject="mara", predicate="age", object=34)),
        any=(ItemTerm(item="key"), NodeTerm(node="a")),
        none=(NodeTerm(node="b"),),
    )
    found = locks(requires, Standing(), {"b"})
    assert [(kind, type(term).__name__) for kind, term in found] == [
        ("missing", "FlagTerm"),
        ("missing", "FactTerm"),
        ("one_of", "ItemTerm"),
        ("one_of", "NodeTerm"),
        ("forbidden", "NodeTerm"),
    ]
    standing = Standing(flags={"paid": True}, items=frozenset({"key"}), facts=frozenset({("mara", "age", 34)}))
    assert locks(requires, standing, frozenset()) == []
    assert holds(Requires(all=(requires,)), standing, frozenset())


def test_a_part_of_a_graph_is_what_follows_within_so_many_steps() -> None:
    assert [each.id for each in part_of(SOUND, None, None)] == [each.id for each in SOUND.nodes]
    assert [each.id for each in part_of(SOUND, "b", 0)] == ["b"]
    assert [each.id for each in part_of(SOUND, "b", 1)] == ["b", "left", "right"]
    assert [each.id for each in part_of(SOUND, "b", None)] == ["b", "left", "right", "end"]


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=30), st.sets(st.integers(0, 9)))
def test_whatever_is_available_is_unlocked_and_not_done(needs: list[tuple[int, int]], done: set[int]) -> None:
    nodes = {f"n{n}": node(f"n{n}", *(NodeTerm(node=f"n{need}") for who, need in needs if who == n)) for n in range(10)}
    standing = Standing(done=frozenset(f"n{n}" for n in done), quests=frozenset(nodes))
    for each in available(nodes, standing):
        assert each.id not in standing.done
        assert all(isinstance(term, NodeTerm) and term.node in standing.done for term in each.requires.all)


def _by_rounds(nodes: dict[str, PlotNode], standing: Standing) -> frozenset[str]:
    """What reached says, asked of every node again and again."""
    found = set(standing.done)
    while True:
        now = {
            each.id
            for each in nodes.values()
            if each.id not in found and each.kind == "beat" and not locks(each.requires, standing, found)
        }
        if not now:
            return frozenset(found)
        found |= now


@given(seed=st.integers(0, 10_000))
def test_a_plot_is_reached_as_if_every_node_were_asked_again_each_round(seed: int) -> None:
    rng = random.Random(seed)  # noqa: S311 - seeded, so that a case can be made again
    ids = [f"n{n}" for n in range(12)]

    def some() -> tuple[NodeTerm, ...]:
        return tuple(NodeTerm(node=each) for each in rng.sample(ids, rng.randrange(3)))

    nodes = {
        each: PlotNode(id=each, kind="beat", title=each, requires=Requires(all=some(), any=some(), none=some()))
        for each in ids
    }
    standing = Standing(done=frozenset(rng.sample(ids, 2)))
    assert reached(nodes, standing) == _by_rounds(nodes, standing)


@pytest.mark.parametrize("step", [1, -1])
def test_a_long_chain_takes_work_in_line_with_its_length(step: int) -> None:
    def work(count: int) -> int:
        ids = [f"n{n}" for n in range(count)][::step]
        after = dict(pairwise(reversed(ids)))
        chain = [node(each, *([NodeTerm(node=after[each])] if each in after else []), kind="beat") for each in ids]
        graph = PlotGraph(id="g", title="G", nodes=tuple(chain))
        calls = itertools.count()

        def counted(*_: object) -> None:
            next(calls)

        sys.setprofile(counted)
        try:
            found = reached({each.id: each for each in chain}, Standing())
            faults = validate(graph, (graph,), {})
        finally:
            sys.setprofile(None)
        assert len(found) == count
        assert not any(fault.code == "unreachable" for fault in faults)
        return next(calls)

    # Calls and returns, counted: a clock says other things on a busy machine. Sixteen times as long a chain takes
    # 256 times as many where every node is asked again for each.
    assert work(4_000) <= 20 * work(250)
