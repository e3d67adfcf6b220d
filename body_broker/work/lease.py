"""Owns who holds what until when: claims, renewals, and the sweep of what has lapsed or expired. All times are the database's."""

from __future__ import annotations

from collections.abc import Collection

from body_broker.errors import DeadlineExceeded, Unavailable, on_the_wire
from body_broker.storage.postgres import Connection, Pool
from body_broker.telemetry import get_logger
from body_broker.work.fence import Fence
from body_broker.work.model import CHANNEL, Origin, decode, encode
from body_broker.work.run import Claimed, Run, unknown

logger = get_logger(__name__)

_CLAIM = """
SELECT id, kind, origin::text, input::text, token, attempts, attempts_max, begun, created_at, expires_at
FROM work_claim($1::text[], $2, make_interval(secs => $3::float8))
"""
# A row locked by its own fenced transaction is owned, and skipped this time: waiting for it would let the others lapse.
_RENEW = """
WITH owned AS (
    SELECT w.id, w.token, w.cancel_requested FROM work w
    JOIN unnest($1::text[], $2::bigint[]) AS mine (id, token) USING (id, token) WHERE w.state = 'running'),
renewed AS (
    UPDATE work SET lease_until = clock_timestamp() + make_interval(secs => $3::float8)
    WHERE id IN (SELECT w.id FROM work w JOIN owned USING (id, token) WHERE w.state = 'running' FOR UPDATE OF w SKIP LOCKED))
SELECT id, cancel_requested FROM owned
"""
# SKIP LOCKED leaves alone a run that is committing a fenced transaction right now. Where what has begun has its outcome recorded, nothing
# is in doubt and only the run's end is missing: it gets as many attempts again to tell it.
_SWEEP = """
WITH lapsed AS (
    SELECT id, attempts >= attempts_max * CASE WHEN EXISTS (
        SELECT FROM work_step s WHERE s.work = w.id AND s.name = w.begun) THEN 2 ELSE 1 END AS spent
    FROM work w WHERE state = 'running' AND lease_until < now() FOR UPDATE SKIP LOCKED)
UPDATE work SET
    state = CASE WHEN open_effect IS NOT NULL THEN 'unknown'
                 WHEN begun IS NOT NULL THEN CASE WHEN spent THEN 'unknown' ELSE 'queued' END
                 WHEN cancel_requested THEN 'cancelled' WHEN spent THEN 'failed' ELSE 'queued' END,
    open_effect = CASE WHEN open_effect IS NULL AND spent THEN begun ELSE open_effect END,
    error = CASE WHEN open_effect IS NOT NULL THEN $1::text::jsonb || jsonb_build_object('effect', open_effect)
                 WHEN begun IS NOT NULL AND spent THEN $1::text::jsonb || jsonb_build_object('effect', begun)
                 WHEN begun IS NOT NULL OR NOT cancel_requested THEN $2::text::jsonb END,
    finished_at = CASE WHEN open_effect IS NULL AND begun IS NULL AND (cancel_requested OR spent)
                       THEN clock_timestamp() END,
    run_at = clock_timestamp(), lease_until = NULL
FROM lapsed WHERE work.id = lapsed.id
RETURNING work.id, state, worker
"""
_EXPIRE = """
UPDATE work SET state = 'expired', finished_at = clock_timestamp(), wake_at = NULL,
    error = $1::text::jsonb || jsonb_build_object('begun', started_at IS NOT NULL)
WHERE id IN (SELECT id FROM work WHERE state IN ('waiting', 'queued') AND expires_at <= now() FOR UPDATE SKIP LOCKED)
"""
# Another worker may have its handler.
_WAKE = """
WITH moved AS (
    UPDATE work SET state = 'queued', run_at = created_at, waits_for = NULL, wake_at = NULL
    WHERE id IN (SELECT id FROM work WHERE state = 'waiting' AND wake_at <= now() FOR UPDATE SKIP LOCKED) RETURNING kind)
SELECT pg_notify($1, 'ready ' || kind) FROM (SELECT DISTINCT kind FROM moved) AS kinds
"""
_NEXT_MOMENT = """
SELECT extract(epoch FROM least(
    (SELECT min(run_at) FROM work WHERE state = 'queued' AND kind = ANY ($1::text[]) AND run_at > now()),
    (SELECT min(lease_until) FROM work WHERE state = 'running'),
    (SELECT min(wake_at) FROM work WHERE state = 'waiting'),
    (SELECT min(expires_at) FROM work WHERE state IN ('waiting', 'queued'))) - now())::float8
"""
_LOST = Unavailable("The worker that ran it was lost.", details={"component": "worker"})
_EXPIRED = DeadlineExceeded(
    "It expired before it could be run to its end.", next_step="Ask again if it is still wanted."
)


async def claim(connection: Connection, pool: Pool, kinds: Collection[str], worker: str, lease_s: float) -> Run | None:
    """The most urgent work of these kinds that may start now, as a run that nobody else holds; None when there is none."""
    row = await connection.fetchrow(_CLAIM, list(kinds), worker, lease_s)
    if row is None:
        return None
    # Read after the claim is committed: only now can no earlier run add a step.
    steps = await connection.fetch("SELECT name, outcome::text FROM work_step WHERE work = $1", row["id"])
    work = Claimed(
        kind=row["kind"],
        origin=Origin.parse(row["origin"]),
        input=decode(row["input"]),
        attempt=row["attempts"],
        attempts_max=row["attempts_max"],
        created_at=row["created_at"],
        expires_at=row["expires_at"],
        begun=row["begun"],
        steps={step["name"]: decode(step["outcome"]) for step in steps},
    )
    return Run(Fence(pool, row["id"], row["token"], lease_s), work)


async def renew(connection: Connection, runs: Collection[Run], lease_s: float) -> None:
    """Hold these runs for another lease; those that were cancelled or taken over are interrupted."""
    rows = await connection.fetch(_RENEW, [run.id for run in runs], [run.fence.token for run in runs], lease_s)
    owned: dict[str, bool] = {row["id"]: row["cancel_requested"] for row in rows}
    for run in runs:
        if run.id not in owned:
            run.interrupt("lost")
        elif owned[run.id]:
            run.interrupt("cancelled")


async def sweep(connection: Connection) -> None:
    """Take back what its worker no longer holds, end what has expired, and wake what was parked until now.

    A lapsed run goes back to the queue, unless it died inside a `once` effect or has used up its attempts; what has begun and may
    be repeated is then unknown.
    """
    effect_unknown = unknown("")
    rows = await connection.fetch(_SWEEP, _body(effect_unknown), _body(_LOST))
    for row in rows:
        logger.warning("work_lease_lapsed", work=row["id"], state=row["state"], worker=row["worker"])
    await connection.execute(_EXPIRE, _body(_EXPIRED))
    await connection.execute(_WAKE, CHANNEL)


async def next_moment_s(connection: Connection, kinds: Collection[str]) -> float | None:
    """Seconds until something becomes due, lapses, expires or wakes; None when nothing will."""
    moment: float | None = await connection.fetchval(_NEXT_MOMENT, list(kinds))
    return moment


def _body(error: Exception) -> str:
    return encode(on_the_wire(error).body(), "error")
