"""Owns booking what the dead left: reservations of processes that never came back count as spent. A schedule of the worker."""

from __future__ import annotations

from collections.abc import Mapping

from body_broker.calls import Json
from body_broker.storage.postgres import Pool
from body_broker.work.run import Handler, Run
from body_broker.work.schedule import Schedule, every

SWEEP = "spend.sweep"
"""The kind of work that does it."""
_EVERY_S = 60
_AT_ONCE = 500


def handlers(pool: Pool) -> Mapping[str, Handler]:
    """What does it, by kind of work."""

    async def sweep(_run: Run) -> Json:
        return {"booked": await pool.fetchval("SELECT spend_sweep($1::integer)", _AT_ONCE)}

    return {SWEEP: sweep}


def schedules() -> tuple[Schedule, ...]:
    """When: once a minute."""
    return (
        Schedule(name=SWEEP, kind=SWEEP, owner="service:body-broker", slot=every(_EVERY_S), grace_s=float(_EVERY_S)),
    )
