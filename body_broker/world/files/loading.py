"""Owns writing a world file's entities, facts and plots into the world: one transaction, under an epoch of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from body_broker.calls import Receipt
from body_broker.errors import Conflict
from body_broker.storage.postgres import Connection, Pool
from body_broker.text import canonical_json
from body_broker.world import epochs, recorder
from body_broker.world.canon import store
from body_broker.world.canon.model import Canon, Fact
from body_broker.world.files.checking import World
from body_broker.world.files.model import Entry, data_of, region_of
from body_broker.world.files.naming import overlap
from body_broker.world.kinds import OUTSIDE_FIELDS
from body_broker.world.model import Effect, Entity, Event, Kind
from body_broker.world.patching import after, merged
from body_broker.world.reading import world_now

CREATED, CHANGED, REMOVED = "created", "loaded", "removed"
"""Types of the events of a load."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """What a load did.

    Attributes:
        gone: Ids of the file that were removed from the world before: they stay gone.
        events: As they stand in the record.
        entities: The whole world as it is now.
        epoch: Under which it was written; None where no entity changed, and whoever arbitrates goes on.
    """

    created: int
    changed: int
    unchanged: int
    removed: int
    gone: list[str]
    canon: store.Loaded
    events: list[Event]
    entities: Mapping[str, Entity]
    epoch: int | None


async def load(pool: Pool, world: World, *, by: str, receipt: Receipt | None = None, prune: bool = False) -> Loaded:
    """Make the world what its file says, all of it or nothing; the same again changes nothing.

    Fields that the file does not state, and what it does not name, are left as they are. Who arbitrates must begin anew
    where an entity changed: changes that are queued stay queued, and are decided on the world as it then is.

    Args:
        pool: Where the world lies.
        world: Sound, as `open_world` leaves it.
        by: operator:NAME.
        receipt: The command's place on the audit.
        prune: Remove entities, and loaded facts and plots, that the file does not name.

    Raises:
        Conflict: An id is of another kind in this world, or a fact contradicts one that stays; nothing was written.
    """
    async with pool.acquire() as connection, connection.transaction():
        await connection.execute("SELECT FROM world_engine FOR UPDATE")
        there = (await world_now(connection)).entities
        _same_kinds(world, there)
        effects, gone = _effects(world, there, prune=prune)
        events, epoch = await _write(connection, effects, there)
        canon = await _write_canon(connection, world, by, receipt, prune=prune)
    created = sum(event.version == 1 for event in events)
    removed = sum(event.removed and event.version > 1 for event in events)
    changed = len(events) - created - removed
    touched = {event.entity_id for event in events}
    left = dict(there)
    for event in events:
        left[event.entity_id] = after(left.get(event.entity_id), event)
    return Loaded(
        created=created,
        changed=changed,
        unchanged=sum(entry.id not in touched for _, entry in world.entities) - len(gone),
        removed=removed,
        gone=gone,
        canon=canon,
        events=events,
        entities=left,
        epoch=epoch,
    )


def _same_kinds(world: World, there: Mapping[str, Entity]) -> None:
    other = [
        f"{entry.id!r} is of kind {there[entry.id].kind} in this world and of kind {kind} in the file"
        for kind, entry in world.entities
        if entry.id in there and there[entry.id].kind != kind
    ]
    if other:
        raise Conflict(
            f"{other[0]}" + (f", and {len(other) - 1} more of that sort." if other[1:] else "."),
            next_step="Give it another id: an entity keeps its kind for as long as the world lasts.",
            details={"problems": other},
        )


def _effects(world: World, there: Mapping[str, Entity], *, prune: bool) -> tuple[list[Effect], list[str]]:
    """What must happen for the world to be as the file says, and the ids that stay gone."""
    effects: list[Effect] = []
    gone: list[str] = []
    for kind, entry in world.entities:
        now = there.get(entry.id)
        if now is not None and now.removed:
            gone += [] if entry.removed else [entry.id]
        elif (effect := _effect(kind, entry, now)) is not None:
            effects.append(effect)
    if prune:
        named = {entry.id for _, entry in world.entities}
        left = sorted(each.id for each in there.values() if not each.removed and each.id not in named)
        effects += [Effect(entity_id=each, type=REMOVED, removed=True) for each in left]
    return effects, gone


def _effect(kind: Kind, entry: Entry, now: Entity | None) -> Effect | None:
    """What makes an entity as the file has it; None where it is."""
    region = region_of(entry)
    if now is None:
        data = merged({}, data_of(entry))
        return Effect(
            entity_id=entry.id,
            type=CREATED,
            patch=data,
            kind=kind,
            region=region,
            removed=entry.removed,
            outside=_is_outside(data),
        )
    patch = difference(now.data, data_of(entry, stated=True))
    moved = region if region != now.region else None
    if not patch and moved is None and not entry.removed:
        return None
    return Effect(
        entity_id=entry.id,
        type=REMOVED if entry.removed else CHANGED,
        patch=patch,
        region=moved,
        removed=entry.removed,
        outside=_is_outside(patch),
    )


def difference(now: Mapping[str, Any], wanted: Mapping[str, Any]) -> dict[str, Any]:
    """The merge patch after which every wanted field has its wanted value; fields that are not wanted stay."""
    patch: dict[str, Any] = {}
    for name, value in wanted.items():
        has = now.get(name)
        if canonical_json(has) == canonical_json(merged({}, {name: value}).get(name)):
            continue
        if isinstance(value, Mapping) and isinstance(has, Mapping):
            old, new = cast("Mapping[str, Any]", has), cast("Mapping[str, Any]", value)
            patch[name] = dict.fromkeys(old.keys() - new.keys()) | difference(old, new)
        else:
            patch[name] = value
    return patch


def _is_outside(data: Mapping[str, Any]) -> bool:
    """Whether text that once came from outside is in it, as an exported world may have it."""
    return any(
        isinstance(each, Mapping) and bool(cast("Mapping[str, Any]", each).get("outside"))
        for name in OUTSIDE_FIELDS
        for each in _remarks(data.get(name))
    )


def _remarks(value: object) -> list[object]:
    return cast("list[object]", value) if isinstance(value, list) else [value]


async def _write(
    connection: Connection, effects: Sequence[Effect], there: Mapping[str, Entity]
) -> tuple[list[Event], int | None]:
    if not effects:
        return [], None
    held = await epochs.begin_anew(connection)
    return await recorder.append(connection, effects, there, held), held.number


async def _write_canon(
    connection: Connection, world: World, by: str, receipt: Receipt | None, *, prune: bool
) -> store.Loaded:
    """Predicates, facts and plots; without prune what the file lacks is kept."""
    await connection.execute("SELECT FROM canon FOR UPDATE")
    there = await store.read_canon(connection)
    facts, plots = list(world.facts), list(world.plots)
    if not prune:
        keys, graphs = {fact.key for fact in facts}, {graph.id for graph in plots}
        facts += [fact for fact in there.facts if fact.key not in keys]
        plots += [graph for graph in there.plots if graph.id not in graphs]
    _no_contradiction(world, there, {fact.key for fact in facts})
    return await store.replace_canon(connection, world.predicates, facts, plots, by, receipt=receipt)


def _no_contradiction(world: World, there: Canon, kept: set[str]) -> None:
    """What the file says of a functional predicate must not meet another fact that stays."""
    functional = {each.name for each in (*there.predicates, *world.predicates) if each.functional}
    mine = {fact.key for fact in world.facts}
    stays: dict[tuple[str, str], list[Fact]] = {}
    for fact in there.facts:
        if fact.key in kept - mine and fact.predicate in functional:
            stays.setdefault((fact.subject, fact.predicate), []).append(fact)
    found = [
        f"{fact.key} says another {fact.predicate} of {fact.subject} than {other.key}"
        for fact in world.facts
        for other in stays.get((fact.subject, fact.predicate), [])
        if other.object != fact.object and overlap(other, fact)
    ]
    if found:
        raise Conflict(
            f"The file contradicts what is canon: {found[0]}" + (f", and {len(found) - 1} more." if found[1:] else "."),
            next_step="Give a fact the id of the one that it replaces, retire that one, or load with --prune.",
            details={"problems": found},
        )
