"""Owns an office of experts for tests: jobs, workers that can die at any place, engines on a FaultWall, and a real hub behind their tools.

A worker here has connections of its own: `kill` closes them all at one moment, so that nothing it does afterwards is written, as if its process
were gone. What it had claimed lapses then, and another worker takes it over.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import Any

import pytest

from body_broker.calls import Json
from body_broker.settings import Settings
from body_broker.storage.objects.directory import DirectoryObjects
from body_broker.storage.postgres import Pool, open_pool
from body_broker.work import queue
from body_broker.work.model import Origin, State, WorkItem
from body_broker.work.run import Run
from body_broker.work.worker import Worker
from mcp_servers.hub.rooms import ROOMS
from mcp_servers.hub.runtime import Runtime, open_runtime
from tests.counterparts.faultwall.wall import KEY, MODEL, DialectName, FaultWall, fault_wall
from tests.mcp_servers.hub.conversing import TALKS, Plan, asker_of, inner_tools
from tests.mcp_servers.hub.deeds import APPROVERS
from tests.mcp_servers.hub.fixture_room import ROOM, Seen
from tests.tiers.routing import SHIPPED
from tests.waiting import wait_until
from tiers.bronze.asking import EndpointBackend, Experts
from tiers.bronze.calls import CallRow, CallStore
from tiers.bronze.local import LocalWorkerBackend
from tiers.bronze.model import Assignment, Finished, Shaped
from tiers.bronze.results import Results
from tiers.bronze.runner import Runner
from tiers.catalogue import Caps, Catalogue, EngineSpec, Price
from tiers.cost import CostLedger
from tiers.counts import Counts
from tiers.engine import Engine
from tiers.hubtools import HubTools
from tiers.model import Asker, Message, Tier

ANNA = "person:anna"
PRICE = Price(Decimal(1000), Decimal(2000), Decimal(1000), "a test", "2026-11")
"""A thousandth of a dollar for a token of the prompt, two for one of the answer."""
LONG_S = 600.0
DIALECTS: Mapping[str, DialectName] = {"bronze": "vllm", "bronze-backup": "trtllm", "openai-large": "openai"}


def specs(wall: FaultWall, *names: str, **changes: Any) -> dict[str, EngineSpec]:
    """Engines of models.toml as it is shipped, of which these have an address on the wall."""
    found: dict[str, EngineSpec] = {}
    for name, spec in SHIPPED.engines.items():
        if name in names:
            dialect = DIALECTS[name]
            fields: dict[str, Any] = {
                "url": wall.url[dialect],
                "key": KEY,
                "model": MODEL,
                "dialect": dialect,
                **changes,
            }
            if spec.price is not None:
                fields["price"] = PRICE
            found[name] = replace(
                spec, ttft_s=LONG_S, stall_s=LONG_S, context_known=True, failure_threshold=50, **fields
            )
        else:
            found[name] = spec
    return found


@dataclass
class Process:
    """A worker with everything that is its own."""

    pool: Pool
    worker: Worker
    task: asyncio.Task[None]
    engines: Mapping[str, Engine]

    def kill(self) -> None:
        """Everything that it still does is not written any more."""
        self.pool.terminate()
        self.task.cancel()


@dataclass
class Office:
    """Jobs and who does them.

    Attributes:
        shape: What is made of answers.
        stands: For whom jobs work; replaced where a test ends a login.
        refused: Whether the asker's login was ended.
    """

    pool: Pool
    database_url: str
    wall: FaultWall
    catalogue: Catalogue
    tools: HubTools
    runtime: Runtime
    seen: Seen
    asker: Asker
    folder: Any
    redis: Any
    endpoint: EndpointBackend | None = None
    stood: list[str] = field(default_factory=list[str])
    stands: Callable[[Run], Awaitable[Asker]] | None = None
    shape: Callable[[Finished], Awaitable[Shaped]] | None = None
    finished: list[Finished] = field(default_factory=list[Finished])

    async def submit(self, prompt: str = "Who built the mill?", *, attempts_max: int = 5, **more: Any) -> str:
        """A job of anna's."""
        plain: dict[str, Any] = {"tools": (), "max_tokens": 64, "messages": (Message(role="user", content=prompt),)}
        assignment = Assignment(kind="expert", title="The mill", **plain | more)
        origin = Origin(chain=(ANNA,), session="s-1")
        return await queue.enqueue(
            self.pool,
            assignment.kind,
            assignment.body(),
            origin=origin,
            attempts_max=attempts_max,
            expires_in_s=assignment.budget.seconds,
            limit_key="experts",
            limit_max=4,
        )

    @asynccontextmanager
    async def process(self, name: str = "A", *, connections: int = 4, **options: Any) -> AsyncGenerator[Process]:
        """A worker until the way out, unless it was killed before."""
        async with AsyncExitStack() as stack:
            pool = await stack.enter_async_context(open_pool(self.database_url, connections_max=connections, name=name))
            caps, counts = self.catalogue.caps, Counts()
            ledger = await stack.enter_async_context(CostLedger.opened(pool, caps, counts))
            engines = {
                n: Engine(s, counts) for n, s in self.catalogue.engines.items() if s.url and s.dialect != "sagemaker"
            }
            for engine in engines.values():
                stack.push_async_callback(engine.close)
            runner = self._runner(pool, ledger, engines)
            chosen: dict[str, Any] = {"lease_s": 30.0, "poll_s": 0.2, "backoff_s": 0.05, "grace_s": 0.0, **options}
            worker = Worker(pool, {"expert": runner}, database_url=self.database_url, name=name, **chosen)
            task = asyncio.create_task(worker.run())
            try:
                yield Process(pool, worker, task, engines)
            finally:
                worker.stop()
                with contextlib.suppress(asyncio.CancelledError):
                    await task

    def _runner(self, pool: Pool, ledger: CostLedger, engines: Mapping[str, Engine]) -> Runner:
        calls = CallStore(pool)
        experts = Experts(
            self.catalogue,
            engines,
            calls=calls,
            local=LocalWorkerBackend(calls, ledger),
            endpoint=self.endpoint,
            money=ledger.words,
        )
        return Runner(
            experts=experts,
            results=Results(pool, self.redis, DirectoryObjects(self.folder, setting="BODY_BROKER_RESULTS")),
            tools=lambda: self.tools,
            stands=self._stand,
            shapes={"expert": self._shape},
        )

    async def _stand(self, run: Run) -> Asker:
        self.stood.append(run.id)
        return self.asker if self.stands is None else await self.stands(run)

    async def _shape(self, finished: Finished) -> Shaped:
        self.finished.append(finished)
        if self.shape is not None:
            return await self.shape(finished)
        return Shaped(body={"answers": list(finished.answers)}, text="\n\n".join(finished.answers))

    async def lapse(self, job: str) -> None:
        """What a dead worker held is nobody's any more."""
        await self.pool.execute(
            "UPDATE work SET lease_until = clock_timestamp() - interval '1 second' WHERE id = $1", job
        )

    async def now(self, job: str) -> None:
        """What waits for a later time is tried now."""
        await self.pool.execute("UPDATE work SET run_at = clock_timestamp() WHERE id = $1 AND state = 'queued'", job)

    async def item(self, job: str) -> WorkItem:
        return await queue.get(self.pool, job, owner=None)

    async def ends(self, job: str, *states: State) -> WorkItem:
        """The job once it is in one of these states."""

        async def there() -> WorkItem | None:
            item = await self.item(job)
            return item if item.state in (states or ("succeeded",)) else None

        found = await wait_until(there, f"{job} is {' or '.join(states) or 'succeeded'}", timeout_s=30)
        assert found is not None
        return found

    async def done(self, job: str) -> Json:
        """Its result, done by a new worker."""
        async with self.process("B"):
            return (await self.ends(job)).result

    async def rows(self, job: str, turn: int = 1) -> list[CallRow]:
        return await CallStore(self.pool).rows_of(job, turn)

    async def steps(self, job: str) -> set[str]:
        """The names of what is recorded."""
        return {row["name"] for row in await self.pool.fetch("SELECT name FROM work_step WHERE work = $1", job)}

    def sent(self, place: int = -1, dialect: DialectName = "vllm") -> list[dict[str, Any]]:
        """The messages that an engine was sent."""
        return self.wall.asked(dialect)[place].body["messages"]

    def sets(self, *names: str, **changes: Any) -> None:
        """These engines have an address from now on."""
        self.catalogue = replace(self.catalogue, engines=specs(self.wall, *names, **changes))


@pytest.fixture
async def office(
    settings_for: Callable[..., Settings], database_url: str, pool: Pool, redis: Any, tmp_path: Any
) -> AsyncGenerator[Office]:
    seen, plan = Seen(), Plan()
    approvers = tmp_path / "approvers.toml"
    approvers.write_text(APPROVERS, encoding="utf-8")
    settings = settings_for(rate_per_s=10_000, approval_wait_s=0.01, approvers=approvers)
    async with AsyncExitStack() as stack:
        opening = open_runtime(settings, (*ROOMS, ROOM, TALKS), extra_services={"fixture": seen, "talks": plan})
        runtime = await stack.enter_async_context(opening)
        tools = await stack.enter_async_context(inner_tools(runtime))
        wall = await stack.enter_async_context(fault_wall())
        caps = Caps({tier: Decimal(1000) for tier in Tier}, {tier: Decimal(1000) for tier in Tier}, {})
        yield Office(
            pool=pool,
            database_url=database_url,
            wall=wall,
            catalogue=replace(SHIPPED, engines=specs(wall, "bronze"), caps=caps),
            tools=tools,
            runtime=runtime,
            seen=seen,
            asker=await asker_of(runtime, ANNA, "engineer"),
            folder=tmp_path / "results",
            redis=redis,
        )
