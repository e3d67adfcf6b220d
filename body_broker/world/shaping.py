"""Owns the operations on any entity: setting its fields, adding to its numbers, making it, and removing it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, cast, get_args

from pydantic import Field

from body_broker.calls import Json
from body_broker.errors import BadInput
from body_broker.world.handling import holding, without
from body_broker.world.kinds import (
    KINDS,
    LEANINGS_MAX,
    NUMBER_MAX,
    Id,
    Ref,
    check,
    clean_fields,
    default_of,
    problems_of_fields,
    references,
    value_of,
)
from body_broker.world.model import Effect, Entity, Kind
from body_broker.world.operation import ACTORS, Op, Outcome, Payload, Refused, Scene

_ACTORS_OWN = frozenset({"place", "health", "alive", "inventory", "last_said"})
PROTECTED: Mapping[Kind, frozenset[str]] = {
    "npc": _ACTORS_OWN | {"memories", "driver"},
    "player": _ACTORS_OWN,
    "item": frozenset({"holder", "place", "destroyed"}),
    "quest": frozenset({"state", "stage", "players"}),
    "flag": frozenset({"value"}),
}
"""What `set` leaves alone, by kind: other operations change it under their rules, or only an operator does."""

_BORN_WITH = frozenset({"place", "inventory", "holder", "value"})
"""Fields that `set` leaves alone and that somebody may be born with: `spawn` has rules for them."""

GAUGES: Mapping[Kind, Mapping[str, tuple[int, int]]] = {
    "player": {"sanity": (0, 100)},
    "region": {"danger": (0, 10)},
    "flag": {"value": (-NUMBER_MAX, NUMBER_MAX)},
}
"""The numbers that `add` changes, and their bounds."""
LEANINGS: Mapping[Kind, str] = {"npc": "disposition", "faction": "stance"}
"""The maps of numbers that `add` changes, each from -100 to 100."""
_LEANING = (-100, 100)
_ALL: frozenset[Kind] = frozenset(get_args(Kind))


class Set(Payload):
    """Fields and their new values; null takes a field back to what it is by default."""

    fields: Annotated[dict[str, Json], Field(min_length=1, max_length=40)]


class Add(Payload):
    """How much, to which number; `key` is whom a disposition or a stance is towards."""

    field: str
    by: Annotated[int, Field(ge=-1_000_000, le=1_000_000)]
    key: Ref | None = None


class Spawn(Payload):
    """What comes into being."""

    kind: Kind
    data: dict[str, Json]
    region: Id | None = None


class Remove(Payload):
    """Nothing more to say."""


def problems_of_payload(kind: Kind | None, payload: Payload) -> list[str]:
    """What is wrong with a payload that only the kind of its entity shows, or what it would make; empty where nothing is."""
    match payload:
        case Set() if kind is not None:
            own = PROTECTED.get(kind, frozenset())
            kept = [f"{name}: another operation changes it" for name in payload.fields if name in own]
            return kept + problems_of_fields(kind, {k: v for k, v in payload.fields.items() if v is not None})
        case Spawn():
            return _problems_of_birth(payload)
        case _:
            return []


def _problems_of_birth(payload: Spawn) -> list[str]:
    try:
        data = check(payload.kind, payload.data)
    except BadInput as error:
        found = error.details["problems"]
        return found if isinstance(found, list) else [error.message]
    return [
        f"data.{name}: nobody is born with it; another operation changes it" for name in _not_born(payload.kind, data)
    ]


def _not_born(kind: Kind, data: Mapping[str, Any]) -> list[str]:
    """The fields of checked data that nobody may have yet: what `set` may not touch is not got by being made anew."""
    kept = PROTECTED.get(kind, frozenset()) - _BORN_WITH
    return [name for name in data if name in kept and data[name] != default_of(kind, name)]


def settled(kind: Kind | None, payload: Payload) -> Payload:
    """A payload without problems as it is queued: values of any kind of entity cleaned as that kind has them."""
    match payload:
        case Set() if kind is not None:
            kept = clean_fields(kind, {name: value for name, value in payload.fields.items() if value is not None})
            return Set(fields={name: kept.get(name) for name in payload.fields})
        case Spawn():
            return payload.model_copy(update={"data": check(payload.kind, payload.data)})
        case _:
            return payload


def set_fields(entity: Entity, payload: Set, scene: Scene) -> Outcome:
    """The fields' new values, where the kind has them and no other operation owns them."""
    if not PROTECTED.get(entity.kind, frozenset()).isdisjoint(payload.fields):
        return Refused("protected_field")
    if problems_of_payload(entity.kind, payload):
        return Refused("bad_payload")
    kept = {name: value for name, value in payload.fields.items() if value is not None}
    patch: dict[str, Any] = clean_fields(entity.kind, kept)
    if any(scene.present(named) is None for named in references(entity.kind, patch)):
        return Refused("unknown_reference")
    patch |= {name: None for name in payload.fields if name not in kept}
    if not _is_whole(entity, patch):
        return Refused("bad_payload")
    return [Effect(entity_id=entity.id, type="set", patch=_replacing(entity, patch))]


def add(entity: Entity, payload: Add, scene: Scene) -> Outcome:
    """A number more or less, held within its bounds."""
    if payload.field == LEANINGS.get(entity.kind):
        if scene.present(payload.key) is None:
            return Refused("unknown_reference")
        leanings = value_of(entity, payload.field)
        if payload.key not in leanings and len(leanings) >= LEANINGS_MAX:
            return Refused("too_many")
        now = leanings.get(payload.key, 0)
        patch: dict[str, Any] = {payload.field: {payload.key: _bounded(now + payload.by, _LEANING)}}
    else:
        bounds = GAUGES.get(entity.kind, {}).get(payload.field)
        now = value_of(entity, payload.field)
        if bounds is None or type(now) is not int or payload.key is not None:
            return Refused("not_a_number")
        patch = {payload.field: _bounded(now + payload.by, bounds)}
    return [Effect(entity_id=entity.id, type="added", patch=patch)]


def spawn(payload: Spawn, scene: Scene) -> Outcome:
    """A new entity; where it names a place, it is in that place's region."""
    entity_id = scene.change.entity_id
    data = _born(payload, scene)
    if isinstance(data, Refused):
        return data
    place = scene.present(data.get("place"), "place")
    if data.get("place") is not None and place is None:
        return Refused("unknown_place")
    region = payload.region if place is None else place.region
    if region is not None and scene.present(region, "region") is None:
        return Refused("unknown_region")
    made = Effect(
        entity_id=entity_id,
        type="spawned",
        patch={name: value for name, value in data.items() if value is not None},
        kind=payload.kind,
        region=region,
    )
    return _held_from_birth(made, data, scene)


def _born(payload: Spawn, scene: Scene) -> dict[str, Any] | Refused:
    try:
        data = check(payload.kind, payload.data)
    except BadInput:
        return Refused("bad_payload")
    if _not_born(payload.kind, data):
        return Refused("protected_field")
    if any(scene.present(named) is None for named in references(payload.kind, data) - {scene.change.entity_id}):
        return Refused("unknown_reference")
    return Refused("empty_handed") if data.get("inventory") else data


def remove(entity: Entity, _payload: Remove, scene: Scene) -> Outcome:
    """It is gone, unless something is still in it or held by it."""
    holds = entity.kind in ACTORS and value_of(entity, "inventory")
    if holds or (entity.kind in {"place", "region"} and _is_inhabited(entity.id, scene)):
        return Refused("still_used")
    gone = Effect(entity_id=entity.id, type="removed", removed=True)
    holder = scene.present(value_of(entity, "holder"), *ACTORS) if entity.kind == "item" else None
    return [gone] if holder is None else [gone, without(holder, entity)]


def _held_from_birth(made: Effect, data: Mapping[str, Any], scene: Scene) -> Outcome:
    if made.kind != "item" or data.get("holder") is None:
        return [made]
    holder = scene.present(data["holder"], *ACTORS)
    got = Refused("unknown_reference") if holder is None else holding(holder, made.entity_id)
    return got if isinstance(got, Refused) else [made, got]


def _is_inhabited(entity_id: str, scene: Scene) -> bool:
    return any(True for _ in scene.entities.inside(entity_id))


def _is_whole(entity: Entity, patch: Mapping[str, Any]) -> bool:
    data = {name: value for name, value in {**entity.data, **patch}.items() if value is not None}
    try:
        KINDS[entity.kind].model_validate(data)
    except ValueError:
        return False
    return True


def _replacing(entity: Entity, patch: dict[str, Any]) -> dict[str, Any]:
    """The patch under which a field that is a map becomes the new one, where a merge patch would add to the old one."""
    found = dict(patch)
    for name, value in patch.items():
        old = entity.data.get(name)
        if isinstance(value, dict) and isinstance(old, dict):
            found[name] = dict.fromkeys(cast("dict[str, Any]", old)) | cast("dict[str, Any]", value)
    return found


def _bounded(value: int, bounds: tuple[int, int]) -> int:
    return min(max(value, bounds[0]), bounds[1])


OPS = (
    Op(name="set", does="Set fields that no other operation owns.", kinds=_ALL, payload=Set, apply=set_fields),
    Op(
        name="add",
        does="Add to a number: sanity, danger, a flag, a disposition, a stance.",
        kinds=frozenset({"npc", "player", "region", "faction", "flag"}),
        payload=Add,
        apply=add,
        commutative=True,
    ),
    Op(name="spawn", does="Make a new entity under this id.", kinds=_ALL, payload=Spawn, make=spawn),
    Op(
        name="remove",
        does="Take it out of the world for good.",
        kinds=_ALL,
        payload=Remove,
        apply=remove,
        on_the_dead=True,
    ),
)
