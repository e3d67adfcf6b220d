"""Owns the operations on items: who holds them, where they lie, and their end."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from body_broker.world.kinds import INVENTORY_MAX, Ref, value_of
from body_broker.world.model import Effect, Entity, Kind
from body_broker.world.operation import ACTORS, Op, Outcome, Payload, Refused, Scene, is_dead


class Give(Payload):
    """To whom."""

    to: Ref


class Take(Payload):
    """Who takes it."""

    by: Ref


class Drop(Payload):
    """Nothing more to say."""


class Destroy(Payload):
    """Nothing more to say."""


def give(item: Entity, payload: Give, scene: Scene) -> Outcome:
    """From who holds it to somebody alive in the same place."""
    giver, receiver = scene.present(value_of(item, "holder"), *ACTORS), scene.present(payload.to, *ACTORS)
    if giver is None:
        return Refused("not_held")
    if receiver is None:
        return Refused("unknown_reference")
    if is_dead(giver) or is_dead(receiver):
        return Refused("dead_actor")
    if receiver.id == giver.id:
        return Refused("already_held")
    if value_of(giver, "place") != value_of(receiver, "place"):
        return Refused("not_reachable")
    return _hand_over(item, giver, receiver, "given")


def take(item: Entity, payload: Take, scene: Scene) -> Outcome:
    """From where it lies, or from the dead, by somebody alive who is there."""
    taker, holder = scene.present(payload.by, *ACTORS), scene.present(value_of(item, "holder"), *ACTORS)
    if taker is None:
        return Refused("unknown_reference")
    if is_dead(taker):
        return Refused("dead_actor")
    if not value_of(item, "portable"):
        return Refused("not_portable")
    if holder is not None and not is_dead(holder):
        return Refused("already_held")
    lies_in = value_of(item, "place") if holder is None else value_of(holder, "place")
    if lies_in is None or lies_in != value_of(taker, "place"):
        return Refused("not_reachable")
    return _hand_over(item, holder, taker, "taken")


def drop(item: Entity, _payload: Drop, scene: Scene) -> Outcome:
    """Where its holder stands."""
    holder = scene.present(value_of(item, "holder"), *ACTORS)
    if holder is None:
        return Refused("not_held")
    patch = {"holder": None, "place": value_of(holder, "place")}
    return [
        Effect(entity_id=item.id, type="dropped", patch=patch, region=holder.region),
        without(holder, item),
    ]


def destroy(item: Entity, _payload: Destroy, scene: Scene) -> Outcome:
    """It is no use any more, and nobody holds it."""
    gone = Effect(entity_id=item.id, type="destroyed", patch={"destroyed": True, "holder": None})
    holder = scene.present(value_of(item, "holder"), *ACTORS)
    return [gone] if holder is None else [gone, without(holder, item)]


def without(holder: Entity, item: Entity) -> Effect:
    """Holding all but that item."""
    left = [each for each in value_of(holder, "inventory") if each != item.id]
    return Effect(entity_id=holder.id, type="lost", patch={"inventory": left})


def holding(holder: Entity, item_id: str) -> Effect | Refused:
    """Holding that item too."""
    held = value_of(holder, "inventory")
    if len(held) >= INVENTORY_MAX:
        return Refused("inventory_full")
    return Effect(entity_id=holder.id, type="got", patch={"inventory": [*held, item_id]})


def _hand_over(item: Entity, giver: Entity | None, receiver: Entity, how: str) -> Outcome:
    got = holding(receiver, item.id)
    if isinstance(got, Refused):
        return got
    patch = {"holder": receiver.id, "place": None}
    handed = Effect(entity_id=item.id, type=how, patch=patch, region=receiver.region)
    return [handed, got] if giver is None else [handed, without(giver, item), got]


def _unless_destroyed(apply: Callable[[Entity, Any, Scene], Outcome]) -> Callable[[Entity, Any, Scene], Outcome]:
    def checked(item: Entity, payload: object, scene: Scene) -> Outcome:
        return Refused("destroyed_item") if value_of(item, "destroyed") else apply(item, payload, scene)

    return checked


_ITEM: frozenset[Kind] = frozenset({"item"})
OPS = (
    Op(
        name="give",
        does="The holder gives the item to somebody in the same place.",
        kinds=_ITEM,
        payload=Give,
        apply=_unless_destroyed(give),
    ),
    Op(
        name="take",
        does="Somebody takes the item from where it lies, or from the dead.",
        kinds=_ITEM,
        payload=Take,
        apply=_unless_destroyed(take),
    ),
    Op(
        name="drop",
        does="The holder drops the item where they stand.",
        kinds=_ITEM,
        payload=Drop,
        apply=_unless_destroyed(drop),
    ),
    Op(name="destroy", does="End the item's use.", kinds=_ITEM, payload=Destroy, apply=_unless_destroyed(destroy)),
)
