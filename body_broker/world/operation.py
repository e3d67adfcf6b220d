"""Owns what an operation on the world is: a row with a payload, and what it may look at. The operations themselves lie beside it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from body_broker.world.kinds import Actor, Data, names_in
from body_broker.world.model import PLAYER_RANK, Change, Effect, Entity, Kind
from body_broker.world.overlay import Overlay

ACTORS: frozenset[Kind] = frozenset({"npc", "player"})


class Payload(Data):
    """Base of the operations' payloads: closed, bounded, no NaN."""


@dataclass(frozen=True, slots=True)
class Refused:
    """Why an operation does nothing: the name of a rule, one of `RULES`."""

    rule: str


def from_outside(change: Change) -> bool:
    """Whether free text that a change brings is to be marked as text from outside."""
    return change.tainted or change.rank >= PLAYER_RANK


@dataclass(frozen=True, slots=True)
class Scene:
    """What an operation may look at.

    Attributes:
        entities: The world as the changes before this one leave it.
        change: The change that is decided.
        tick: When.
    """

    entities: Overlay
    change: Change
    tick: int

    @property
    def outside(self) -> bool:
        """Whether text that the change brings came from outside: rank 2 is a player's input, whoever carried it here."""
        return from_outside(self.change)

    def present(self, entity_id: str | None, *kinds: Kind) -> Entity | None:
        """An entity that is there and of one of these kinds, or of any where none is named; else None."""
        found = None if entity_id is None else self.entities.get(entity_id)
        return None if found is None or found.removed or (kinds and found.kind not in kinds) else found


Outcome = list[Effect] | Refused
# Any: each operation's payload is its own type; `Op.parse` makes it.
Apply = Callable[[Entity, Any, Scene], Outcome]
Make = Callable[[Any, Scene], Outcome]


@dataclass(frozen=True, kw_only=True)
class Op:
    """One operation of the registered table.

    Attributes:
        name: As changes name it.
        does: What it does, for people and models.
        kinds: The kinds of entity that it is applied to, or that it creates.
        payload: What it is given.
        apply: What it does to an entity that is there, not removed, of a fitting kind; pure.
        make: What it does where the entity must not be there yet; takes the place of `apply`.
        commutative: Its outcome does not depend on the order, so a change may leave `expect_version` out.
        on_the_dead: It is applied to a dead actor too.
    """

    name: str
    does: str
    kinds: frozenset[Kind]
    payload: type[Payload]
    apply: Apply | None = None
    make: Make | None = None
    commutative: bool = False
    on_the_dead: bool = False

    @property
    def needs_version(self) -> bool:
        """Whether a change must say which version of the entity it is for."""
        return not self.commutative and self.make is None

    def needs(self, payload: Mapping[str, Any]) -> set[str]:
        """The ids of other entities that a checked payload names."""
        return names_in(self.payload, payload)

    def parse(self, payload: Mapping[str, Any]) -> Payload:
        """The payload as its type.

        Raises:
            pydantic.ValidationError: It does not fit.
        """
        return self.payload.model_validate(payload)


def is_dead(entity: Entity) -> bool:
    """Whether it is an actor that is not alive."""
    return entity.kind in ACTORS and not entity.data.get("alive", Actor.model_fields["alive"].default)


RULES: Mapping[str, str] = {
    "unknown_entity": "There is no such entity.",
    "removed_entity": "The entity is gone.",
    "entity_exists": "There is, or was, an entity of that id.",
    "unknown_operation": "The engine knows no such operation.",
    "wrong_kind": "The operation is not for entities of that kind.",
    "dead_actor": "The dead do not act, and nothing is done with them as if they lived.",
    "alive_actor": "It is for the dead alone.",
    "bad_payload": "The operation's payload does not fit.",
    "protected_field": "Another operation changes that field.",
    "unknown_reference": "It names an entity that is not there.",
    "unknown_region": "There is no such region.",
    "unknown_place": "There is no such place.",
    "not_reachable": "There is no way from here to there.",
    "locked": "The place is locked, and its key is not at hand.",
    "not_held": "Nobody holds the item.",
    "already_held": "Somebody alive holds the item.",
    "not_portable": "The item cannot be carried.",
    "inventory_full": "They cannot carry more.",
    "too_many": "It leans to as many as it can already.",
    "empty_handed": "Who is new has nothing yet: give them their things afterwards.",
    "destroyed_item": "The item is destroyed.",
    "not_a_number": "The field holds no number.",
    "quest_order": "The quest cannot go from its present state to that one.",
    "quest_precondition": "Something that the quest requires does not hold.",
    "unknown_stage": "The quest has no such stage.",
    "stage_regression": "A quest does not go back to an earlier stage.",
    "still_used": "Something is still in it, or held by it.",
    "same_cause": "The same change of the same entity is among its own causes.",
    "depth": "It is caused by changes that were caused by too many others.",
    "fault": "The engine failed at it; its log says why.",
    "batch": "Another change of its batch was not applied.",
}
"""What each rule says that a change was refused for."""
