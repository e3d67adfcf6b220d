"""Owns the words of canon: predicates, facts, plot graphs, and what a node requires and does. The same shapes in files and calls."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from body_broker.text import digest

Scalar = Annotated[str, Field(max_length=500)] | bool | int | float
Slug = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_.-]{0,79}$")]
PredicateName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,63}$")]
NodeKind = Literal["quest", "stage", "beat", "ending"]
EdgeKind = Literal["next", "choice"]

REQUIRES_DEPTH_MAX = 4
SUBJECT, OBJECT = "{subject}", "{object}"


class Part(BaseModel):
    """Base of everything canon is made of: strict, closed and frozen, without NaN."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)


class Predicate(Part):
    """What may be said of a subject.

    Attributes:
        functional: It has one value at a time, so that two are a contradiction.
        says: How a text says it beyond the ways that the consistency rules know, such as `{subject} is bound to {object}`.
    """

    name: PredicateName
    functional: bool
    meaning: Annotated[str, Field(min_length=1, max_length=300)]
    says: Annotated[tuple[Annotated[str, Field(max_length=120)], ...], Field(max_length=8, strict=False)] = ()

    @model_validator(mode="after")
    def _both_are_named(self) -> Self:
        if any(phrase.count(SUBJECT) != 1 or phrase.count(OBJECT) != 1 for phrase in self.says):
            raise ValueError("each phrase of says names {subject} and {object} once")
        return self


class Fact(Part):
    """Something that is so, for a time of the story or always.

    Attributes:
        id: Left out, it is made of what the fact says.
        subject: An entity's id, or the name of somebody who is none.
        object: A scalar; an entity is named by its id.
        valid_from: Story time from which it holds; None is always.
        valid_to: Story time at which it no longer holds.
        known_by: Who knows it, by entity id; None is everybody.
        source: A lore document, a plot node, an operator.
    """

    id: Annotated[str, Field(max_length=80)] = ""
    subject: Annotated[str, Field(min_length=1, max_length=120)]
    predicate: PredicateName
    object: Scalar
    valid_from: float | None = None
    valid_to: float | None = None
    known_by: Annotated[tuple[str, ...] | None, Field(strict=False)] = None
    source: Annotated[str, Field(min_length=1, max_length=200)]

    @model_validator(mode="after")
    def _time_runs_forward(self) -> Self:
        if self.valid_from is not None and self.valid_to is not None and self.valid_from >= self.valid_to:
            raise ValueError("valid_from must lie before valid_to")
        return self

    @property
    def key(self) -> str:
        """Its id, or the one made of what it says."""
        said = [self.subject, self.predicate, self.object, self.valid_from, self.valid_to, self.source]
        return self.id or f"fact_{digest(said)[:24]}"

    def holds_at(self, moment: float | None) -> bool:
        """Whether it holds at a moment of the story; None is the present, where whatever has ended does not."""
        if moment is None:
            return self.valid_to is None
        began = self.valid_from is None or self.valid_from <= moment
        return began and (self.valid_to is None or moment < self.valid_to)


class NodeTerm(Part):
    """A node that has been reached: a quest that is done."""

    node: Slug


class FlagTerm(Part):
    """A flag's value."""

    flag: Slug
    value: Scalar = True


class ItemTerm(Part):
    """An item that the player has."""

    item: Slug


class FactTerm(Part):
    """A fact of canon that holds."""

    subject: Annotated[str, Field(max_length=120)]
    predicate: PredicateName
    object: Scalar


class Requires(Part):
    """What must be so: all of some terms, one of others, none of a third kind. Empty is always so."""

    all: Annotated[tuple[Term, ...], Field(max_length=32, strict=False)] = ()
    any: Annotated[tuple[Term, ...], Field(max_length=32, strict=False)] = ()
    none: Annotated[tuple[Term, ...], Field(max_length=32, strict=False)] = ()

    @model_validator(mode="after")
    def _not_too_deep(self) -> Self:
        if self.depth() > REQUIRES_DEPTH_MAX:
            raise ValueError(f"requires is nested deeper than {REQUIRES_DEPTH_MAX} levels")
        return self

    def depth(self) -> int:
        """How many levels of requirements it has."""
        below = [term.depth() for term in (*self.all, *self.any, *self.none) if isinstance(term, Requires)]
        return 1 + max(below, default=0)

    def terms(self) -> Iterator[Leaf]:
        """Every term in it, at any depth."""
        for term in (*self.all, *self.any, *self.none):
            if isinstance(term, Requires):
                yield from term.terms()
            else:
                yield term


Leaf = NodeTerm | FlagTerm | ItemTerm | FactTerm
Term = Leaf | Requires
Requires.model_rebuild()

PlotEffect = FlagTerm | ItemTerm | FactTerm
"""What reaching a node does: sets a flag, grants an item, makes a fact."""


class PlotNode(Part):
    """A quest, a stage of one, a beat, or an ending.

    Attributes:
        id: Unique over all graphs; a quest's is that of the world's quest entity, where there is one.
        exclusive_group: Of the nodes of one group a player reaches one.
        story_time: When it happens, where that is fixed.
    """

    id: Slug
    kind: NodeKind
    title: Annotated[str, Field(min_length=1, max_length=200)]
    summary: Annotated[str, Field(max_length=2_000)] = ""
    requires: Requires = Requires()
    effects: Annotated[tuple[PlotEffect, ...], Field(max_length=32, strict=False)] = ()
    exclusive_group: Slug | None = None
    story_time: float | None = None
    spoiler_level: Annotated[int, Field(ge=0, le=100)] = 0


class PlotEdge(Part):
    """What may follow a node, by itself or by choice."""

    src: Slug
    dst: Slug
    kind: EdgeKind = "next"
    label: Annotated[str, Field(max_length=200)] = ""


class PlotGraph(Part):
    """A plot: nodes and what follows what."""

    id: Slug
    title: Annotated[str, Field(min_length=1, max_length=200)]
    nodes: Annotated[tuple[PlotNode, ...], Field(max_length=10_000, strict=False)]
    edges: Annotated[tuple[PlotEdge, ...], Field(max_length=50_000, strict=False)] = ()


class StoredGraph(PlotGraph):
    """A graph with its version: each change of it is one more."""

    version: int


class Canon(Part):
    """All that is canon now: what was retired is not in it."""

    predicates: tuple[Predicate, ...]
    facts: tuple[Fact, ...]
    plots: tuple[StoredGraph, ...]
    version: int = 0
