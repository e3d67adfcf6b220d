"""Owns what the storyteller's tools need: the lore, the world's names, facts and plots; and what a text is held against."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any, ParamSpec, TypeVar

from body_broker.calls import Caller
from body_broker.errors import BadInput, NotFound
from body_broker.lore import Lore
from body_broker.lore import canon as lore_canon
from body_broker.lore.index import Filter
from body_broker.lore.model import SHARED
from body_broker.storage.postgres import Pool
from body_broker.text import clean
from body_broker.world.canon import plots
from body_broker.world.canon.model import Canon, Fact, PlotNode, Scalar, StoredGraph
from body_broker.world.canon.shelf import CanonShelf
from body_broker.world.files.model import LORE_ORIGIN
from body_broker.world.kinds import value_of
from body_broker.world.map import WorldMap
from body_broker.world.model import Entity
from mcp_servers.storyteller import writing
from mcp_servers.storyteller.consistency.checking import Checked, check, named_in, unknown_names, with_names
from mcp_servers.storyteller.consistency.knowledge import Knowledge, Progress, build
from mcp_servers.storyteller.consistency.lore import with_lore
from tiers.bronze.jobs import Jobs
from tiers.bronze.kept import Kept
from tiers.bronze.model import Shape

T = TypeVar("T")
P = ParamSpec("P")

_UNKNOWN_LOOKED_UP = 24
_AT_ONCE = 4
_KEPT = 4
_OF_LORE = "lore:"
"""What a fact's source begins with that is a document."""
_SHORT_CHARACTERS = 300
"""A text this short is checked within milliseconds; longer ones do not hold up the loop."""


@dataclass(frozen=True)
class Services:
    """Lore, world, facts and plots, and how something is written for them.

    Attributes:
        pool: The stores.
        lore: What is told of the world.
        world: What the world is now.
        jobs: Where experts' jobs are asked for.
        budget: `async (caller) -> facts`: whether an expert's job may still be asked for, as rules read it.
        kept: `async (job, owner) -> what came of it`, longer than the job's work is kept; None where there is nothing.
    """

    pool: Pool
    lore: Lore
    world: WorldMap
    jobs: Jobs
    budget: Callable[[Caller], Awaitable[frozenset[str]]]
    kept: Callable[[str, str], Awaitable[Kept | None]]
    _built: dict[tuple[float | None, str | None], tuple[tuple[int, int], Knowledge]] = field(
        default_factory=dict[Any, Any], repr=False
    )

    @cached_property
    def shelf(self) -> CanonShelf:
        """Canon, remembered."""
        return CanonShelf(self.pool)

    def shapes(self) -> Mapping[str, Shape]:
        """What makes results of experts' answers, by the kind of job."""

        async def held(text: str) -> Checked:
            return await self.check(text, {})

        return {
            writing.NARRATIVE: partial(writing.shape_narrative, check=held),
            writing.STORY_ARC: partial(writing.shape_arc, check=held),
        }

    async def entities(self) -> Mapping[str, Entity]:
        """The world as it is."""
        await self.world.ensure()
        return self.world.entities

    async def check(
        self,
        narrative: str,
        existing_lore: Mapping[str, object],
        *,
        at: float | None = None,
        player_id: str | None = None,
        done: Collection[str] | None = None,
        knows: str | None = None,
    ) -> Checked:
        """Hold a text against canon, the world, and what the caller says is so.

        A name that only the canon's lore has is known too: it is looked for there. With `knows`, canon is what this one knows.

        Raises:
            NotFound: There is no such player.
            BadInput: `done` and `player_id` are both given.
        """
        known = replace(await self._knowledge(at, knows), progress=await self._progress(player_id, done))
        known = await asyncio.to_thread(with_lore, known, existing_lore)
        strange = await _thread(narrative, unknown_names, known)
        if strange:
            known = with_names(known, await self._in_lore(strange[:_UNKNOWN_LOOKED_UP]))
        return await _thread(narrative, check, known)

    async def _knowledge(self, at: float | None, knows: str | None = None) -> Knowledge:
        canon, entities = await self.shelf.read(), await self.entities()
        version = (canon.version, self.world.reading().pos)
        kept = self._built.get((at, knows))
        if kept is None or kept[0] != version:
            if len(self._built) >= _KEPT:
                self._built.clear()  # others are of an older version, or rarely asked for again
            known = canon if knows is None else canon.model_copy(update={"facts": told_to(canon.facts, knows)})
            built = await asyncio.to_thread(build, known, list(entities.values()), at)
            kept = self._built[at, knows] = (version, built)
        return kept[1]

    async def _progress(self, player_id: str | None, done: Collection[str] | None) -> Progress:
        if player_id is not None and done is not None:
            raise BadInput("A scope has done or player_id, not both.")
        if done is not None:
            quests = {
                node.id for graph in (await self.shelf.read()).plots for node in graph.nodes if node.kind == "quest"
            }
            return Progress(frozenset(done), frozenset(quests - set(done)))
        if player_id is None:
            return Progress()
        nodes, standing = await self.standing(player_id)
        reached = await self.apart(plots.reached, nodes, standing)
        return Progress(reached, frozenset(standing.quests - reached), standing.flags, source=f"player: {player_id}")

    async def _in_lore(self, names: Sequence[str]) -> list[str]:
        """Those of some names that a passage of the shared canon has, letter by letter."""
        found: list[str] = []
        for at in range(0, len(names), _AT_ONCE):
            asked = names[at : at + _AT_ONCE]
            pages = await asyncio.gather(
                *(self.lore.search(SHARED, name, limit=5, where=Filter(source="canon"), by="words") for name in asked)
            )
            found += [
                name
                for name, page in zip(asked, pages, strict=True)
                if any(_has(passage.content, name) or _has(passage.title, name) for passage in page.passages)
            ]
        return found

    async def facts_named(self, text: str, knows: str | None) -> list[Fact]:
        """Facts of the present about everybody and everything that a text names, as far as somebody knows them."""
        known = await self._knowledge(None, knows)
        keys = await _thread(text, named_in, known)
        return [
            fact
            for fact in told_to((await self.shelf.read()).facts, knows)
            if (fact.subject in keys or known.names.find(fact.subject) in keys) and fact.holds_at(None)
        ]

    async def within(self, facts: Sequence[Fact], spoiler_max: int | None) -> list[Fact]:
        """Facts that spoil nothing above a level: everybody knows them, and so does their document tell, where they have one."""
        if spoiler_max is None:
            return list(facts)
        origins = {
            fact: LORE_ORIGIN + fact.source.removeprefix(_OF_LORE) for fact in facts if fact.source.startswith(_OF_LORE)
        }
        told = await lore_canon.within(self.pool, sorted(set(origins.values())), spoiler_max)
        return [fact for fact in facts if fact.known_by is None and (fact not in origins or origins[fact] in told)]

    async def hidden(self, spoiler_max: int | None) -> set[str]:
        """Ids of the plots' nodes above a spoiler level."""
        return {
            node.id
            for graph in (await self.shelf.read()).plots
            for node in graph.nodes
            if spoiler_max is not None and node.spoiler_level > spoiler_max
        }

    async def key_of(self, named: str) -> str:
        """The id of whom a name or alias means, so that facts of one subject meet; a name that nobody has stays one.

        Raises:
            BadInput: Several have the name.
        """
        names = (await self._knowledge(None)).names
        key = names.find(named)
        if key is None and names.is_known(named):
            raise BadInput(
                f"Several are called {clean(named, limit=80)}.", next_step="Give the id: find_entities lists them."
            )
        return key or named

    async def apart(self, run: Callable[P, T], *arguments: P.args, **named: P.kwargs) -> T:
        """What something pure answers, computed off the loop."""
        return await asyncio.to_thread(run, *arguments, **named)

    async def graph(self, graph_id: str) -> StoredGraph:
        """A graph by its id.

        Raises:
            NotFound: There is none.
        """
        canon = await self.shelf.read()
        found = next((graph for graph in canon.plots if graph.id == graph_id), None)
        if found is None:
            names = ", ".join(graph.id for graph in canon.plots[:20]) or "none"
            raise NotFound(f"There is no plot graph {clean(graph_id, limit=80)}.", next_step=f"There are: {names}.")
        return found

    async def node(self, node_id: str, spoiler_max: int | None = None) -> tuple[StoredGraph, PlotNode]:
        """A node by its id, and its graph; one above the spoiler level is as if it were not there.

        Raises:
            NotFound: There is none.
        """
        for graph in (await self.shelf.read()).plots:
            for node in graph.nodes:
                if node.id == node_id and (spoiler_max is None or node.spoiler_level <= spoiler_max):
                    return graph, node
        raise NotFound(
            f"There is no quest, stage, beat or ending {clean(node_id, limit=80)}.",
            next_step="get_plot_graph lists the nodes of a graph.",
        )

    async def standing(self, player_id: str) -> tuple[Mapping[str, PlotNode], plots.Standing]:
        """Every node of the plots, and what is so for a player.

        Raises:
            NotFound: There is no such player.
        """
        canon, entities = await self.shelf.read(), await self.entities()
        player = entities.get(player_id)
        if player is None or player.removed or player.kind != "player":
            raise NotFound(
                f"There is no player {clean(player_id, limit=80)}.", next_step="find_entities lists players."
            )
        return {node.id: node for graph in canon.plots for node in graph.nodes}, _standing(canon, entities, player)

    async def subject(self, named: str, known_to: str | None = None) -> tuple[str, str, list[Fact]]:
        """The key and name of what an id or name means, and canon's facts of it, both as far as somebody knows them.

        Raises:
            NotFound: Neither world nor canon has it.
        """
        known = await self._knowledge(None, known_to)
        key = known.names.find(named)
        if key is None:
            raise NotFound(
                f"Canon knows nobody and nothing called {clean(named, limit=80)}, or several.",
                next_step="Use an id, or the whole name; find_entities lists entities.",
            )
        facts = [
            fact
            for fact in told_to((await self.shelf.read()).facts, known_to)
            if fact.subject == key or known.names.find(fact.subject) == key
        ]
        return key, known.label(key), facts


def told_to(facts: Iterable[Fact], knows: str | None) -> tuple[Fact, ...]:
    """Facts that somebody knows; all of them for nobody in particular."""
    return tuple(fact for fact in facts if knows is None or fact.known_by is None or knows in fact.known_by)


def _has(text: str, name: str) -> bool:
    return f" {name} " in f" {' '.join(''.join(c if c.isalnum() else ' ' for c in text).split())} "


def _standing(canon: Canon, entities: Mapping[str, Entity], player: Entity) -> plots.Standing:
    """What the world says of a player: a quest that lists players is done for those alone."""
    quests = [entity for entity in entities.values() if entity.kind == "quest" and not entity.removed]
    done: set[str] = set()
    for quest in quests:
        players = value_of(quest, "players")
        if value_of(quest, "state") == "done" and (not players or player.id in players):
            done.add(quest.id)
    flags: dict[str, Scalar] = {
        e.id: value_of(e, "value") for e in entities.values() if e.kind == "flag" and not e.removed
    }
    return plots.Standing(
        done=frozenset(done),
        quests=frozenset(quest.id for quest in quests),
        flags=flags,
        items=frozenset(value_of(player, "inventory")),
        facts=plots.facts_now(canon.facts),
    )


async def _thread(text: str, run: Callable[[str, Knowledge], T], known: Knowledge) -> T:
    return run(text, known) if len(text) <= _SHORT_CHARACTERS else await asyncio.to_thread(run, text, known)
