"""Owns the operations on who acts: moving, speaking, remembering, being hurt, dying, and coming back."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, Field

from body_broker.text import clean
from body_broker.world.kinds import MEMORIES_MAX, SAYING_MAX, Line, Position, Ref, value_of
from body_broker.world.model import Effect, Entity
from body_broker.world.operation import ACTORS, Op, Outcome, Payload, Refused, Scene, is_dead

Amount = Annotated[int, Field(ge=1, le=100)]
Saying = Annotated[str, Field(min_length=1, max_length=SAYING_MAX), AfterValidator(clean)]


class Move(Payload):
    """Where to; `position` is within that place."""

    to: Ref
    position: Position | None = None


class Say(Payload):
    """The words, and the NPC that hears and remembers them."""

    text: Saying
    to: Ref | None = None


class AppendMemory(Payload):
    """What is remembered, and from whom."""

    text: Saying
    by: Line | None = None


class Hurt(Payload):
    """How much health it costs; at none left they die."""

    by: Amount


class Heal(Payload):
    """How much health it gives, up to 100."""

    by: Amount


class Die(Payload):
    """Nothing more to say."""


class Revive(Payload):
    """With how much health."""

    health: Amount = 50


def move(entity: Entity, payload: Move, scene: Scene) -> Outcome:
    """To a place that the present one has an exit to, and that is not locked without its key at hand."""
    to = scene.present(payload.to, "place")
    if to is None:
        return Refused("unknown_place")
    here = value_of(entity, "place")
    if here is not None and here != to.id:
        left = scene.present(here, "place")
        if left is None or to.id not in value_of(left, "exits"):
            return Refused("not_reachable")
        if value_of(to, "locked") and value_of(to, "key") not in value_of(entity, "inventory"):
            return Refused("locked")
    return [moved(entity, to, payload.position)]


def relocate(entity: Entity, payload: Move, scene: Scene) -> Outcome:
    """To any place there is: what a game does with who enters it or falls out of it."""
    to = scene.present(payload.to, "place")
    return Refused("unknown_place") if to is None else [moved(entity, to, payload.position)]


def moved(entity: Entity, to: Entity, position: list[float] | None) -> Effect:
    """Being in a place from now on, and in its region."""
    patch = {"place": to.id, "position": position}
    return Effect(entity_id=entity.id, type="moved", patch=patch, region=to.region)


def say(entity: Entity, payload: Say, scene: Scene) -> Outcome:
    """Words, kept as the speaker's latest and in the memory of the NPC that they are for."""
    words = _remark(payload.text, entity.id, scene, outside=entity.kind == "player")
    effects = [Effect(entity_id=entity.id, type="said", patch={"last_said": words}, outside=words["outside"])]
    if payload.to is None or payload.to == entity.id:
        return effects
    hearer = scene.present(payload.to, *ACTORS)
    if hearer is None:
        return Refused("unknown_reference")
    if is_dead(hearer):
        return Refused("dead_actor")
    if value_of(hearer, "place") != value_of(entity, "place"):
        return Refused("not_reachable")
    return [*effects, _remembering(hearer, words)] if hearer.kind == "npc" else effects


def append_memory(entity: Entity, payload: AppendMemory, scene: Scene) -> Outcome:
    """One more memory; the oldest beyond fifty is forgotten."""
    by = scene.present(payload.by)
    words = _remark(payload.text, payload.by, scene, outside=by is not None and by.kind == "player")
    return [_remembering(entity, words)]


def hurt(entity: Entity, payload: Hurt, _scene: Scene) -> Outcome:
    """Less health; none left is death."""
    health = max(value_of(entity, "health") - payload.by, 0)
    if health == 0:
        return [_died(entity)]
    return [Effect(entity_id=entity.id, type="hurt", patch={"health": health})]


def heal(entity: Entity, payload: Heal, _scene: Scene) -> Outcome:
    """More health."""
    return [
        Effect(entity_id=entity.id, type="healed", patch={"health": min(value_of(entity, "health") + payload.by, 100)})
    ]


def die(entity: Entity, _payload: Die, _scene: Scene) -> Outcome:
    """Death; they keep what they hold until somebody takes it."""
    return [_died(entity)]


def revive(entity: Entity, payload: Revive, _scene: Scene) -> Outcome:
    """Back among the living."""
    if not is_dead(entity):
        return Refused("alive_actor")
    return [Effect(entity_id=entity.id, type="revived", patch={"alive": True, "health": payload.health})]


def _died(entity: Entity) -> Effect:
    return Effect(entity_id=entity.id, type="died", patch={"alive": False, "health": 0})


def _remark(text: str, by: str | None, scene: Scene, *, outside: bool) -> dict[str, Any]:
    return {"text": text, "by": by, "outside": outside or scene.outside, "tick": scene.tick}


def _remembering(entity: Entity, words: dict[str, Any]) -> Effect:
    memories = [*value_of(entity, "memories"), words][-MEMORIES_MAX:]
    return Effect(entity_id=entity.id, type="remembered", patch={"memories": memories}, outside=words["outside"])


OPS = (
    Op(name="move", does="Go to a place that here has an exit to.", kinds=ACTORS, payload=Move, apply=move),
    Op(
        name="relocate",
        does="Be put in any place, whatever lies between.",
        kinds=ACTORS,
        payload=Move,
        apply=relocate,
        on_the_dead=True,
    ),
    Op(
        name="say",
        does="Say something; an NPC in the same place that it is for remembers it.",
        kinds=ACTORS,
        payload=Say,
        apply=say,
        commutative=True,
    ),
    Op(
        name="append_memory",
        does="Remember something.",
        kinds=frozenset({"npc"}),
        payload=AppendMemory,
        apply=append_memory,
        commutative=True,
    ),
    Op(name="hurt", does="Lose health; at 0 they die.", kinds=ACTORS, payload=Hurt, apply=hurt, commutative=True),
    Op(name="heal", does="Gain health, up to 100.", kinds=ACTORS, payload=Heal, apply=heal, commutative=True),
    Op(name="die", does="Die, whatever the health.", kinds=ACTORS, payload=Die, apply=die),
    Op(
        name="revive",
        does="Bring the dead back.",
        kinds=ACTORS,
        payload=Revive,
        apply=revive,
        on_the_dead=True,
    ),
)
