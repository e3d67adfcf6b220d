"""Owns the change queue: proposals are taken durably, cancelled, looked up, waited for and rehearsed. It decides nothing."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import asyncpg
import orjson

from body_broker.errors import Conflict, NotFound, RateLimited
from body_broker.storage.postgres import Connection, Executor, Pool
from body_broker.text import clean, is_clean, new_id
from body_broker.work.model import Origin
from body_broker.world.asking import Asked, ask
from body_broker.world.model import CHANGE_CHANNEL, FINAL, PLAYER_RANK, Entity, Proposal, Queued, Standing, Verdict
from body_broker.world.rules import decide

if TYPE_CHECKING:
    from body_broker.world.map import WorldMap

_FULL_AGAIN_S = 1.0
_LOOK_EVERY_S = 0.5
_PURGE_AT_ONCE = 1_000

_INSERT = """
WITH open AS (SELECT count(*) AS n FROM world_change WHERE actor = $1 AND state = 'queued'),
made AS (
    INSERT INTO world_change (id, actor, key, digest, batch, entity_id, op, payload, expect_version, rank, priority, causation,
        depth, signature, ancestry, tainted, origin, expires_at)
    SELECT p.id, $1, p.key, p.digest, $2, p.entity_id, p.op, p.payload::jsonb, p.expect_version, p.rank, p.priority,
        p.causation, p.depth, p.signature, string_to_array(p.ancestry, ' '), p.tainted, $3::text::jsonb,
        clock_timestamp() + make_interval(secs => p.expires_in_ms::float8 / 1000)
    FROM unnest($4::text[], $5::text[], $6::text[], $7::text[], $8::text[], $9::text[], $10::bigint[], $11::smallint[],
        $12::smallint[], $13::text[], $14::smallint[], $15::text[], $16::text[], $17::boolean[], $18::bigint[])
        WITH ORDINALITY
        AS p (id, key, digest, entity_id, op, payload, expect_version, rank, priority, causation, depth, signature, ancestry,
              tainted, expires_in_ms, n)
    WHERE (SELECT n FROM open) + cardinality($4::text[]) <= $19::bigint
    ORDER BY p.n
    ON CONFLICT (actor, key) DO NOTHING RETURNING id, key)
SELECT id, key, pg_notify($20, '') FROM made
"""
_SAME_KEYS = "SELECT id, key, digest, state FROM world_change WHERE actor = $1 AND key = ANY ($2::text[])"
_ONE_AT_A_TIME = "SELECT pg_advisory_xact_lock(hashtextextended('world_change ' || $1, 0))"
_CANCEL = """
WITH asked AS (SELECT id, batch FROM world_change WHERE id = $1 AND actor = $2)
UPDATE world_change c SET state = 'cancelled', rule = CASE WHEN c.id = $1 THEN NULL ELSE 'batch' END,
    decided_at = clock_timestamp()
FROM asked WHERE (c.id = asked.id OR c.batch = asked.batch) AND c.state = 'queued' AND c.sent_epoch IS NULL
"""
_STANDING = """
SELECT id, entity_id, op, state, rule, current_version, observed::text, tick, queued_at, expires_at, decided_at
FROM world_change WHERE actor = $2 AND (id = $1 OR key = $1) ORDER BY id = $1 DESC LIMIT 1
"""
_PRESSURE = """
SELECT count(*) AS depth,
    coalesce(extract(epoch FROM clock_timestamp() - min(queued_at)) * 1000, 0)::bigint AS oldest_ms
FROM world_change WHERE state = 'queued'
"""
_PURGE = """
DELETE FROM world_change WHERE id = ANY (ARRAY(
    SELECT id FROM world_change WHERE state <> 'queued' AND decided_at < clock_timestamp() - make_interval(secs => $1::float8)
    ORDER BY decided_at LIMIT $2::integer FOR UPDATE SKIP LOCKED))
"""


@dataclass(frozen=True, slots=True)
class Pressure:
    """How much waits to be decided, and for how long the oldest of it has."""

    queue_depth: int
    oldest_ms: int


async def submit(
    pool: Pool,
    proposals: Sequence[Proposal],
    *,
    origin: Origin,
    requester: str,
    rank: int,
    open_changes_max: int,
    atomic: bool = False,
) -> list[Queued]:
    """Take proposals: all of them or, where anything is wrong with one, none. What is returned is committed.

    A key that the requester has used before names the change of that time: it is not made again.

    Args:
        pool: Where the world lies.
        proposals: 1 to 64; their keys differ.
        origin: Who asks and how.
        requester: The identity chain without its session; its keys and its open changes are counted by it.
        rank: 1 for the game server, 0 for everybody else.
        open_changes_max: How many of the requester's may wait; calls at the same moment may pass it by their own number.
        atomic: They are decided together, all or nothing.

    Raises:
        BadInput: A proposal does not fit, or names what is not there.
        TooLarge: Too many proposals, or a payload of more than 16 KiB.
        Conflict: A key stands for another change.
        RateLimited: Too many of the requester's changes wait.
    """
    taken = await _taken(pool, proposals, requester)
    asked = await ask(pool, proposals, origin=origin, rank=rank, taken=taken)
    batch = new_id("bat") if atomic and len(asked) > 1 else None
    if batch is not None:  # they go together: one order for all, which is the least that any of them has
        rank_of_all, priority = min(a.rank for a in asked), min(a.proposal.priority for a in asked)
    else:
        rank_of_all, priority = None, None
    ids = {each.proposal.key: new_id("sch") for each in asked}
    values = _columns(asked, ids, rank_of_all, priority)
    settled = (requester, batch, orjson.dumps(origin.body()).decode(), *values, open_changes_max, CHANGE_CHANNEL)
    async with AsyncExitStack() as stack:
        connection = await stack.enter_async_context(pool.acquire())
        if len(asked) > 1:
            await stack.enter_async_context(connection.transaction())
            # Calls with the same keys in another order would each wait for a key of the other.
            await connection.execute(_ONE_AT_A_TIME, requester)
        made = {row["key"] for row in await connection.fetch(_INSERT, *settled)}
        former = {} if len(made) == len(asked) else await _former(connection, asked, requester, made, open_changes_max)
        if batch is not None and made and former:
            raise Conflict(
                "Some changes of this batch were taken before, with others.",
                next_step="Use new idempotency keys for a batch that is new.",
            )
    return [_queued(each, ids, former) for each in asked]


async def former(pool: Executor, keys: Sequence[str], requester: str) -> list[Queued] | None:
    """What the requester's keys stand for, in their order; None where one of them stands for nothing."""
    found = {row["key"]: row for row in await pool.fetch(_SAME_KEYS, requester, list(keys))}
    if any(key not in found for key in keys):
        return None
    return [
        Queued(change_id=found[key]["id"], state=found[key]["state"], duplicate=False, current_version=None)
        for key in keys
    ]


async def _taken(pool: Executor, proposals: Sequence[Proposal], requester: str) -> frozenset[str]:
    """The keys of those that were taken before, among proposals that name a cause: it may be forgotten by now."""
    keys = [each.key for each in proposals if each.causation is not None and is_clean(each.key)]
    return frozenset(row["key"] for row in await pool.fetch(_SAME_KEYS, requester, keys)) if keys else frozenset()


def _queued(asked: Asked, ids: Mapping[str, str], former: Mapping[str, asyncpg.Record]) -> Queued:
    row = former.get(asked.proposal.key)
    if row is None:
        return Queued(change_id=ids[asked.proposal.key], state="queued", duplicate=False, current_version=asked.version)
    return Queued(change_id=row["id"], state=row["state"], duplicate=True, current_version=asked.version)


async def _former(
    connection: Connection, asked: Sequence[Asked], requester: str, made: set[str], open_changes_max: int
) -> dict[str, asyncpg.Record]:
    """What the keys that made nothing stand for."""
    left = [each for each in asked if each.proposal.key not in made]
    rows = await connection.fetch(_SAME_KEYS, requester, [each.proposal.key for each in left])
    former = {row["key"]: row for row in rows}
    for each in left:
        row = former.get(each.proposal.key)
        if row is None:
            raise RateLimited(
                f"{open_changes_max} changes of {requester} may wait to be decided, and these would be more.",
                retry_after_s=_FULL_AGAIN_S,
                details={"open_changes_max": open_changes_max},
            )
        if row["digest"] != each.digest:
            raise Conflict(
                f"The idempotency key {clean(each.proposal.key, limit=80)!r} stands for another change.",
                next_step="Use a new key for a new change, and the same arguments to ask about the old one.",
            )
    return former


def _columns(asked: Sequence[Asked], ids: Mapping[str, str], rank: int | None, priority: int | None) -> list[object]:
    rows = [
        (
            ids[each.proposal.key],
            each.proposal.key,
            each.digest,
            each.proposal.entity_id,
            each.proposal.op,
            orjson.dumps(each.payload).decode(),
            each.proposal.expect_version,
            each.rank if rank is None else rank,
            each.proposal.priority if priority is None else priority,
            each.proposal.causation,
            each.depth,
            each.signature,
            " ".join(each.ancestry),
            # A batch may take a player's rank away, never that the words are a player's.
            each.tainted or each.rank >= PLAYER_RANK > (PLAYER_RANK if rank is None else rank),
            each.proposal.expires_in_ms,
        )
        for each in asked
    ]
    return [list(column) for column in zip(*rows, strict=True)]


async def cancel(pool: Pool, change_id: str, requester: str) -> Standing:
    """Take back a change that nobody has decided yet, and its whole batch; how it stands then.

    Raises:
        NotFound: No change of this requester has that id.
        Conflict: It was decided already, or an engine outside has been told of it.
    """
    await pool.execute(_CANCEL, change_id, requester)
    found = await standing(pool, change_id, requester)
    if found.state == "queued":
        raise Conflict("The engine has this change already.", next_step="Wait for what it decides.")
    if found.state != "cancelled":
        raise Conflict(f"This change is {found.state} already.", next_step="Queue another change that takes it back.")
    return found


async def standing(pool: Executor, ref: str, requester: str) -> Standing:
    """How a change stands, by its id or by the idempotency key it was asked for with.

    Raises:
        NotFound: This requester has no such change.
    """
    row = await pool.fetchrow(_STANDING, ref, requester)
    if row is None:
        raise NotFound(
            "You have no change of that id or key.",
            next_step="Use the change_id that queue_state_change gave; what was decided over a week ago is forgotten.",
        )
    observed = row["observed"]
    return Standing(
        change_id=row["id"],
        entity_id=row["entity_id"],
        op=row["op"],
        state=row["state"],
        rule=row["rule"],
        current_version=row["current_version"],
        observed=None if observed is None else orjson.loads(observed),
        tick=row["tick"],
        queued_at=row["queued_at"],
        expires_at=row["expires_at"],
        decided_at=row["decided_at"],
    )


async def wait(pool: Pool, world: WorldMap, change_id: str, requester: str, *, timeout_s: float) -> Standing:
    """How a change stands once it is decided, or when the time is over; the map then holds what it did.

    Raises:
        NotFound: This requester has no such change.
    """
    loop = asyncio.get_running_loop()
    until = loop.time() + timeout_s
    with world.deciding(change_id) as decided:
        while True:
            found = await standing(pool, change_id, requester)
            left = until - loop.time()
            if found.state in FINAL or left <= 0:
                await world.reach(_last_pos(found))
                return found
            # Who says that it is decided may be lost, so it is looked at now and then.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(left, _LOOK_EVERY_S)):
                    await decided.wait()
            decided.clear()


def _last_pos(found: Standing) -> int:
    events: list[dict[str, int]] = found.observed["events"] if found.observed else []
    return max((event["pos"] for event in events), default=0)


async def rehearse(
    pool: Pool,
    entities: Mapping[str, Entity],
    proposal: Proposal,
    *,
    origin: Origin,
    requester: str,
    rank: int,
    tick: int = 0,
) -> Verdict:
    """What would become of a proposal if it were decided now: nothing is queued and nothing changes.

    Raises:
        BadInput: The proposal does not fit, as in `submit`.
        TooLarge: Its payload is too long.
    """
    asked = (await ask(pool, [proposal], origin=origin, rank=rank))[0]
    change = asked.as_change("sch_rehearsed", actor=requester)
    return decide([change], entities, tick, now=datetime.now(UTC))[0]


async def pressure(pool: Executor) -> Pressure:
    """How much waits."""
    row = await pool.fetchrow(_PRESSURE)
    assert row is not None, "an aggregate has a row"
    return Pressure(row["depth"], row["oldest_ms"])


async def purge(pool: Pool, *, older_than_s: float) -> int:
    """Forget changes that were decided longer ago, in small bites; their events stay. How many."""
    purged = 0
    while True:
        status = await pool.execute(_PURGE, older_than_s, _PURGE_AT_ONCE)
        bite = int(status.rpartition(" ")[2])
        purged += bite
        if bite < _PURGE_AT_ONCE:
            return purged
