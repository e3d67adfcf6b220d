"""Owns what nobody waits for: what is past its time is ended, what became of a yes recorded, lost notices sent again, the old forgotten."""

from __future__ import annotations

from collections.abc import Mapping

from approvals import store
from approvals.desk import Desk
from approvals.model import READABLE_S
from body_broker.calls import Json
from body_broker.errors import BodyBrokerError
from body_broker.storage.postgres import Pool
from body_broker.telemetry import get_logger
from body_broker.work import queue
from body_broker.work.run import Handler, Run
from body_broker.work.schedule import Schedule, every

log = get_logger(__name__)

SWEEP = "approvals.sweep"
"""The kind of work that ends, records and sends again."""
TIDY = "approvals.tidy"
"""The kind of work that forgets."""
_SWEEP_EVERY_S = 10
_TIDY_EVERY_S = 3600
_AT_ONCE = 200
_NOTICE_AGAIN_S = 60
"""After a notice has failed for good it is tried anew no sooner; the log and `status` say so meanwhile."""

_DUE = """
SELECT id FROM approval WHERE state = 'pending' AND expires_at <= clock_timestamp() ORDER BY expires_at LIMIT $1::integer
"""
# Released in the transaction of the deciding vote; this finds what a person with a database client left behind.
_HELD_BACK = """
SELECT a.id FROM approval a JOIN work w ON w.id = a.id
WHERE a.state = 'approved' AND a.outcome IS NULL AND w.state = 'waiting' LIMIT $1::integer
"""
_UNRECORDED = """
SELECT id, outcome FROM approval WHERE outcome IS NOT NULL AND outcome IS DISTINCT FROM recorded
ORDER BY ordinal LIMIT 1 FOR UPDATE SKIP LOCKED
"""
# What is shown of it is not how it stands, and nobody is about to mend that.
_UNTOLD = """
SELECT approval_notice_due(a.id) FROM approval a LEFT JOIN approval_notice n ON n.approval_id = a.id
WHERE a.notify AND (a.ended_at IS NULL OR a.ended_at > clock_timestamp() - make_interval(secs => $1::float8))
    AND n.shown IS DISTINCT FROM coalesce(a.outcome, a.state)
    AND (n.failed_at IS NULL OR n.failed_at < clock_timestamp() - make_interval(secs => $2::float8))
    AND NOT EXISTS (SELECT FROM work w WHERE w.kind = 'approval_notice' AND w.state IN ('queued', 'running')
                    AND w.limit_key = 'notice ' || a.id)
ORDER BY a.ordinal LIMIT $3::integer
"""
_OLD_SWEEPS = """
DELETE FROM work WHERE kind = $1 AND finished_at < clock_timestamp() - make_interval(secs => $2::float8)
"""
_FORGET_STEPS = """
DELETE FROM work_step WHERE work IN (
    SELECT id FROM work WHERE kind = 'approved_call' AND finished_at < clock_timestamp() - make_interval(secs => $1::float8))
"""
_FORGET_RESULTS = """
UPDATE work SET result = NULL WHERE kind = 'approved_call' AND result IS NOT NULL
    AND finished_at < clock_timestamp() - make_interval(secs => $1::float8)
"""


Statement = tuple[str, tuple[object, ...]]
"""SQL, and its values."""


def handlers(desk: Desk, *, also: Mapping[str, Statement] | None = None) -> Mapping[str, Handler]:
    """What does it, by kind of work.

    Args:
        desk: Approvals.
        also: What else is forgotten once an hour, by what it is.
    """

    async def sweep(_run: Run) -> Json:
        return {
            "expired": await _expire(desk),
            "released": await _release(desk.pool),
            "recorded": await _record(desk),
            "notices": await _tell_again(desk.pool),
        }

    async def tidy(_run: Run) -> Json:
        return await _forget(desk.pool, also or {})

    return {SWEEP: sweep, TIDY: tidy}


def schedules() -> tuple[Schedule, ...]:
    """When: every ten seconds, and once an hour."""
    owner = store.SERVICE
    return (
        Schedule(name=SWEEP, kind=SWEEP, owner=owner, slot=every(_SWEEP_EVERY_S), grace_s=float(_SWEEP_EVERY_S)),
        Schedule(name=TIDY, kind=TIDY, owner=owner, slot=every(_TIDY_EVERY_S), grace_s=float(_TIDY_EVERY_S)),
    )


async def _expire(desk: Desk) -> int:
    ended = 0
    for row in await desk.pool.fetch(_DUE, _AT_ONCE):
        try:
            await desk.expire(row["id"])
            ended += 1
        except BodyBrokerError as error:  # the others' turn; it comes round again
            log.warning("approval_not_expired", approval=row["id"], code=error.code)
    return ended


async def _release(pool: Pool) -> int:
    held = await pool.fetch(_HELD_BACK, _AT_ONCE)
    for row in held:
        if await queue.release(pool, row["id"]):
            log.warning("approved_work_was_held_back", approval=row["id"])
    return len(held)


async def _record(desk: Desk) -> int:
    """What became of each yes stands on the audit too, also where the worker that knew was killed."""
    for count in range(_AT_ONCE):
        async with store.moving(desk.pool) as connection:
            row = await connection.fetchrow(_UNRECORDED)
            if row is None:
                return count
            kept = await store.load(connection, row["id"])
            assert kept is not None, "its row is locked"
            await desk.recorder.moved(kept.approval, row["outcome"], by=store.SERVICE)
            await connection.execute("UPDATE approval SET recorded = $2 WHERE id = $1", row["id"], row["outcome"])
    return _AT_ONCE


async def _tell_again(pool: Pool) -> int:
    count = len(await pool.fetch(_UNTOLD, float(READABLE_S), float(_NOTICE_AGAIN_S), _AT_ONCE))
    if count:
        log.warning("approval_notices_sent_again", count=count)
    return count


async def _forget(pool: Pool, also: Mapping[str, Statement]) -> dict[str, int]:
    """Logins and challenges past their time, results nobody may read any more, and the sweeps themselves."""
    kept_s = float(READABLE_S)
    statements: dict[str, Statement] = {
        "logins": ("DELETE FROM page_login WHERE expires_at <= clock_timestamp()", ()),
        "challenges": ("DELETE FROM page_challenge WHERE expires_at <= clock_timestamp()", ()),
        "steps": (_FORGET_STEPS, (kept_s,)),
        "results": (_FORGET_RESULTS, (kept_s,)),
        "sweeps": (_OLD_SWEEPS, (SWEEP, float(_TIDY_EVERY_S))),
        **also,
    }
    return {
        what: int((await pool.execute(statement, *values)).rpartition(" ")[2])
        for what, (statement, values) in statements.items()
    }
