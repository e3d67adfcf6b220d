"""Owns how the product is kept at a step: a lock of ours in its own database, which it runs into; who waits is there."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import asyncpg

from tests.kill.harness import PATIENCE_S
from tests.waiting import wait_until

_WAITING = "SELECT application_name FROM pg_stat_activity WHERE $1 = ANY (pg_blocking_pids(pid))"


class Hold:
    """A transaction of ours that holds what a statement locked; made by `holding`."""

    def __init__(self, database_url: str, connection: asyncpg.Connection[asyncpg.Record], pid: int) -> None:
        self._database_url, self._connection, self._pid = database_url, connection, pid

    async def waiting(self) -> set[str]:
        """Which programs (hub, worker, cli) wait for what is held: the last word of how they call themselves in the database."""
        connection = await asyncpg.connect(self._database_url, timeout=PATIENCE_S)
        try:
            rows = await connection.fetch(_WAITING, self._pid)
        finally:
            await connection.close()
        return {row["application_name"].split()[-1] for row in rows}

    async def has_stopped(self, *programs: str) -> None:
        """Return once each of the programs waits for what is held."""

        async def stopped() -> bool:
            return set(programs) <= await self.waiting()

        await wait_until(stopped, f"{' and '.join(programs)} stand still", timeout_s=PATIENCE_S)

    async def has_stopped_one(self) -> str:
        """Which program it is that waits for what is held, once one does."""
        found: set[str] = set()

        async def stopped() -> bool:
            found.update(await self.waiting())
            return bool(found)

        await wait_until(stopped, "a program stands still", timeout_s=PATIENCE_S)
        return found.pop()

    def let_go(self) -> None:
        """End it however the server is; the lock goes with the connection."""
        self._connection.terminate()


@asynccontextmanager
async def holding(database_url: str, statement: str, *values: object) -> AsyncGenerator[Hold]:
    """A transaction that has run the statement, waiting where somebody else holds it; let go on the way out."""
    connection = await asyncpg.connect(database_url, timeout=PATIENCE_S, command_timeout=PATIENCE_S)
    try:
        await connection.execute("BEGIN")
        await connection.fetch(statement, *values)
        yield Hold(database_url, connection, await connection.fetchval("SELECT pg_backend_pid()"))
    finally:
        connection.terminate()
