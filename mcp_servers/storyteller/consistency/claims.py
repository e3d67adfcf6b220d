"""Owns the words of a check: what a sentence claims, why one was not understood, and what contradicts what."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from body_broker.world.canon.model import Scalar

Code = Literal["dead_actor", "unknown_entity", "two_places", "functional_fact", "quest_precondition"]
Reason = Literal["speech", "question", "hearsay", "hypothetical", "dream", "earlier", "pronoun", "words", "long"]
Step = Literal["done", "begun", "not_done"]

Span = tuple[int, int]
"""First and last unit of a sentence, the last excluded."""


@dataclass(frozen=True, slots=True)
class Acts:
    """Somebody does what only the living do."""

    who: str
    span: Span


@dataclass(frozen=True, slots=True)
class Dies:
    """Somebody dies, or is dead from here on; `revived` is the other way round."""

    who: str
    span: Span
    revived: bool = False


@dataclass(frozen=True, slots=True)
class At:
    """Somebody is at a place.

    Attributes:
        time: What it happens at, where the text says so: equal keys are one time.
    """

    who: str
    place: str
    span: Span
    time: str | None


@dataclass(frozen=True, slots=True)
class Says:
    """A subject has a value, or has not."""

    subject: str
    predicate: str
    value: Scalar
    span: Span
    holds: bool = True


@dataclass(frozen=True, slots=True)
class Quest:
    """A quest or stage is done, begun or said not to be done."""

    node: str
    step: Step
    span: Span


@dataclass(frozen=True, slots=True)
class Unknown:
    """A name that canon does not know acts, or is where somebody is."""

    name: str
    span: Span


Claim = Acts | Dies | At | Says | Quest | Unknown


@dataclass(slots=True)
class Read:
    """What was read of one sentence; its claims' spans are characters of the text.

    Attributes:
        reason: Why it was not understood; None where all of it was.
        named: Keys of everybody and everything it names.
        meant: Whether a pronoun in it was taken to mean somebody.
        places: Keys of the places that it names, each as often as it does.
    """

    start: int
    end: int
    claims: list[Claim] = field(default_factory=list[Claim])
    reason: Reason | None = None
    named: frozenset[str] = frozenset()
    meant: bool = False
    places: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Conflict:
    """What a claim contradicts: where that stands, and in words."""

    source: str
    text: str


@dataclass(frozen=True, slots=True)
class Violation:
    """A claim that contradicts canon; the text's characters start to end are `claim`."""

    code: Code
    severity: Literal["error", "warning"]
    claim: str
    start: int
    end: int
    conflicts_with: Conflict
