"""Owns what an engine is sent: the world as it is, and the queued changes in their order, batches whole."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from pydantic import ValidationError

from body_broker.storage.postgres import Connection, Pool
from body_broker.telemetry import get_logger
from body_broker.world import epochs
from body_broker.world.engine.coding import encode
from body_broker.world.engine.messages import SNAPSHOT_BYTES, ChangePart, EntityPart
from body_broker.world.model import DECIDED_CHANNEL, Change, Entity, Verdict
from body_broker.world.recorder import claim, record
from body_broker.world.rules import signature

log = get_logger(__name__)

# From here on it is the engine's to decide: nobody cancels what it may be applying.
_MARK = """
UPDATE world_change SET sent_epoch = $2::bigint WHERE id = ANY ($1::text[])
"""
# 0 is no epoch: it is to be sent, and it may have been.
_AGAIN = "UPDATE world_change SET sent_epoch = 0 WHERE state = 'queued' AND sent_epoch = $1::bigint"
_UNSENT = "UPDATE world_change SET sent_epoch = NULL WHERE state = 'queued' AND sent_epoch IS NOT NULL"
_LOCK = "SELECT FROM world_engine FOR UPDATE"
# Nobody has been told of these, so nobody needs the epoch to end them; a batch ends whole.
_EXPIRE = """
WITH due AS (
    SELECT id, batch FROM world_change WHERE state = 'queued' AND sent_epoch IS NULL AND expires_at <= now()
    ORDER BY seq LIMIT 512),
wanted AS (
    SELECT id FROM due
    UNION SELECT c.id FROM world_change c JOIN due d ON c.batch = d.batch WHERE c.state = 'queued')
UPDATE world_change c SET state = CASE WHEN c.expires_at <= now() THEN 'expired' ELSE 'rejected' END,
    rule = CASE WHEN c.expires_at <= now() THEN NULL ELSE 'batch' END, observed = '{"events": []}',
    epoch = e.epoch, tick = e.tick, decided_at = clock_timestamp()
FROM wanted w, world_engine e
WHERE c.id = w.id AND c.state = 'queued' AND c.sent_epoch IS NULL
RETURNING c.id
"""
_OVERDUE = """
SELECT id FROM world_change
WHERE state = 'queued' AND sent_epoch = $1::bigint AND expires_at + make_interval(secs => $2::float8) < clock_timestamp()
ORDER BY seq LIMIT 1
"""
_FAULT, _LOOPED, _BATCH = "fault", "same_cause", "batch"


@dataclass(frozen=True, slots=True)
class Parcel:
    """What goes into one message: one change, or a batch."""

    atomic: bool
    changes: tuple[ChangePart, ...]


@dataclass(frozen=True, slots=True)
class Taken:
    """What an engine is told next.

    Attributes:
        parcels: In their order.
        decided: Ids of the changes that it is not told of: they have expired, or can be nobody's.
    """

    parcels: list[Parcel]
    decided: list[str]


async def take_changes(pool: Pool, epoch: int, limit: int) -> Taken:
    """The next queued changes, marked as the engine's, in the order in which they are sent.

    A change that is among its own causes is rejected here: which changes caused it only the hub knows. So is one that no
    message can hold, and what has expired ends here.

    Args:
        pool: The database.
        epoch: Of the engine that is told.
        limit: At most so many; a batch that is more waits until there is room for it.

    Raises:
        Superseded: The epoch is over; nothing was marked.
    """
    async with pool.acquire() as connection, connection.transaction():
        held = await epochs.fenced(connection, epoch)
        decided = await _expire(connection)
        claimed = await claim(connection, limit=limit, unsent_in=epoch)
        groups: dict[str, list[Change]] = {}
        for change in claimed.changes:
            groups.setdefault(change.batch or change.id, []).append(change)
        parcels: list[Parcel] = []
        verdicts: list[Verdict] = []
        for group in groups.values():
            found = _parcel_of(group, claimed.now)
            if not isinstance(found, Parcel):
                verdicts += found
            elif sum(len(each.changes) for each in parcels) + len(group) > limit:
                break
            else:
                parcels.append(found)
        if verdicts:
            refused = {verdict.change_id for verdict in verdicts}
            await record(
                connection,
                epoch=epoch,
                tick=held.tick,
                changes=[change for change in claimed.changes if change.id in refused],
                verdicts=verdicts,
                entities={},
            )
            decided += refused
        await connection.execute(_MARK, [part.change_id for each in parcels for part in each.changes], epoch)
    return Taken(parcels, decided)


async def expire(pool: Pool) -> list[str]:
    """End what has expired before any engine was told of it; the ids of what was decided so."""
    async with pool.acquire() as connection, connection.transaction():
        # As everybody who decides changes does first: two that lock the same changes wait here, and not for each other.
        await connection.execute(_LOCK)
        return await _expire(connection)


async def overdue(pool: Pool, epoch: int, grace_s: float) -> str | None:
    """A change that this epoch's engine was sent and has not decided for so many seconds after its expiry."""
    found: str | None = await pool.fetchval(_OVERDUE, epoch, grace_s)
    return found


async def _expire(connection: Connection) -> list[str]:
    found = [row["id"] for row in await connection.fetch(_EXPIRE)]
    if found:
        await connection.execute("SELECT pg_notify($1, '')", DECIDED_CHANNEL)
    return found


def _parcel_of(group: list[Change], now: datetime) -> Parcel | list[Verdict]:
    """The message of these changes, or why no engine gets it."""
    rules = {change.id: _LOOPED for change in group if _is_looped(change)}
    parts: list[ChangePart] = []
    for change in group:
        try:
            part = _part_of(change, now)
            encode(part)
        except (ValidationError, TypeError, ValueError):
            log.exception("change_cannot_be_sent", change=change.id)
            rules[change.id] = _FAULT
        else:
            parts.append(part)
    if rules:
        return [Verdict(change_id=c.id, state="rejected", rule=rules.get(c.id, _BATCH)) for c in group]
    return Parcel(group[0].batch is not None, tuple(parts))


def _is_looped(change: Change) -> bool:
    return signature(change.entity_id, change.op, change.payload) in change.ancestry


async def send_again(pool: Pool, epoch: int) -> None:
    """Let everything that this epoch's engine has not decided be taken once more: another relay may have sent it, or not."""
    await pool.execute(_AGAIN, epoch)


async def forget_sent(pool: Pool) -> None:
    """Nothing that is queued is any engine's: a new epoch begins."""
    await pool.execute(_UNSENT)


def _part_of(change: Change, now: datetime) -> ChangePart:
    return ChangePart(
        change_id=change.id,
        entity_id=change.entity_id,
        op=change.op,
        payload=dict(change.payload),
        expect_version=change.expect_version,
        rank=change.rank,
        priority=change.priority,
        depth=change.depth,
        causation=change.causation,
        actor=change.actor,
        tainted=change.tainted,
        expires_in_ms=int((change.expires_at - now).total_seconds() * 1000),
    )


def pages_of(entities: Iterable[Entity]) -> list[list[EntityPart]]:
    """These entities in pages of about `SNAPSHOT_BYTES`, regions first and then by id."""
    pages: list[list[EntityPart]] = []
    size = SNAPSHOT_BYTES
    for entity in sorted(entities, key=lambda e: (e.kind != "region", e.id)):
        part = EntityPart(
            id=entity.id,
            kind=entity.kind,
            region=entity.region,
            version=entity.version,
            removed=entity.removed,
            data=dict(entity.data),
        )
        length = len(encode(part))
        if size + length > SNAPSHOT_BYTES:
            pages.append([])
            size = 0
        size += length
        pages[-1].append(part)
    return pages
