"""Owns the worker: it claims work of the kinds it has handlers for, runs it, renews its leases, and hands back what it leaves."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Collection, Mapping

import asyncpg

from body_broker.background import end
from body_broker.calls import Json
from body_broker.storage.postgres import LOST, Connection, Pool
from body_broker.telemetry import get_logger
from body_broker.work import keyed, queue
from body_broker.work.ending import Backoff, perform
from body_broker.work.lease import claim, next_moment_s, renew, sweep
from body_broker.work.link import Link
from body_broker.work.run import Handler, Run
from body_broker.work.schedule import Planner, Schedule, every

logger = get_logger(__name__)

PURGE = "work.purge"
"""The kind of the built-in schedule that forgets work which ended longer ago than the retention."""
PURGE_EVERY_S = 3600
RETENTION_S = 7 * 24 * 3600
"""How long ended work is kept, unless a worker is told otherwise."""
_OWNER = "service:body-broker"
_PAUSE_MIN_S = 0.05
_AFTER_LOSS_S = 0.5


class Worker:
    """Runs durable work until `stop`; survives the loss of its connections.

    Beside the pool it opens one connection of its own, so it needs `database_url` and works with a pool of any size.

    Args:
        pool: What the handlers and their writes use.
        handlers: What runs each kind; two workers may have different kinds.
        database_url: The pool's database.
        schedules: Recurring work; every worker that has the schedule may plan it, each slot is enqueued once.
        concurrency: Runs at once.
        long_kinds: Kinds whose runs take minutes. Where there are several places, one is always left to the others.
        lease_s: How long the worker may be silent before its work is taken over.
        poll_s: How often it looks without being woken.
        backoff_s: Pause after a first failure; doubled from run to run.
        backoff_max_s: The longest such pause.
        grace_s: How long runs may go on after `stop` before they are handed back.
        retention_s: How long ended work is kept.
        name: Shown on the work it runs.
    """

    def __init__(
        self,
        pool: Pool,
        handlers: Mapping[str, Handler],
        *,
        database_url: str,
        schedules: Collection[Schedule] = (),
        concurrency: int = 4,
        long_kinds: Collection[str] = (),
        lease_s: float = 30.0,
        poll_s: float = 5.0,
        backoff_s: float = 1.0,
        backoff_max_s: float = 300.0,
        grace_s: float = 10.0,
        retention_s: float = RETENTION_S,
        name: str | None = None,
    ) -> None:
        purging = Schedule(name=PURGE, kind=PURGE, owner=_OWNER, slot=every(PURGE_EVERY_S), grace_s=PURGE_EVERY_S)
        assert all(s.grace_s < retention_s for s in (*schedules, purging)), "a purged slot would be enqueued again"
        self.name = name or f"{socket.gethostname()}:{os.getpid()}"
        self._pool = pool
        self._handlers: dict[str, Handler] = {PURGE: self._purge, **handlers}
        self._concurrency, self._lease_s, self._poll_s = concurrency, lease_s, poll_s
        self._long, self._short = frozenset(long_kinds), self._handlers.keys() - frozenset(long_kinds)
        self._grace_s, self._retention_s = grace_s, retention_s
        self._backoff = Backoff(backoff_s, backoff_max_s)
        self._planner = Planner((*schedules, purging))
        self._link = Link(
            database_url,
            name=f"body-broker worker {self.name}",
            timeout_s=max(lease_s / 3, 1.0),
            heard=self._heard,
            lost=self._wake,
        )
        self._runs: dict[str, Run] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._awake = asyncio.Event()
        self._stopping = False
        self._due = self._poll_at = 0.0  # by the event loop's clock

    def stop(self) -> None:
        """Claim nothing more; `run` returns when the running work has ended or was handed back."""
        self._stopping = True
        self._wake()

    async def run(self) -> None:
        """Work until `stop`. Cancelled, it hands back at once what it runs; an open `once` effect becomes unknown."""
        async with asyncio.TaskGroup() as side:
            keeping = side.create_task(self._keep_leases())
            try:
                while not self._stopping:
                    self._awake.clear()
                    await self._wait_awake(await self._look())
                await self._leave()
            finally:
                for run in self._runs.values():
                    run.abandon()
                await self._ended(self._lease_s)
                await end(keeping)  # it uses the link
                await self._link.close()

    async def _look(self) -> float:
        """Start what is ready; seconds until something more can become ready. What is due by the clock is done when it is."""
        clock = asyncio.get_running_loop()
        try:
            async with self._link.connection() as connection:
                if clock.time() >= self._due:
                    self._poll_at = clock.time() + self._poll_s
                    await self._planner.plan(connection)
                    await self._renew(connection)  # after a standstill of the whole machine, before its runs are swept
                    await sweep(connection)
                while len(self._runs) < self._concurrency and not self._stopping:
                    run = await claim(connection, self._pool, self._claimable(), self.name, self._lease_s)
                    if run is None:
                        break
                    self._start(run)
                moment = await next_moment_s(connection, self._handlers)
        except (*LOST, asyncpg.PostgresError):
            logger.warning("work_database_unreachable", exc_info=True)
            self._due = 0.0
            return min(_AFTER_LOSS_S, self._poll_s)
        pause = max(self._poll_at - clock.time(), 0.0)
        if moment is not None:
            pause = min(pause, max(moment, _PAUSE_MIN_S))
        self._due = clock.time() + pause
        return pause

    def _claimable(self) -> Collection[str]:
        long = sum(run.work.kind in self._long for run in self._runs.values())
        return self._handlers if long < max(self._concurrency - 1, 1) else self._short

    def _start(self, run: Run) -> None:
        if former := self._runs.get(run.id):  # it lapsed here, and came back here
            former.interrupt("lost")
        self._runs[run.id] = run
        task = run.begin(self._perform(run))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _perform(self, run: Run) -> None:
        try:
            await perform(run, self._handlers[run.work.kind], self._backoff)
        finally:
            if self._runs.get(run.id) is run:
                del self._runs[run.id]
            self._wake()

    async def _keep_leases(self) -> None:
        while True:
            await asyncio.sleep(self._lease_s / 3)
            try:
                async with self._link.connection() as connection:
                    await self._renew(connection)
            except (*LOST, asyncpg.PostgresError):
                logger.warning("work_leases_not_renewed", exc_info=True)

    async def _renew(self, connection: Connection) -> None:
        if self._runs:
            await renew(connection, list(self._runs.values()), self._lease_s)

    async def _leave(self) -> None:
        await self._ended(self._grace_s)
        for run in self._runs.values():
            run.interrupt("stopping")
        await self._ended(self._lease_s)

    async def _ended(self, within_s: float) -> None:
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=within_s)

    async def _wait_awake(self, pause_s: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(pause_s):
                await self._awake.wait()

    def _heard(self, payload: str) -> None:
        word, _, subject = payload.partition(" ")
        if word == "ready" and subject in self._handlers:
            self._wake()
        elif word == "cancel" and (run := self._runs.get(subject)):
            run.interrupt("cancelled")

    def _wake(self) -> None:
        self._awake.set()

    async def _purge(self, _run: Run) -> Json:
        await keyed.purge(self._pool, older_than_s=self._retention_s)  # first: it looks whether their work has ended
        return {"purged": await queue.purge(self._pool, older_than_s=self._retention_s)}
