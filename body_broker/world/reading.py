"""Owns reads of the world from PostgreSQL: entities as they are this moment, and the record of how they became so."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime

from body_broker.errors import NotFound
from body_broker.storage.postgres import Connection, Executor, Pool
from body_broker.world.forms import ENTITY_COLUMNS, EVENT_COLUMNS, entity_from, event_from
from body_broker.world.model import Entity, Event, Reading

EVENTS_MAX = 1_000

_HEAD = "SELECT last_pos, tick, paused_at, paused_by FROM world_engine"
_ENTITIES = f"SELECT {ENTITY_COLUMNS} FROM world_entity WHERE id = ANY ($1::text[])"  # noqa: S608 - our own columns
_IN_REGION = f"""
SELECT {ENTITY_COLUMNS} FROM world_entity WHERE NOT removed AND (region = $1 OR id = $1) ORDER BY id LIMIT $2::integer
"""  # noqa: S608 - our own columns
_ALL = f"SELECT {ENTITY_COLUMNS} FROM world_entity"  # noqa: S608 - our own columns
# The region of an event is where its entity was afterwards; a region's own events are its too.
_EVENTS = f"""
SELECT {EVENT_COLUMNS} FROM world_event
WHERE pos > $1::bigint AND ($2::text IS NULL OR entity_id = $2) AND (cardinality($3::text[]) = 0 OR type = ANY ($3))
  AND ($4::text IS NULL OR region = $4 OR entity_id = $4)
ORDER BY pos LIMIT $5::integer
"""  # noqa: S608 - our own columns
_LATEST = f"""
SELECT * FROM (
    (SELECT {EVENT_COLUMNS} FROM world_event WHERE region = $1 ORDER BY pos DESC LIMIT $2::integer)
    UNION ALL
    (SELECT {EVENT_COLUMNS} FROM world_event WHERE entity_id = $1 AND region IS DISTINCT FROM $1
     ORDER BY version DESC LIMIT $2::integer)) AS found
ORDER BY pos DESC LIMIT $2::integer
"""  # noqa: S608 - our own columns
_HISTORY = f"""
SELECT {EVENT_COLUMNS} FROM world_event WHERE entity_id = $1 AND version >= $2::bigint ORDER BY version LIMIT $3::integer
"""  # noqa: S608 - our own columns


@dataclass(frozen=True, slots=True)
class World:
    """Everything there is, at one position; `paused` says since when and by whom the engine is, where it is."""

    entities: dict[str, Entity]
    pos: int
    tick: int
    paused: tuple[datetime | None, str | None] = (None, None)


async def entity(pool: Pool, entity_id: str) -> tuple[Entity, Reading]:
    """One entity as it is this moment, also one that is gone.

    Raises:
        NotFound: There never was one of that id.
    """
    found, reading = await entities(pool, [entity_id])
    if not found:
        raise NotFound(f"There is no entity {entity_id!r}.", next_step="Look it up with find_entities.")
    return found[0], reading


async def entities(pool: Pool, ids: Collection[str]) -> tuple[list[Entity], Reading]:
    """Those of these entities that there are, as they are this moment."""
    async with pool.acquire() as connection, _snapshot(connection):
        rows = await connection.fetch(_ENTITIES, list(ids))
        return [entity_from(row) for row in rows], await _head(connection)


async def region(pool: Pool, region_id: str, *, limit: int = 1_000) -> tuple[list[Entity], Reading]:
    """A region and what is in it, as it is this moment, by id.

    Raises:
        NotFound: There is no such region.
    """
    async with pool.acquire() as connection, _snapshot(connection):
        found = [entity_from(row) for row in await connection.fetch(_IN_REGION, region_id, limit + 1)]
        reading = await _head(connection)
        own = [entity_from(row) for row in await connection.fetch(_ENTITIES, [region_id])]
    if not own or own[0].kind != "region" or own[0].removed:
        raise NotFound(f"There is no region {region_id!r}.", next_step="Look it up with find_entities, kind region.")
    return [own[0], *(each for each in found if each.id != region_id)][:limit], reading


async def events(
    pool: Executor,
    *,
    after_pos: int = 0,
    entity_id: str | None = None,
    types: Collection[str] = (),
    region: str | None = None,
    limit: int = 100,
) -> list[Event]:
    """What was recorded after a position, in its order; the last one's `pos` is where the next read goes on."""
    rows = await pool.fetch(_EVENTS, after_pos, entity_id, list(types), region, min(limit, EVENTS_MAX))
    return [event_from(row) for row in rows]


async def latest(pool: Executor, region_id: str, *, limit: int) -> list[Event]:
    """The latest of what was recorded of a region and of what was in it afterwards, in the order of positions."""
    return [event_from(row) for row in reversed(await pool.fetch(_LATEST, region_id, min(limit, EVENTS_MAX)))]


async def history(pool: Executor, entity_id: str, *, from_version: int = 1, limit: int = 100) -> list[Event]:
    """How an entity became what it is, version by version."""
    rows = await pool.fetch(_HISTORY, entity_id, from_version, min(limit, EVENTS_MAX))
    return [event_from(row) for row in rows]


async def world(pool: Pool) -> World:
    """Everything there is, as it was at one moment."""
    async with pool.acquire() as connection, _snapshot(connection):
        return await world_now(connection)


async def world_now(connection: Connection) -> World:
    """The same in a transaction of the caller's that nobody writes beside."""
    head = await _head(connection)
    found = [entity_from(row) for row in await connection.fetch(_ALL)]
    return World({each.id: each for each in found}, head.pos, head.tick, (head.paused_at, head.paused_by))


async def head(pool: Executor) -> Reading:
    """The position and tick of the record's end."""
    return await _head(pool)


def _snapshot(connection: Connection):  # noqa: ANN202 - asyncpg names its transaction differently from version to version
    return connection.transaction(isolation="repeatable_read", readonly=True)


async def _head(connection: Executor) -> Reading:
    row = await connection.fetchrow(_HEAD)
    assert row is not None, "the migration made the row"
    return Reading(
        pos=row["last_pos"],
        tick=row["tick"],
        age_ms=0,
        source="database",
        paused_at=row["paused_at"],
        paused_by=row["paused_by"],
    )
