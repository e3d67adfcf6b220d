"""The rows that the suite's tasks scenarios call, and the durable work behind them: slow enough to be tasks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from body_broker.calls import Arguments, Call, Json, Result, Room, Tool
from body_broker.errors import Conflict
from body_broker.storage.postgres import Pool
from body_broker.work import queue
from body_broker.work.model import Origin
from body_broker.work.run import Run
from body_broker.work.worker import Worker
from mcp_servers.hub.runtime import Runtime
from tests.conformance.asking import NAME, Nothing, Said, fields_of

SLOW, FAILING = "conformance_slow", "conformance_failing"


@dataclass
class Desk:
    """What the rows need: the database, once it is open."""

    pool: Pool | None = None

    async def begin(self, kind: str, given: Json, call: Call) -> str:
        assert self.pool is not None, "the hub is open"
        return await queue.enqueue(self.pool, kind, given, origin=Origin.of(call), attempts_max=1)


class Named(Arguments):
    name: Annotated[str, Field(max_length=100)]


class Pace(Arguments):
    seconds: Annotated[float, Field(ge=0, le=60)] = 0
    label: Annotated[str, Field(max_length=100)] = ""


class Computed(Result):
    said: str
    job: str | None = None

    def text(self) -> str:
        return self.said

    def handle(self) -> str | None:
        return self.job


async def greet(arguments: Named, _call: Call, _services: Desk) -> Said:
    return Said(said=f"Hello, {arguments.name}!")


async def slow_compute(arguments: Pace, call: Call, services: Desk) -> Computed:
    if arguments.seconds == 0:
        return Computed(said="Computed.")
    return Computed(said="Computing.", job=await services.begin(SLOW, {"seconds": arguments.seconds}, call))


async def asks_first(_arguments: Nothing, call: Call, services: Desk) -> Computed:
    name = fields_of(call, "user_name", NAME)["name"]
    return Computed(said="Greeting.", job=await services.begin(SLOW, {"seconds": 0.1, "said": f"Hello, {name}!"}, call))


async def failing_job(_arguments: Nothing, call: Call, services: Desk) -> Computed:
    return Computed(said="Failing.", job=await services.begin(FAILING, None, call))


async def _compute(run: Run) -> Json:
    await asyncio.sleep(run.input["seconds"])  # as slow as the suite asks for
    return {"said": run.input.get("said", "Computed.")}


async def _fail(_run: Run) -> Json:
    raise Conflict("This job intentionally fails.")


@asynccontextmanager
async def computing(runtime: Runtime) -> AsyncGenerator[None]:
    """A worker that computes, until the way out."""
    worker = Worker(
        runtime.stores.pool,
        {SLOW: _compute, FAILING: _fail},
        database_url=runtime.stores.database_url,
        concurrency=32,
        grace_s=0.1,
    )
    running = asyncio.create_task(worker.run())
    try:
        yield
    finally:
        worker.stop()
        await running


ROOM = Room(
    name="conformance_tasks",
    title="Tasks",
    description="What takes long.",
    tools=(
        Tool(name="greet", group="admin_read", run=greet, title="Greet", description="Says hello."),
        Tool(
            name="slow_compute",
            group="admin_read",
            run=slow_compute,
            title="Compute slowly",
            description="Sleeps.",
            effect="once",
            work=SLOW,
        ),
        Tool(
            name="test_tool_with_task",
            group="admin_read",
            run=asks_first,
            title="Ask, then greet slowly",
            description="Asks for a name.",
            effect="once",
            asks=True,
            work=SLOW,
        ),
        Tool(
            name="failing_job",
            group="admin_read",
            run=failing_job,
            title="Fail slowly",
            description="Fails.",
            effect="once",
            work=FAILING,
        ),
    ),
)
