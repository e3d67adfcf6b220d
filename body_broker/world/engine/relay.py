"""Owns the hub's side of the engine protocol as a task: one external engine at a time arbitrates, and this writes what it decides.

The engine's words are believed only under the epoch that it holds and only where they fit the record (ADR 13). Whatever is lost on
the way, a process, a stream, a connection, ends in the same place: what is not recorded did not happen, and a new epoch begins from
what is.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from typing import Any

import asyncpg

from body_broker.storage.postgres import LOST as DATABASE_LOST
from body_broker.storage.postgres import Pool
from body_broker.storage.redis import LOST, Redis
from body_broker.telemetry import get_logger
from body_broker.world.engine.desk import Desk
from body_broker.world.engine.fitting import GRACE_S
from body_broker.world.engine.leading import leading
from body_broker.world.engine.messages import TO_HUB
from body_broker.world.engine.streams import Stream, clock_ms, written_ms
from body_broker.world.epochs import Superseded

log = get_logger(__name__)

_AGAIN_S = 0.3
_LOOKS = 6
"""Looks for what has lapsed or was missed, in one lease."""


class Relay:
    """Holds the epoch for an external engine.

    Args:
        pool: The database.
        redis: Where the streams are.
        database_url: For the connection that hears of changes; never logged.
        lease_s: How long an engine may be silent.
        clock: Seconds that only grow.
        grace_s: How long after a change has expired its outcome may come.
    """

    def __init__(
        self,
        pool: Pool,
        redis: Redis,
        *,
        database_url: str,
        lease_s: float,
        clock: Callable[[], float] = time.monotonic,
        grace_s: float = GRACE_S,
    ) -> None:
        self._pool, self._redis, self._database_url = pool, redis, database_url
        self._lease_s, self._clock, self._grace_s = lease_s, clock, grace_s
        self._wake = asyncio.Event()
        self._task: asyncio.Task[Any] | None = None
        self._stopped = False

    def stop(self) -> None:
        """Let `run` return; another relay may go on under the same epoch."""
        self._stopped = True
        if self._task is not None:
            self._task.cancel()

    async def run(self) -> None:
        """Relay until stopped, through lost stores; one relay does on a database, others wait."""
        self._task = asyncio.current_task()
        try:
            while not self._stopped:
                await self._try()
                await asyncio.sleep(_AGAIN_S)
        except asyncio.CancelledError:
            if not self._stopped:
                raise

    async def _try(self) -> None:
        """Relay until something is lost."""
        try:
            async with leading(self._database_url, self._wake.set) as lost:
                await self._lead(lost)
        except (*LOST, *DATABASE_LOST, asyncpg.PostgresError, Superseded):
            log.warning("engine_relay_lost_its_stores")
        except Exception:
            # Whatever it is, an engine must not be left without its other side.
            log.exception("engine_relay_failed")

    async def _lead(self, lost: asyncio.Event) -> None:
        """Relay for as long as this process leads."""
        desk = Desk(self._pool, self._redis, lease_s=self._lease_s, clock=self._clock, grace_s=self._grace_s)
        after = await desk.resume()
        turn = asyncio.Lock()
        tasks: set[asyncio.Task[Any]] = {
            asyncio.create_task(self._read(desk, after, turn), name="engine-relay-reads"),
            asyncio.create_task(self._send(desk, turn), name="engine-relay-sends"),
            asyncio.create_task(lost.wait(), name="engine-relay-leads"),
        }
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        for task in done:
            task.result()

    async def _read(self, desk: Desk, after: str, turn: asyncio.Lock) -> None:
        reports = Stream(self._redis, TO_HUB)
        look_s = self._lease_s / _LOOKS
        expired_at = 0.0
        while True:
            found = await reports.read(after, block_ms=max(1, int(look_s * 1000)))
            async with turn:
                for entry, raw in found:
                    await desk.hear(entry, raw)
                    after = entry
                if found:
                    await desk.settle(after)
                else:
                    # Only who has nothing left to say can have fallen silent.
                    await desk.look()
                    after = await reports.at_most(after)
                if self._clock() - expired_at >= look_s:
                    expired_at = self._clock()
                    behind_ms = await clock_ms(self._redis) - written_ms(after) if found else 0
                    await desk.expire(behind_ms / 1000)
            self._wake.set()

    async def _send(self, desk: Desk, turn: asyncio.Lock) -> None:
        while True:
            self._wake.clear()
            async with turn:
                more = await desk.send()
            if not more:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._lease_s):
                        await self._wake.wait()
