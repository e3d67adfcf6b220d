"""Owns the fence: every write of a run names the token of its claim, so a worker that was replaced can write nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from body_broker.errors import InternalError
from body_broker.storage.postgres import LOST, Connection, Pool
from body_broker.work.model import LeaseLost

_TRY_AGAIN_S = 0.1
# A session that stands still between two statements is idle in its transaction, and ended for that. One that stands still within the
# exchange that prepares a statement is not: servers that know it end its transaction by its whole age, with room for a slow machine.
_IDLE = "SELECT set_config('idle_in_transaction_session_timeout', $1, true)"
_IDLE_AND_WHOLE = f"{_IDLE}, set_config('transaction_timeout', $2, true)"
_KNOWS_WHOLE = (17,)
_WHOLE_LEASES = 2
_HOLD = "SELECT true FROM work WHERE id = $1 AND token = $2::bigint AND state = 'running' FOR UPDATE"

Value = str | int | float | None


class Fence:
    """What one claim may still write.

    Attributes:
        pool: Where it writes.
        work_id: The work claimed.
        token: The claim's number; the next claim has a higher one.
        lease_s: How long the claim lasts without a sign of life.
    """

    def __init__(self, pool: Pool, work_id: str, token: int, lease_s: float) -> None:
        self.pool, self.work_id, self.token, self.lease_s = pool, work_id, token, lease_s
        self._held_by: asyncio.Task[object] | None = None

    async def write(self, statement: str, *values: Value) -> None:
        """Run a statement whose $1 and $2 are the work and the token; a lost connection is tried again for one lease.

        Raises:
            LeaseLost: The claim no longer holds; nothing was written.
            InternalError: This task is inside `transaction`, whose row it would wait for.
        """
        if self._held_by is not None and self._held_by is asyncio.current_task():
            raise InternalError("Inside a fenced transaction only its own connection is written through.")
        clock = asyncio.get_running_loop()
        end = clock.time() + self.lease_s
        while True:
            try:
                owned = await self.pool.fetchval(statement, self.work_id, self.token, *values)
            except LOST:
                if clock.time() >= end or self.pool.is_closing():
                    raise
                await asyncio.sleep(_TRY_AGAIN_S)
            else:
                return _owned(owned)

    @asynccontextmanager
    async def transaction(self) -> AsyncGenerator[Connection]:
        """A short transaction that can commit only while the claim holds: the row stays locked to the commit.

        The server ends the session of a worker that is paused inside for a whole lease, or two where it had a statement half prepared
        (servers before 17 wait for that one), so nobody waits for it longer.

        Raises:
            LeaseLost: The claim no longer holds.
        """
        async with self.pool.acquire() as connection, connection.transaction():
            await self._bound(connection)
            _owned(await connection.fetchval(_HOLD, self.work_id, self.token))
            self._held_by = asyncio.current_task()
            try:
                yield connection
            finally:
                self._held_by = None

    async def _bound(self, connection: Connection) -> None:
        idle_ms = str(int(self.lease_s * 1000))
        if connection.get_server_version() >= _KNOWS_WHOLE:
            await connection.execute(_IDLE_AND_WHOLE, idle_ms, str(int(self.lease_s * 1000) * _WHOLE_LEASES))
        else:
            await connection.execute(_IDLE, idle_ms)


def _owned(found: object) -> None:
    if found is None:
        raise LeaseLost("This run was taken over by another worker.")
