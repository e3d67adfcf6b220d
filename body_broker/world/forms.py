"""Owns the JSON forms of entities and events, as they lie in Redis and leave through tools, and the way back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import asyncpg
import orjson

from body_broker.world.model import Entity, Event

EVENT_COLUMNS = """pos, entity_id, version, kind, region, type, patch::text, removed, change_id, causation, epoch, tick, outside,
    (extract(epoch FROM at) * 1000)::bigint AS at_ms"""
ENTITY_COLUMNS = "id, kind, region, version, tick, data::text, removed, outside"


def entity_body(entity: Entity) -> dict[str, Any]:
    """An entity as JSON: what `npc:{id}` holds in Redis."""
    return {
        "id": entity.id,
        "kind": entity.kind,
        "region": entity.region,
        "version": entity.version,
        "tick": entity.tick,
        "removed": entity.removed,
        "data": entity.data,
    }


def event_body(event: Event) -> dict[str, Any]:
    """An event as JSON: what an entry of `world-event` holds."""
    return {
        "pos": event.pos,
        "entity_id": event.entity_id,
        "version": event.version,
        "kind": event.kind,
        "region": event.region,
        "type": event.type,
        "patch": event.patch,
        "removed": event.removed,
        "change_id": event.change_id,
        "causation": event.causation,
        "epoch": event.epoch,
        "tick": event.tick,
        "outside": event.outside,
        "at_ms": event.at_ms,
    }


def encode(body: Mapping[str, Any]) -> bytes:
    """The bytes of a body; keys in the order of the body."""
    return orjson.dumps(body)


def event_of(text: bytes | str) -> Event:
    """The event of its JSON.

    Raises:
        ValueError: It is none.
    """
    try:
        return Event(**orjson.loads(text))
    except TypeError as error:
        raise ValueError("that is no event") from error


def entity_from(row: asyncpg.Record) -> Entity:
    """The entity of a row of `ENTITY_COLUMNS`."""
    fields = dict(row)
    fields["data"], fields["outside"] = orjson.loads(fields["data"]), frozenset(fields["outside"])
    return Entity(**fields)


def event_from(row: asyncpg.Record) -> Event:
    """The event of a row of `EVENT_COLUMNS`."""
    return Event(**{**dict(row), "patch": orjson.loads(row["patch"])})
