"""Owns how an engine's words become the record: read under lock, held to the world, decided once, under the fence."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta

from body_broker.storage.postgres import Connection, Pool
from body_broker.text import digest, new_id
from body_broker.world import epochs
from body_broker.world.engine.fitting import GRACE_S, Unfit, World, check_tick, named_by, removed_by
from body_broker.world.engine.messages import EffectPart, Observation, Outcome, OutcomePart
from body_broker.world.forms import ENTITY_COLUMNS, entity_from
from body_broker.world.model import Change, Effect, Entity, Event, Verdict
from body_broker.world.patching import after
from body_broker.world.recorder import hold, record

BAD_OUTCOME = "bad_outcome"
"""The rule of a change whose outcome could not be recorded."""

_DECIDED = "SELECT id, state, epoch FROM world_change WHERE id = ANY ($1::text[]) AND state <> 'queued'"
_ENTITIES = f"""
SELECT {ENTITY_COLUMNS} FROM world_entity WHERE id = ANY ($1::text[]) ORDER BY id FOR UPDATE
"""  # noqa: S608 - our own columns
_WITHIN = f"""
SELECT {ENTITY_COLUMNS} FROM world_entity
WHERE NOT removed AND (region = ANY ($1::text[]) OR data->>'place' = ANY ($1::text[]) OR data->>'holder' = ANY ($1::text[]))
"""  # noqa: S608 - our own columns
_SAME_KEY = "SELECT epoch, digest FROM world_change WHERE actor = $1 AND key = $2"
_OBSERVED = """
INSERT INTO world_change
    (id, actor, key, digest, entity_id, op, payload, rank, priority, depth, signature, ancestry, tainted, origin, expires_at)
VALUES ($1, $2, $3, $4, $5, 'observed', '{}', 2, 0, 0, '', '{}', $6::boolean, '{}', clock_timestamp())
"""


@dataclass(frozen=True, slots=True)
class Made:
    """What was recorded.

    Attributes:
        pos: Of the world's latest event.
        events: Of this message, in order.
        entities: As they are now, those that these events are of.
        decided: Ids of the changes.
    """

    pos: int
    events: Sequence[Event] = ()
    entities: Mapping[str, Entity] = field(default_factory=dict[str, Entity])
    decided: Sequence[str] = ()


async def record_outcomes(
    pool: Pool, epoch: int, said: Sequence[Outcome], *, ago_s: float = 0.0, grace_s: float = GRACE_S
) -> Made:
    """Decide the changes of outcomes of one tick; what was decided before under this epoch and in the same way stays as it is.

    Args:
        pool: The database.
        epoch: Of the engine.
        said: Its outcomes, in their order.
        ago_s: How long ago the first of them was said.
        grace_s: How long after a change has expired its outcome may come.

    Raises:
        Superseded: The epoch is over; nothing is written.
        Unfit: One outcome is not of this world; nothing is written.
    """
    parts = [part for one in said for part in one.outcomes]
    ids = [part.change_id for part in parts]
    async with pool.acquire() as connection, connection.transaction():
        held = await epochs.fenced(connection, epoch)
        changes = {change.id: change for change in await hold(connection, ids)}
        if len(set(ids)) != len(ids):
            raise Unfit("A change is named twice")
        if len(changes) < len(ids):
            await _check_decided(connection, epoch, parts, changes)
        if not changes:
            return Made(held.last_pos)
        check_tick(said[0].tick, held.tick)
        at = await connection.fetchval("SELECT clock_timestamp()") - timedelta(seconds=ago_s)
        effects = [effect for part in parts if part.change_id in changes for effect in part.effects]
        before = await entities_of(connection, effects, {c.entity_id for c in changes.values()})
        world = World(before, said[0].tick)
        verdicts: list[Verdict] = []
        for one in said:
            world.begin()
            verdicts += [
                world.verdict(changes[p.change_id], p, at=at, grace_s=grace_s)
                for p in one.outcomes
                if p.change_id in changes
            ]
        await _check_batches(connection, changes, verdicts)
        events = await record(
            connection,
            epoch=epoch,
            tick=said[0].tick,
            changes=list(changes.values()),
            verdicts=verdicts,
            entities=before,
        )
    return _made(events, before, held.last_pos, list(changes))


async def record_observation(pool: Pool, epoch: int, engine: str, said: Observation) -> Made:
    """Write what an engine saw happen, once under its key.

    It becomes a change that the engine asked for itself and that is applied as soon as it is there: one way into the record.

    Raises:
        Superseded: The epoch is over; nothing is written.
        Unfit: It is not of this world, or its key stands for something else; nothing is written.
    """
    actor = f"engine:{engine}"
    content = digest([effect.model_dump(mode="json") for effect in said.effects])
    async with pool.acquire() as connection, connection.transaction():
        held = await epochs.fenced(connection, epoch)
        if former := await connection.fetchrow(_SAME_KEY, actor, said.key):
            if (former["epoch"], former["digest"]) != (epoch, content):
                raise Unfit(f"The observation {said.key} is in the record already, and with it what it did")
            return Made(held.last_pos)
        check_tick(said.tick, held.tick)
        before = await entities_of(connection, said.effects)
        effects = World(before, said.tick).effects(said.effects)
        change_id = await _ask_itself(connection, actor, said, content, effects)
        (change,) = await hold(connection, [change_id])
        events = await record(
            connection,
            epoch=epoch,
            tick=said.tick,
            changes=[change],
            verdicts=[Verdict(change_id=change_id, state="applied", effects=effects)],
            entities=before,
        )
    return _made(events, before, held.last_pos, [change_id])


async def reject(pool: Pool, epoch: int, change_ids: Collection[str], rule: str) -> None:
    """Reject changes that no engine will decide, and those of their batches.

    Raises:
        Superseded: The epoch is over; nothing is written.
    """
    async with pool.acquire() as connection, connection.transaction():
        held = await epochs.fenced(connection, epoch)
        batches = {change.batch for change in await hold(connection, change_ids)} - {None}
        members = await connection.fetch("SELECT id FROM world_change WHERE batch = ANY ($1::text[])", list(batches))
        changes = await hold(connection, {*change_ids, *(row["id"] for row in members)})
        verdicts = [
            Verdict(change_id=c.id, state="rejected", rule=rule if c.id in change_ids else "batch") for c in changes
        ]
        await record(connection, epoch=epoch, tick=held.tick, changes=changes, verdicts=verdicts, entities={})


async def _ask_itself(
    connection: Connection, actor: str, said: Observation, content: str, effects: Sequence[Effect]
) -> str:
    change_id = new_id("sch")
    tainted = any(effect.outside for effect in effects)
    await connection.execute(_OBSERVED, change_id, actor, said.key, content, effects[0].entity_id, tainted)
    return change_id


async def _check_decided(
    connection: Connection, epoch: int, parts: Sequence[OutcomePart], open_: Mapping[str, Change]
) -> None:
    """A change that is not queued any more must have been decided in the same way under this epoch, or have had no effect."""
    decided = {row["id"]: row for row in await connection.fetch(_DECIDED, [part.change_id for part in parts])}
    for part in parts:
        if part.change_id in open_:
            continue
        row = decided.get(part.change_id)
        if row is None:
            raise Unfit("There is no change of that id")
        if (row["epoch"], row["state"]) != (epoch, part.state) and part.effects:
            raise Unfit(f"{part.change_id} is {row['state']} already")


async def _check_batches(connection: Connection, changes: Mapping[str, Change], verdicts: Sequence[Verdict]) -> None:
    states: dict[str, list[str]] = {}
    for verdict in verdicts:
        if batch := changes[verdict.change_id].batch:
            states.setdefault(batch, []).append(verdict.state)
    for batch, found in states.items():
        members = await connection.fetchval(
            "SELECT count(*) FROM world_change WHERE batch = $1 AND state = 'queued'", batch
        )
        if len(found) != members:
            raise Unfit("A batch is decided in part")
        if "applied" in found and set(found) != {"applied"}:
            raise Unfit("A batch is applied in part")


async def entities_of(
    connection: Connection, effects: Sequence[EffectPart], others: Collection[str] = ()
) -> dict[str, Entity]:
    """What effects touch, name, or leave without a place or a holder; under the fence nobody else writes any of it."""
    rows = await connection.fetch(_ENTITIES, sorted(named_by(effects).union(others)))
    if gone := removed_by(effects):
        rows += await connection.fetch(_WITHIN, sorted(gone))
    return {row["id"]: entity_from(row) for row in rows}


def _made(events: Sequence[Event], before: Mapping[str, Entity], pos: int, decided: Sequence[str]) -> Made:
    left: dict[str, Entity] = {}
    for event in events:
        left[event.entity_id] = after(left.get(event.entity_id) or before.get(event.entity_id), event)
    return Made(events[-1].pos if events else pos, events, left, decided)
