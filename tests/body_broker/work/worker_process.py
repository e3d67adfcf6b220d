"""Owns the worker that tests run, in their own process or as one they can stop and kill: handlers that leave traces and wait.

As a program: `python -m tests.body_broker.work.worker_process DATABASE_URL NAME LEASE_S`.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys

from body_broker.calls import Json
from body_broker.errors import Denied, Unavailable
from body_broker.storage.postgres import LOST, Connection, Pool, open_pool
from body_broker.telemetry import configure_logging
from body_broker.work.run import Handler, Run
from body_broker.work.worker import Worker
from tests.waiting import wait_until

TABLES = """
CREATE TABLE trace (id bigserial PRIMARY KEY, work text, worker text, phase text, at timestamptz DEFAULT clock_timestamp());
CREATE TABLE effect (id bigserial PRIMARY KEY, work text);
CREATE TABLE gate (name text PRIMARY KEY);
"""
SECRET = "s3cret-in-an-exception"


class Handlers:
    """Handlers of one worker. Input: `hit` [place, signal] on the first attempt, `gate` to wait for on later ones.

    Where `hit` has a worker's name instead of a signal, that worker stands still at the place until it is killed.

    Traces and outside effects go through connections of their own, as effects outside our database would.
    """

    def __init__(self, name: str, outside: Pool) -> None:
        self.name = name
        self.outside = outside

    def all(self) -> dict[str, Handler]:
        mine: dict[str, Handler] = {
            handler.__name__: handler
            for handler in (
                *(self.blocks, self.echoes, self.fails, self.refuses, self.is_busy),
                *(self.commits, self.steps, self.onces, self.breaks_inside_once),
            )
        }
        return mine | {f"probe {self.name}": self.echoes}

    async def blocks(self, run: Run) -> Json:
        """Reports progress, then waits for the gate named in its input."""
        try:
            await self.trace(run, "start")
            await run.progress(1, 2, "waiting")
            await self.gate(run.input["gate"])
        except asyncio.CancelledError:
            await self.trace(run, "interrupted")
            raise
        await self.trace(run, "end")
        return {"by": self.name}

    async def echoes(self, run: Run) -> Json:
        await self.trace(run, "start")
        return run.input

    async def fails(self, run: Run) -> Json:
        await self.trace(run, "start")
        raise ValueError(SECRET)

    async def refuses(self, run: Run) -> Json:
        await self.trace(run, "start")
        raise Denied("Not this.", details={"rules": ["a-rule"]}) from ValueError(SECRET)

    async def is_busy(self, run: Run) -> Json:
        await self.trace(run, "start")
        raise Unavailable("Not now.", retry_after_s=run.input["retry_after_s"])

    async def commits(self, run: Run) -> Json:
        async def effect(connection: Connection) -> Json:
            await connection.execute("INSERT INTO effect (work) VALUES ($1)", run.id)
            await self.hit(run, "inside")
            return [self.name]

        await self.begin(run)
        outcome = await run.commit("book", effect)
        await self.hit(run, "after")
        return {"by": self.name, "outcome": outcome}

    async def steps(self, run: Run) -> Json:
        async def effect() -> Json:  # the far side takes the work's id as its key
            await self.outside.execute(
                "INSERT INTO effect (work) SELECT $1 WHERE NOT EXISTS (SELECT FROM effect WHERE work = $1)", run.id
            )
            await self.hit(run, "inside")
            return [self.name]

        await self.begin(run)
        outcome = await run.step("send", effect)
        await self.hit(run, "after")
        return {"by": self.name, "outcome": outcome}

    async def onces(self, run: Run) -> Json:
        async def effect() -> Json:
            await self.outside.execute("INSERT INTO effect (work) VALUES ($1)", run.id)
            await self.trace(run, "effect")
            await self.hit(run, "inside")
            if "gate_inside" in run.input:
                await self.gate(run.input["gate_inside"])
            return [self.name]

        await self.begin(run)
        outcome = await run.once("send", effect)
        await self.hit(run, "after")
        return {"by": self.name, "outcome": outcome}

    async def breaks_inside_once(self, run: Run) -> Json:
        async def effect() -> Json:
            await self.outside.execute("INSERT INTO effect (work) VALUES ($1)", run.id)
            if run.work.attempt == 1:
                raise ValueError(SECRET)

        with contextlib.suppress(Exception):  # what the handler makes of it changes nothing
            await run.once("send", effect)

    async def begin(self, run: Run) -> None:
        await self.trace(run, "start")
        await self.hit(run, "before")
        if run.work.attempt > 1 and "gate" in run.input:
            await self.gate(run.input["gate"])

    async def hit(self, run: Run, place: str) -> None:
        """Stop, kill or hold this process, where the input says so, on the first attempt."""
        where, what = run.input.get("hit") or ("", "")
        if run.work.attempt > 1 or where != place:
            return
        if what in signal.Signals.__members__:
            await self.trace(run, f"hit {place}")
            os.kill(os.getpid(), signal.Signals[what])
        elif what == self.name:
            await self.trace(run, f"hit {place}")
            await asyncio.Event().wait()

    async def gate(self, name: str) -> None:
        async def is_open() -> bool:
            try:
                return await self.outside.fetchval("SELECT true FROM gate WHERE name = $1", name) or False
            except LOST:
                return False

        await wait_until(is_open, f"the test opens gate {name}", timeout_s=60)

    async def trace(self, run: Run, phase: str) -> None:
        await self.outside.execute(
            "INSERT INTO trace (work, worker, phase) VALUES ($1, $2, $3)", run.id, self.name, phase
        )


async def _main(database_url: str, name: str, lease_s: float) -> None:
    configure_logging("error")
    async with open_pool(database_url, connections_max=2) as pool, open_pool(database_url) as outside:
        handlers = Handlers(name, outside).all()
        worker = Worker(
            pool, handlers, database_url=database_url, concurrency=1, lease_s=lease_s, poll_s=0.3, name=name
        )
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, worker.stop)
        loop.add_reader(sys.stdin, os._exit, 1)  # its other end closes with the test process, however that died
        await worker.run()


if __name__ == "__main__":
    asyncio.run(_main(sys.argv[1], sys.argv[2], float(sys.argv[3])))
