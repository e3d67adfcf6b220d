"""Owns how a change is foreseen, drafted, made once and verified, the same for every kind.

What is foreseen has a basis, which people approve with the diff. It is made only from that very basis, and the row that says so commits
with the effect: whoever repeats it under the same key finds it made, and only reads it back.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

import asyncpg

from body_broker.calls import Call, Caller
from body_broker.errors import ApprovalRequired, BodyBrokerError, Conflict
from body_broker.storage.postgres import LOST as POSTGRES_LOST
from body_broker.storage.redis import LOST as REDIS_LOST
from body_broker.telemetry import get_logger
from body_broker.work.model import Origin
from mcp_servers.admin.changes import store
from mcp_servers.admin.changes.kind import Foreseen, Found, Kind, Maker, Plan, Reach
from mcp_servers.admin.changes.store import Made, Requested
from mcp_servers.admin.changes.table import kind_named, params_of

log = get_logger(__name__)

_UNREAD = "It was made; reading it back failed just now, so read it yourself."


MayRead = Callable[[Caller, str], None]
"""`(caller, operation)`: raises Denied, naming the rule, where the policy does not let them run that read."""


@dataclass(frozen=True, slots=True)
class Drafted:
    """A draft: nothing has happened."""

    id: str
    foreseen: Foreseen
    expires_at: datetime


def maker_of(call: Call) -> Maker:
    """Who makes a change by this call.

    Raises:
        ApprovalRequired: The call runs under no approval.
    """
    if call.approval is None:
        raise ApprovalRequired("A change is made only under the yes of people who were shown its diff.")
    return Maker(
        requester=call.caller.requester,
        origin=Origin.of(call),
        key=call.approval,
        receipt=call.receipt,
        tainted=call.tainted,
    )


class Changes:
    """Makes changes of every kind.

    Args:
        reach: What they change.
        may_read: Refuses whoever may not read what an operation reads.
    """

    def __init__(self, reach: Reach, may_read: MayRead) -> None:
        self._reach, self._may_read = reach, may_read

    async def foresee(self, wanted: Requested) -> Foreseen:
        """What a change would do.

        Raises:
            NotConfigured: Its kind has no backend.
            BadInput, TooLarge, NotFound, Conflict: It could only fail.
        """
        return (await self._plan(wanted)).foreseen

    async def draft(self, wanted: Requested, caller: Caller) -> Drafted:
        """The same, kept for a day.

        Raises:
            Denied: The caller may not read what it would show.
            BodyBrokerError: As `foresee`.
        """
        self._may_read(caller, kind_named(wanted.kind).reads)
        foreseen = await self.foresee(wanted)
        async with self._reach.pool.acquire() as connection, connection.transaction():
            change_id, expires_at = await store.draft(connection, wanted, foreseen, caller)
        return Drafted(change_id, foreseen, expires_at)

    async def make(self, wanted: Requested, maker: Maker, basis: str | None) -> tuple[str, Found]:
        """The id of a change that was made now, or before under the same approval, and what reading it back found.

        Args:
            wanted: The change.
            maker: By whom, under which approval.
            basis: Of the diff that was approved.

        Raises:
            Conflict: The state is not the one whose diff was approved.
            BodyBrokerError: As `foresee`.
        """
        kind = kind_named(wanted.kind)
        made = await store.made_under(self._reach.pool, maker.key)
        if made is None:
            try:
                made = await self._write(kind, wanted, maker, basis)
            except BodyBrokerError:
                # Another worker that had the same call may have made it just now: that is why it is no longer as it was.
                made = await store.made_under(self._reach.pool, maker.key)
                if made is None:
                    raise
        found = await self._read_back(kind, wanted.target, made)
        return made.id, found

    async def _plan(self, wanted: Requested) -> Plan:
        kind = kind_named(wanted.kind)
        return await kind.plan(self._reach, wanted.target, params_of(kind, wanted.params))

    async def _write(self, kind: Kind, wanted: Requested, maker: Maker, basis: str | None) -> Made:
        plan = await self._plan(wanted)
        if plan.foreseen.basis != basis:
            raise Conflict(
                "What this would change is no longer what was shown to those who approved it.",
                next_step="Nothing was done. Ask again: people are shown the diff from the present state.",
            )
        async with self._reach.pool.acquire() as connection, connection.transaction():
            change_id = await store.begin(connection, wanted, plan.foreseen, maker)
            if change_id is not None:
                remembered = await plan.write(connection, maker)
                await store.written(connection, change_id, remembered, lasting=kind.lasting)
        made = await store.made_under(self._reach.pool, maker.key)
        assert made is not None, "it was made here or, at the same moment, by another"
        return made

    async def _read_back(self, kind: Kind, target: str, made: Made) -> Found:
        """What is so now. What was made is not told as a failure because it could not be read."""
        try:
            found = await kind.read_back(self._reach, target, made.remembered)
            await store.verified(self._reach.pool, made.id, found)
        except (BodyBrokerError, asyncpg.PostgresError, *POSTGRES_LOST, *REDIS_LOST):
            log.warning("change_not_read_back", change=made.id, kind=kind.name, exc_info=True)
            return Found(state="executing" if kind.lasting else "done", text=_UNREAD)
        if found.state == "failed":
            log.error("change_not_verified", change=made.id, kind=kind.name)
        return found
