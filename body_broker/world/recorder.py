"""Owns how decisions become the record: changes decided, entities and events written, all under the epoch and in one transaction."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import asyncpg
import orjson

from body_broker.calls import Json
from body_broker.errors import InternalError
from body_broker.storage.postgres import Connection
from body_broker.world import epochs
from body_broker.world.kinds import OUTSIDE_FIELDS
from body_broker.world.model import DECIDED_CHANNEL, Change, Effect, Entity, Event, Verdict
from body_broker.world.patching import affected, after

CLAIM_MAX = 512

_COLUMNS = """seq, id, actor, batch, entity_id, op, payload::text, expect_version, rank, priority, causation, depth, tainted,
    expires_at, ancestry"""
# A batch is decided whole, whatever the limit cuts.
_CLAIM = f"""
WITH first AS (
    SELECT id, batch FROM world_change WHERE state = 'queued' AND ($2::bigint IS NULL OR sent_epoch IS DISTINCT FROM $2)
    ORDER BY rank DESC, priority DESC, seq LIMIT $1::integer),
wanted AS (
    SELECT id FROM first
    UNION SELECT c.id FROM world_change c JOIN first f ON c.batch = f.batch WHERE c.state = 'queued')
SELECT {_COLUMNS} FROM world_change WHERE id IN (SELECT id FROM wanted) AND state = 'queued'
ORDER BY rank DESC, priority DESC, seq FOR UPDATE
"""  # noqa: S608 - our own columns
_HELD = f"""
SELECT {_COLUMNS} FROM world_change WHERE id = ANY ($1::text[]) AND state = 'queued' ORDER BY seq FOR UPDATE
"""  # noqa: S608 - our own columns
_DECIDED = """
UPDATE world_change c SET state = v.state, rule = v.rule, current_version = v.current_version, observed = v.observed::jsonb,
    epoch = $1::bigint, tick = $2::bigint, decided_at = clock_timestamp()
FROM unnest($3::text[], $4::text[], $5::text[], $6::bigint[], $7::text[]) AS v (id, state, rule, current_version, observed)
WHERE c.id = v.id AND c.state = 'queued'
"""
_ENTITIES = """
INSERT INTO world_entity (id, kind, region, version, removed, data, tick, outside)
SELECT e.id, e.kind, e.region, e.version, e.removed, e.data::jsonb, e.tick, ARRAY(
    SELECT unnest(w.outside) EXCEPT SELECT unnest(string_to_array(e.patched, ' '))
    UNION SELECT unnest(string_to_array(e.marked, ' ')) ORDER BY 1)
FROM unnest($1::text[], $2::text[], $3::text[], $4::bigint[], $5::boolean[], $6::text[], $7::bigint[], $8::text[], $9::text[])
    AS e (id, kind, region, version, removed, data, tick, patched, marked)
LEFT JOIN world_entity w ON w.id = e.id
ON CONFLICT (id) DO UPDATE SET region = excluded.region, version = excluded.version, removed = excluded.removed,
    data = excluded.data, tick = excluded.tick, outside = excluded.outside, at = now()
"""
_EVENTS = """
INSERT INTO world_event (pos, entity_id, version, kind, region, type, patch, change_id, causation, epoch, tick, outside, at, removed)
SELECT e.pos, e.entity_id, e.version, e.kind, e.region, e.type, e.patch::jsonb, e.change_id, e.causation, $1::bigint, $2::bigint,
    e.outside, $3::timestamptz, e.removed
FROM unnest($4::bigint[], $5::text[], $6::bigint[], $7::text[], $8::text[], $9::text[], $10::text[], $11::text[], $12::text[],
    $13::boolean[], $14::boolean[])
    AS e (pos, entity_id, version, kind, region, type, patch, change_id, causation, outside, removed)
"""
_ADVANCE = """
UPDATE world_engine SET last_pos = $2::bigint, tick = greatest(tick, $3::bigint),
    lease_until = CASE WHEN lease_until IS NULL THEN NULL
                       ELSE greatest(lease_until, clock_timestamp() + make_interval(secs => $4::float8)) END
WHERE epoch = $1::bigint
"""


@dataclass(frozen=True, slots=True)
class Claimed:
    """Changes locked for this transaction, and the database's clock."""

    changes: list[Change]
    now: datetime


async def claim(connection: Connection, *, limit: int = CLAIM_MAX, unsent_in: int | None = None) -> Claimed:
    """The next queued changes in the order in which they are decided, locked to the end of the caller's transaction.

    Args:
        connection: In its transaction, after `epochs.fenced`.
        limit: How many; batches are not cut, so there may be a few more.
        unsent_in: Leave out what an engine outside was told of in this epoch.
    """
    rows = await connection.fetch(_CLAIM, limit, unsent_in)
    now = await connection.fetchval("SELECT clock_timestamp()") if rows else datetime.now(UTC)
    return Claimed([_change(row) for row in rows], now)


async def hold(connection: Connection, change_ids: Collection[str]) -> list[Change]:
    """Those of these changes that are still queued, locked to the end of the caller's transaction."""
    return [_change(row) for row in await connection.fetch(_HELD, list(change_ids))]


async def record(
    connection: Connection,
    *,
    epoch: int,
    tick: int,
    changes: Sequence[Change],
    verdicts: Sequence[Verdict],
    entities: Mapping[str, Entity],
    lease_s: float = 0.0,
) -> list[Event]:
    """Write what was decided, in the order of the verdicts; the events as they stand in the record.

    Args:
        connection: In a transaction that holds these changes by `claim` or `hold`.
        epoch: Of who decided.
        tick: When.
        changes: What was decided on, all of it queued.
        verdicts: One for each change.
        entities: At least every entity that an effect touches and that is there, as it is before.
        lease_s: The lease that this write is a sign of life for.

    Raises:
        Superseded: The epoch is over; the caller's transaction must be rolled back.
        InternalError: A change was decided before, or a verdict is for none of these changes.
    """
    held = await epochs.fenced(connection, epoch)
    by_id = {change.id: change for change in changes}
    if {verdict.change_id for verdict in verdicts} != set(by_id) or len(verdicts) != len(by_id):
        raise InternalError("Verdicts and changes do not belong together.")
    steps: list[Step] = [(effect, by_id[v.change_id]) for v in verdicts for effect in v.effects]
    events, left = play(steps, entities, after_pos=held.last_pos, epoch=epoch, tick=tick)
    await _write(connection, events, left, epoch=epoch, tick=tick)
    await _decide(connection, verdicts, events, epoch=epoch, tick=tick)
    await connection.execute(_ADVANCE, epoch, held.last_pos + len(events), tick, lease_s)
    await connection.execute("SELECT pg_notify($1, '')", DECIDED_CHANNEL)
    return events


Step = tuple[Effect, Change | None]
"""One effect, and the change that had it; None is an operator's."""


async def append(
    connection: Connection, effects: Sequence[Effect], entities: Mapping[str, Entity], held: epochs.Epoch
) -> list[Event]:
    """Write an operator's effects under `epochs.begin_anew`, in its transaction; the events as they stand in the record."""
    tick = held.tick + 1
    steps: list[Step] = [(effect, None) for effect in effects]
    events, left = play(steps, entities, after_pos=held.last_pos, epoch=held.number, tick=tick)
    await _write(connection, events, left, epoch=held.number, tick=tick)
    await connection.execute(_ADVANCE, held.number, held.last_pos + len(events), tick, 0.0)
    return events


def play(
    steps: Sequence[Step], entities: Mapping[str, Entity], *, after_pos: int, epoch: int, tick: int
) -> tuple[list[Event], dict[str, Entity]]:
    """The events of these effects one after the other, and the entities that they leave behind; pure."""
    left: dict[str, Entity] = {}
    events: list[Event] = []
    at_ms = int(datetime.now(UTC).timestamp() * 1000)
    for pos, (effect, change) in enumerate(steps, start=after_pos + 1):
        before = left.get(effect.entity_id) or entities.get(effect.entity_id)
        now = left[effect.entity_id] = affected(before, effect, tick)
        events.append(
            Event(
                pos=pos,
                entity_id=now.id,
                version=now.version,
                kind=now.kind,
                region=now.region,
                type=effect.type,
                patch=effect.patch,
                removed=now.removed,
                change_id=change and change.id,
                causation=change and change.causation,
                epoch=epoch,
                tick=tick,
                outside=effect.outside,
                at_ms=at_ms,
            )
        )
    return events, left


async def _write(
    connection: Connection, events: Sequence[Event], left: Mapping[str, Entity], *, epoch: int, tick: int
) -> None:
    if not events:
        return
    patched: dict[str, set[str]] = {}
    marked: dict[str, Entity] = {}
    for event in events:  # alone, over nothing: the record itself knows which fields were marked before
        patched.setdefault(event.entity_id, set()).update(event.patch)
        marked[event.entity_id] = after(marked.get(event.entity_id), event)
    entities = [
        (
            e.id,
            e.kind,
            e.region,
            e.version,
            e.removed,
            orjson.dumps(e.data).decode(),
            e.tick,
            " ".join(patched[e.id]),
            " ".join(marked[e.id].outside),
        )
        for e in left.values()
    ]
    await connection.execute(_ENTITIES, *_columns(entities))
    rows = [
        (
            e.pos,
            e.entity_id,
            e.version,
            e.kind,
            e.region,
            e.type,
            orjson.dumps(e.patch).decode(),
            e.change_id,
            e.causation,
            e.outside,
            e.removed,
        )
        for e in events
    ]
    at = datetime.fromtimestamp(events[0].at_ms / 1000, UTC)
    await connection.execute(_EVENTS, epoch, tick, at, *_columns(rows))


async def _decide(
    connection: Connection, verdicts: Sequence[Verdict], events: Sequence[Event], *, epoch: int, tick: int
) -> None:
    if not verdicts:
        return
    seen: dict[str, list[Event]] = {}
    for event in events:
        if event.change_id is not None:
            seen.setdefault(event.change_id, []).append(event)
    rows = [
        (v.change_id, v.state, v.rule, v.current_version, orjson.dumps(_observed(seen.get(v.change_id, []))).decode())
        for v in verdicts
    ]
    status = await connection.execute(_DECIDED, epoch, tick, *_columns(rows))
    if int(status.rpartition(" ")[2]) != len(rows):
        raise InternalError("A change was decided before.")


def _observed(events: Sequence[Event]) -> Json:
    """What a change was seen to do, without words from outside: who wants those reads the entity."""
    return {
        "events": [
            {
                "pos": e.pos,
                "entity_id": e.entity_id,
                "version": e.version,
                "type": e.type,
                "patch": {} if e.outside else {k: v for k, v in e.patch.items() if k not in OUTSIDE_FIELDS},
            }
            for e in events
        ]
    }


def _columns(rows: Sequence[tuple[Any, ...]]) -> list[list[Any]]:
    return [list(column) for column in zip(*rows, strict=True)]


def _change(row: asyncpg.Record) -> Change:
    fields = dict(row)
    fields["payload"] = orjson.loads(fields["payload"])
    fields["ancestry"] = frozenset(fields["ancestry"])
    return Change(**fields)
