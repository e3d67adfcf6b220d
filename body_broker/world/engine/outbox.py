"""Owns what an engine is sent: the world as it is, and the queued changes in their order, batches whole."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from body_broker.storage.postgres import Pool
from body_broker.world import epochs
from body_broker.world.engine.coding import encode
from body_broker.world.engine.messages import SNAPSHOT_BYTES, ChangePart, EntityPart
from body_broker.world.model import Change, Entity, Verdict
from body_broker.world.recorder import claim, record
from body_broker.world.rules import signature

# From here on it is the engine's to decide: nobody cancels what it may be applying.
_MARK = """
UPDATE world_change SET sent_epoch = $2::bigint WHERE id = ANY ($1::text[])
"""
# 0 is no epoch: it is to be sent, and it may have been.
_AGAIN = "UPDATE world_change SET sent_epoch = 0 WHERE state = 'queued' AND sent_epoch = $1::bigint"
_UNSENT = "UPDATE world_change SET sent_epoch = NULL WHERE state = 'queued' AND sent_epoch IS NOT NULL"


@dataclass(frozen=True, slots=True)
class Parcel:
    """What goes into one message: one change, or a batch."""

    atomic: bool
    changes: tuple[ChangePart, ...]


async def take_changes(pool: Pool, epoch: int, limit: int) -> list[Parcel]:
    """The next queued changes, marked as the engine's, in the order in which they are sent.

    A change that is among its own causes is rejected here: which changes caused it only the hub knows.

    Args:
        pool: The database.
        epoch: Of the engine that is told.
        limit: At most so many, and the rest of the last one's batch.

    Raises:
        Superseded: The epoch is over; nothing was marked.
    """
    async with pool.acquire() as connection, connection.transaction():
        held = await epochs.fenced(connection, epoch)
        claimed = await claim(connection, limit=limit, unsent_in=epoch)
        groups: dict[str, list[Change]] = {}
        for change in claimed.changes:
            groups.setdefault(change.batch or change.id, []).append(change)
        looped = [c for group in groups.values() if any(map(_is_looped, group)) for c in group]
        if looped:
            await record(
                connection,
                epoch=epoch,
                tick=held.tick,
                changes=looped,
                verdicts=[
                    Verdict(change_id=c.id, state="rejected", rule="same_cause" if _is_looped(c) else "batch")
                    for c in looped
                ],
                entities={},
            )
        sent = [group for group in groups.values() if not any(map(_is_looped, group))]
        await connection.execute(_MARK, [c.id for group in sent for c in group], epoch)
    return [
        Parcel(group[0].batch is not None, tuple(_part_of(change, claimed.now) for change in group)) for group in sent
    ]


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
