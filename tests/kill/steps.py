"""Owns the named steps of imports and calls: how the product is brought to each, and by what it is seen to stand there."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from tests.kill.harness import PATIENCE_S, Step, Victim
from tests.kill.holding import holding
from tests.kill.product import Answer, Product
from tests.kill.promises import READER, WRITER, Promises
from tests.kill.traffic import Traffic
from tests.waiting import wait_until

_READS = 10
_WORKERS = ("hub", "worker")
_PASSAGES = "LOCK TABLE lore_chunk IN SHARE MODE"
_EFFECTS = "LOCK TABLE lore_effect IN SHARE MODE"
_POSTINGS = "LOCK TABLE lore_posting IN ACCESS EXCLUSIVE MODE"
_RECORDS = "LOCK TABLE audit_record IN SHARE MODE"
_JOBS = "LOCK TABLE work IN SHARE MODE"
_WORK = "SELECT FROM work WHERE id = $1 FOR UPDATE"
_IMPORT = """
SELECT (SELECT count(*) FROM lore_chunk c JOIN lore_edition e USING (rev) WHERE e.job_id = ANY ($1)) AS passages,
       (SELECT count(*) FROM lore_document d JOIN lore_edition e USING (rev) WHERE e.job_id = ANY ($1)) AS documents,
       (SELECT count(*) FROM work WHERE id = ANY ($1) AND state = 'running') AS running
"""


class Steps:
    """The steps over one product.

    Args:
        product: What is killed.
        traffic: Its clients.
        promises: The ledger.
        chance: How much traffic there is before a kill in it.
    """

    def __init__(self, product: Product, traffic: Traffic, promises: Promises, chance: random.Random) -> None:
        self._product, self._traffic, self._promises, self._chance = product, traffic, promises, chance

    def all(self) -> list[Step]:
        """Every step, those of imports with one import in the hub and one in the worker."""
        return [
            Step("idle", self._idle),
            Step("calls: in full traffic", self._in_traffic),
            Step("calls: reads answered, their records not yet committed", self._before_recorded),
            Step("call: a read in flight", self._read_in_flight),
            Step("call: before its decision is durable", self._before_durable),
            Step("call: between decision and effect", self._before_effect),
            Step("import: before the first passage is committed", self._before_passages),
            Step("import: before the commit that lets readers see it", self._before_seen),
            Step("import: between documents", self._between_documents),
            Step("import: seen by readers, its end not written", self._before_end),
            Step("import: by the command line, one of two documents seen", self._by_command),
        ]

    @asynccontextmanager
    async def _idle(self, _victim: Victim) -> AsyncGenerator[str]:
        async with self._traffic.still():
            yield "no call open, no import running"

    @asynccontextmanager
    async def _in_traffic(self, _victim: Victim) -> AsyncGenerator[str]:
        before, wanted = self._traffic.answered, self._chance.randint(10, 60)
        await wait_until(lambda: self._traffic.answered >= before + wanted, "calls are answered", timeout_s=PATIENCE_S)
        yield f"{self._traffic.answered - before} calls answered meanwhile"

    @asynccontextmanager
    async def _before_recorded(self, _victim: Victim) -> AsyncGenerator[str]:
        async with self._traffic.still():
            await self._record_all()
            async with holding(self._product.database_url, _RECORDS), self._promises.audit_is_held():
                for _ in range(_READS):
                    answer = await self._traffic.read()
                    assert answer is not None
                    assert answer.code in {None, "denied"}, answer
                yield f"{_READS} reads answered, the audit has none of them"

    @asynccontextmanager
    async def _read_in_flight(self, victim: Victim) -> AsyncGenerator[str]:
        mark = self._promises.mark()
        async with self._traffic.still(), AsyncExitStack() as stack:
            held = await stack.enter_async_context(holding(self._product.database_url, _POSTINGS))
            call = self._calling(stack, victim, READER, "search_lore", {"query": mark})
            await held.has_stopped("hub")
            assert not call.done()
            yield "a search waits for the index"
            held.let_go()

    @asynccontextmanager
    async def _before_durable(self, victim: Victim) -> AsyncGenerator[str]:
        job = await self._promises.something_to_cancel()
        async with self._traffic.still(), AsyncExitStack() as stack:
            await self._record_all()  # so that what waits for the table is this call's decision
            held = await stack.enter_async_context(holding(self._product.database_url, _RECORDS))
            call = self._calling(stack, victim, WRITER, "cancel_job", {"id": job})
            await held.has_stopped("hub")
            assert not call.done()
            assert await self._state(job) == "waiting", "an effect began before its decision was durable"
            assert not await self._promises.recorded(job)
            yield "the decision waits for the audit, no effect yet"
            held.let_go()

    @asynccontextmanager
    async def _before_effect(self, victim: Victim) -> AsyncGenerator[str]:
        job = await self._promises.something_to_cancel()
        async with self._traffic.still(), AsyncExitStack() as stack:
            held = await stack.enter_async_context(holding(self._product.database_url, _WORK, job))
            call = self._calling(stack, victim, WRITER, "cancel_job", {"id": job})
            await held.has_stopped("hub")
            assert not call.done()
            assert await self._promises.recorded(job), "an effect began whose decision is not on the audit"
            yield "the decision is on the audit, the effect waits"
            held.let_go()

    @asynccontextmanager
    async def _before_passages(self, _victim: Victim) -> AsyncGenerator[str]:
        async with holding(self._product.database_url, _PASSAGES) as held:
            jobs = [await self._promises.bring() for _ in _WORKERS]
            await held.has_stopped(*_WORKERS)
            yield await self._imports(jobs, documents=0, passages=False)

    @asynccontextmanager
    async def _before_seen(self, _victim: Victim) -> AsyncGenerator[str]:
        async with holding(self._product.database_url, _EFFECTS) as held:
            jobs = [await self._promises.bring() for _ in _WORKERS]
            await held.has_stopped(*_WORKERS)
            yield await self._imports(jobs, documents=0, passages=False)

    @asynccontextmanager
    async def _between_documents(self, _victim: Victim) -> AsyncGenerator[str]:
        async with self._after_first_commit(large=True) as jobs:
            yield await self._imports(jobs, documents=2, passages=True)

    @asynccontextmanager
    async def _before_end(self, _victim: Victim) -> AsyncGenerator[str]:
        async with self._after_first_commit(large=False) as jobs:
            yield await self._imports(jobs, documents=4, passages=True)

    @asynccontextmanager
    async def _by_command(self, _victim: Victim) -> AsyncGenerator[str]:
        async with self._traffic.still(), AsyncExitStack() as stack:
            batch = await stack.enter_async_context(holding(self._product.database_url, _EFFECTS))
            await self._promises.bring_by_command()
            runs_it = await batch.has_stopped_one()
            told = await stack.enter_async_context(holding(self._product.database_url, _JOBS))
            batch.let_go()
            await told.has_stopped(runs_it)
            yield f"a batch of it is committed by the {runs_it}"

    @asynccontextmanager
    async def _after_first_commit(self, *, large: bool) -> AsyncGenerator[list[str]]:
        """Two imports whose first batch is committed, and whose next word about it has to wait.

        The clients are still: cancelling would wait too.
        """
        url = self._product.database_url
        async with self._traffic.still(), AsyncExitStack() as stack:
            batch = await stack.enter_async_context(holding(url, _EFFECTS))
            jobs = [await self._promises.bring(large=large) for _ in _WORKERS]
            await batch.has_stopped(*_WORKERS)
            # A batch's transaction locks rows of this table and changes none, so it is not in the way of this lock.
            told = await stack.enter_async_context(holding(url, _JOBS))
            batch.let_go()
            await told.has_stopped(*_WORKERS)
            yield jobs

    async def _record_all(self) -> None:
        """Return once a read of now stands on the audit, and so everything before it, outcomes of effects too."""
        answer = await self._traffic.read()
        assert answer is not None
        await self._promises.all_recorded()

    async def _imports(self, jobs: list[str], *, documents: int, passages: bool) -> str:
        """What the tables say of two imports under way; fails where that is not the step."""
        found = (await self._product.sql(_IMPORT, jobs))[0]
        assert found["running"] == len(jobs), "an import did not stand still"
        assert found["documents"] == documents, found
        assert (found["passages"] > 0) is passages, found
        return f"{found['passages']} passages committed, {found['documents']} of 4 documents seen"

    async def _state(self, job: str) -> str:
        return (await self._product.sql("SELECT state FROM work WHERE id = $1", job))[0]["state"]

    def _calling(
        self, stack: AsyncExitStack, victim: Victim, principal: str, tool: str, arguments: dict[str, Any]
    ) -> asyncio.Task[Answer | None]:
        """A call that is open from now on; what it was told in the end must fit what died."""
        call = asyncio.create_task(self._product.call(principal, tool, arguments))

        async def told() -> None:
            answer = await call
            print(f"  {tool} was told {'nothing' if answer is None else answer.code or 'its result'}")
            if victim.name == "hub":
                assert answer is None
                return
            assert answer is not None
            if victim.name == "worker":
                assert answer.code is None, answer
            assert answer.code in {None, "unavailable"}, answer
            if tool == "cancel_job":
                self._promises.note_cancel(arguments["id"], answer)

        stack.push_async_callback(told)
        return call
