"""Owns how the product is kept at a step: a lock of ours in its own database, which it runs into; who waits is there."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import asyncpg

from tests.kill.harness import PATIENCE_S
from tests.waiting import wait_until

_WAITING = "SELECT application_name FROM pg_stat_activity WHERE $1 = ANY (pg_blocking_pids(pid))"
_BLOCKED = "SELECT cardinality(pg_blocking_pids($1)) > 0"


class Hold:
    """A transaction of ours that holds what a statement locked; made by `holding`.

    Attributes:
        pid: The server's process behind it.
    """

    def __init__(self, database_url: str, connection: asyncpg.Connection[asyncpg.Record], pid: int) -> None:
        self._database_url, self._connection, self.pid = database_url, connection, pid

    async def waiting(self) -> set[str]:
        """Which programs (hub, worker) wait for what is held: the last word of how they call themselves in the database."""
        return {re.split("[ -]", row["application_name"])[-1] for row in await self._look(_WAITING)}

    async def has_stopped(self, *programs: str) -> None:
        """Return once each of the programs waits for what is held."""

        async def stopped() -> bool:
            return set(programs) <= await self.waiting()

        await wait_until(stopped, f"{' and '.join(programs)} stand still", timeout_s=PATIENCE_S)

    async def is_queued(self) -> None:
        """Return once this transaction itself waits for somebody's."""

        async def blocked() -> bool:
            return (await self._look(_BLOCKED))[0][0]

        await wait_until(blocked, "our lock stands in the queue", timeout_s=PATIENCE_S)

    async def lock(self, statement: str, *values: object) -> None:
        """Run what locks; waits where somebody else holds it."""
        await self._connection.fetch(statement, *values)

    def let_go(self) -> None:
        """End it however the server is; the lock goes with the connection."""
        self._connection.terminate()

    async def _look(self, query: str) -> list[asyncpg.Record]:
        connection = await asyncpg.connect(self._database_url, timeout=PATIENCE_S)
        try:
            return await connection.fetch(query, self.pid)
        finally:
            await connection.close()


@asynccontextmanager
async def holding(database_url: str, statement: str | None = None, *values: object) -> AsyncGenerator[Hold]:
    """A transaction that has run the statement, if there is one yet; let go on the way out."""
    connection = await asyncpg.connect(database_url, timeout=PATIENCE_S, command_timeout=PATIENCE_S)
    try:
        await connection.execute("BEGIN")
        pid: int = await connection.fetchval("SELECT pg_backend_pid()")
        held = Hold(database_url, connection, pid)
        if statement is not None:
            await held.lock(statement, *values)
        yield held
    finally:
        connection.terminate()
