"""Owns what of an entity or an event an answer shows: plain fields, few in listings, and words from outside only by name."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from body_broker.calls import Json
from body_broker.errors import BadInput
from body_broker.text import clean
from body_broker.world.kinds import KINDS, OUTSIDE_FIELDS, default_of, value_of
from body_broker.world.model import Entity, Event, Kind
from mcp_servers.game_state.models import EventItem, Item

IN_SHORT: Mapping[Kind, tuple[str, ...]] = {
    "region": ("name", "weather", "time_of_day", "danger"),
    "place": ("name", "exits", "locked"),
    "npc": ("name", "role", "place", "alive", "mood"),
    "player": ("name", "place", "alive"),
    "item": ("name", "holder", "place", "destroyed"),
    "faction": ("name",),
    "quest": ("title", "state", "stage"),
    "flag": ("value",),
}
"""What a listing shows of each kind."""
_ALL_FIELDS = frozenset(name for kind in KINDS.values() for name in kind.model_fields)
_SHORT_DEFAULTS = {kind: tuple((name, default_of(kind, name)) for name in names) for kind, names in IN_SHORT.items()}
_EMPTY: tuple[Any, ...] = (None, "", [], {})


def check_fields(fields: Collection[str] | None, kind: Kind | None = None) -> None:
    """Raises BadInput where a field is none of the kind's, or of any kind's where none is given."""
    known = _ALL_FIELDS if kind is None else KINDS[kind].model_fields.keys()
    unknown = [clean(name, limit=40) for name in fields or () if name not in known]
    if unknown:
        raise BadInput(
            f"There is no field {', '.join(unknown)}{'' if kind is None else f' of a {kind}'}.",
            next_step=f"Fields are: {', '.join(sorted(known))}.",
            details={"problems": [f"fields: {name}" for name in unknown]},
        )


def in_full(entity: Entity, fields: Collection[str] | None) -> dict[str, Json]:
    """All fields that are not empty and hold no words from outside; or the named ones, whatever they are."""
    if fields is None:
        return {
            name: value for name, value in entity.data.items() if name not in OUTSIDE_FIELDS and value not in _EMPTY
        }
    return {name: value_of(entity, name) for name in fields if name in KINDS[entity.kind].model_fields}


def in_short(entity: Entity) -> dict[str, Json]:
    """The few fields that a listing shows of its kind, where they are not empty."""
    data = entity.data
    return {
        name: value
        for name, default in _SHORT_DEFAULTS[entity.kind]
        if (value := data.get(name, default)) not in _EMPTY
    }


def item(entity: Entity, state: dict[str, Json]) -> Item:
    """An entity in a listing, with what is shown of it."""
    return Item(id=entity.id, kind=entity.kind, region=entity.region, version=entity.version, state=state).of(entity)


def told(event: Event, fields: Collection[str] | None) -> EventItem:
    """An event with what its patch changes, cut as the state it changes would be."""
    patch = {
        name: value
        for name, value in event.patch.items()
        if (name not in OUTSIDE_FIELDS if fields is None else name in fields)
    }
    return EventItem(
        pos=event.pos,
        entity_id=event.entity_id,
        version=event.version,
        type=event.type,
        patch=patch,
        outside=event.outside,
        tick=event.tick,
        at_ms=event.at_ms,
        change_id=event.change_id,
        causation=event.causation,
    )


def holds(entity: Entity, where: Mapping[str, Any]) -> bool:
    """Whether each field has that value, or holds it where it is a list. True is not 1."""
    return all(_is(value_of(entity, name), wanted) for name, wanted in where.items())


def check_where(where: Iterable[str]) -> None:
    """Raises BadInput for a field that is not there, or that holds words of players: they are shown, never searched."""
    names = list(where)
    check_fields(names)
    if hidden := sorted(OUTSIDE_FIELDS.intersection(names)):
        raise BadInput(f"Nothing is found by {', '.join(hidden)}.", next_step="Name it in fields to read it.")


def _is(found: Any, wanted: Any) -> bool:  # any JSON values
    if isinstance(found, list):
        return any(_is(each, wanted) for each in found)  # pyright: ignore[reportUnknownVariableType] - any JSON
    if isinstance(found, bool) or isinstance(wanted, bool):
        return found is wanted
    return bool(found == wanted)
