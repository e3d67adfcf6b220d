"""Owns the forgetting of decided changes: a schedule of the worker. Events are the world's history and stay."""

from __future__ import annotations

from collections.abc import Mapping

from body_broker.calls import Json
from body_broker.storage.postgres import Pool
from body_broker.work.run import Handler, Run
from body_broker.work.schedule import Schedule, every
from body_broker.world import queue

PURGE = "world.purge"
"""The kind of work that forgets changes."""
KEPT_S = 7 * 24 * 3600.0
"""How long a decided change can be looked up, named as a cause, and asked for again under its key."""
_EVERY_S = 3600


def handlers(pool: Pool) -> Mapping[str, Handler]:
    """What does it, by kind of work."""

    async def purge(_run: Run) -> Json:
        return {"purged": await queue.purge(pool, older_than_s=KEPT_S)}

    return {PURGE: purge}


def schedules() -> tuple[Schedule, ...]:
    """When: once an hour."""
    return (
        Schedule(name=PURGE, kind=PURGE, owner="service:body-broker", slot=every(_EVERY_S), grace_s=float(_EVERY_S)),
    )
