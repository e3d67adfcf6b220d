"""Owns recurring work: each slot of a schedule is enqueued once, by whichever worker sees it first."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from datetime import UTC, datetime

from body_broker.errors import Conflict
from body_broker.storage.postgres import Connection
from body_broker.telemetry import get_logger
from body_broker.work.model import Origin
from body_broker.work.queue import enqueue

logger = get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """Recurring work. Its input is `{"slot": ...}`, the moment it was due.

    Attributes:
        name: Unique; the slots of one name are kept apart by it.
        kind: Which handler runs it.
        owner: The service it belongs to.
        slot: The latest due moment at or before a given one, both in UTC.
        grace_s: A slot that was missed for longer is skipped; shorter than the worker's retention, because a purged slot
            would be enqueued again.
    """

    name: str
    kind: str
    owner: str
    slot: Callable[[datetime], datetime]
    grace_s: float = 12 * 3600


def every(period_s: int) -> Callable[[datetime], datetime]:
    """A slot function: multiples of a period since the epoch."""

    def slot(now: datetime) -> datetime:
        return datetime.fromtimestamp(now.timestamp() // period_s * period_s, UTC)

    return slot


class Planner:
    """Enqueues the due slots of its schedules; remembers the last one so that most looks cost nothing."""

    def __init__(self, schedules: Collection[Schedule]) -> None:
        self._schedules = tuple(schedules)
        self._planned: dict[str, datetime] = {}

    async def plan(self, connection: Connection) -> None:
        """Enqueue each slot that is due by the database's clock and not yet enqueued."""
        now: datetime = await connection.fetchval("SELECT clock_timestamp()")
        for each in self._schedules:
            slot = each.slot(now)
            if self._planned.get(each.name) == slot or (now - slot).total_seconds() >= each.grace_s:
                continue
            try:
                await enqueue(
                    connection,
                    each.kind,
                    {"slot": slot.isoformat()},
                    origin=Origin(chain=(each.owner,), session=f"schedule {each.name}"),
                    unique_key=f"schedule {each.name} {slot.isoformat()}",
                )
            except Conflict:  # a worker of another version planned it otherwise; its slot stands
                logger.warning("work_schedule_differs", schedule=each.name)
            self._planned[each.name] = slot
