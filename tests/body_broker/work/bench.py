"""Owns what tests of durable work do and see: work, its rows and traces, workers here, and workers that can be killed."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import subprocess
import sys
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from body_broker.calls import Json
from body_broker.storage.postgres import Pool, open_pool
from body_broker.work import queue
from body_broker.work.model import Origin, State, WorkItem
from body_broker.work.run import Handler
from body_broker.work.worker import Worker
from tests.body_broker.work.worker_process import Handlers
from tests.components import PROJECT
from tests.waiting import wait_until

LEASE_S = 1.0
"""The lease of workers in processes that are killed or paused; the others hold theirs for long, however slow the machine."""
ASLEEP_S = 600.0
"""A poll so rare that only a notice or a due moment wakes the worker."""
WORKERS = "body-broker worker's pools"
ANNA = Origin(chain=("person:anna", "tier:silver"), session="s-1")


class Bench:
    """What a test does and sees: work of anna's, its rows, traces and effects; workers here and in other processes."""

    def __init__(self, pool: Pool, database_url: str) -> None:
        self.pool = pool
        self.database_url = database_url
        self.tasks: dict[str, asyncio.Task[None]] = {}
        self._processes: list[subprocess.Popen[bytes]] = []

    async def add(self, kind: str, given: Json = None, **options: Any) -> str:  # enqueue's options
        return await queue.enqueue(self.pool, kind, given if given is not None else {}, origin=ANNA, **options)

    async def item(self, work_id: str) -> WorkItem:
        return await queue.get(self.pool, work_id, owner=None)

    async def reaches(self, work_id: str, *states: State) -> WorkItem:
        async def there() -> WorkItem | None:
            item = await self.item(work_id)
            return item if item.state in states else None

        found = await wait_until(there, f"{work_id} is {' or '.join(states)}", timeout_s=30)
        assert found is not None
        return found

    async def phases(self, work_id: str) -> list[tuple[str, str]]:
        rows = await self.pool.fetch("SELECT worker, phase FROM trace WHERE work = $1 ORDER BY id", work_id)
        return [(row["worker"], row["phase"]) for row in rows]

    async def saw(self, work_id: str, worker: str, phase: str) -> None:
        async def seen() -> bool:
            return (worker, phase) in await self.phases(work_id)

        await wait_until(seen, f"{worker} traces {phase} of {work_id}", timeout_s=30)

    async def waits(self, work_id: str) -> None:
        """Wait until its handler has published its progress, and so stands at its gate."""

        async def has_progress() -> bool:
            return (await self.item(work_id)).progress is not None

        await wait_until(has_progress, f"{work_id} publishes progress", timeout_s=30)

    async def effects(self, work_id: str) -> int:
        count: int = await self.pool.fetchval("SELECT count(*) FROM effect WHERE work = $1", work_id)
        return count

    async def open_gate(self, name: str) -> None:
        await self.pool.execute("INSERT INTO gate VALUES ($1)", name)

    async def row(self, work_id: str) -> dict[str, Any]:  # a row of the table
        """Everything that a run may write, without the lease that its owner renews."""
        found = await self.pool.fetchrow(
            """SELECT state, token, attempts, worker, open_effect, progress, result, error, run_at, finished_at,
                (SELECT array_agg(name ORDER BY name) FROM work_step WHERE work = id) AS steps FROM work WHERE id = $1""",
            work_id,
        )
        assert found is not None
        return dict(found)

    async def is_past(self, worker: str) -> None:
        """Wait until a worker that runs one thing at a time is done with what it had, by giving it something else."""
        await self.reaches(await self.add(f"probe {worker}"), "succeeded")

    @asynccontextmanager
    async def worker_at_rest(
        self,
        name: str = "B",
        handlers: Mapping[str, Handler] | None = None,
        **options: Any,  # Worker's own
    ) -> AsyncGenerator[Worker]:
        """A worker that does nothing by itself."""
        async with (
            open_pool(self.database_url, connections_max=2, name=WORKERS) as pool,
            open_pool(self.database_url, name=WORKERS) as outside,
        ):
            known = Handlers(name, outside).all() | dict(handlers or {})
            chosen: dict[str, Any] = {"lease_s": 30.0, "poll_s": 0.3, "grace_s": 0.0, **options}
            yield Worker(pool, known, database_url=self.database_url, name=name, **chosen)

    @asynccontextmanager
    async def worker(self, name: str = "B", **options: Any) -> AsyncGenerator[Worker]:  # those of worker_at_rest
        async with self.worker_at_rest(name, **options) as worker:
            self.tasks[name] = task = asyncio.create_task(worker.run())
            try:
                yield worker
            finally:
                worker.stop()
                with contextlib.suppress(asyncio.CancelledError):
                    await task

    async def falls_asleep(self, worker: Worker, running: int = 0) -> None:
        """Wait until only a notice or a due moment makes the worker look again."""
        # Nothing public tells a worker that looks from one that waits.
        runs, awake, looking = worker._runs, worker._awake, worker._link._lock  # pyright: ignore[reportPrivateUsage]  # see above
        await wait_until(
            lambda: len(runs) == running and not awake.is_set() and not looking.locked(), f"{worker.name} sleeps"
        )

    def process(self, name: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "tests.body_broker.work.worker_process"]
        process = subprocess.Popen(
            [*command, self.database_url, name, str(LEASE_S)], cwd=PROJECT, stdin=subprocess.PIPE
        )
        self._processes.append(process)
        return process

    def end(self) -> None:
        for process in self._processes:
            process.send_signal(signal.SIGCONT)
            process.kill()
            process.communicate()
