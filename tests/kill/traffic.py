"""Owns the clients that go on calling while things are killed: reads, refusals and effects, one after the other, for ever."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager

from tests.kill.product import Answer, Product
from tests.kill.promises import READER, WRITER, Promises
from tests.waiting import end_all

_EVERY_REFUSAL = 5


class Traffic:
    """Two clients: one reads (every fifth call is refused), one has effects.

    Attributes:
        answered: Calls that got an answer of any kind.
    """

    def __init__(self, product: Product, promises: Promises) -> None:
        self.answered = 0
        self._product, self._promises = product, promises
        self._turns = [asyncio.Lock(), asyncio.Lock()]
        self._reads = 0

    @asynccontextmanager
    async def flowing(self) -> AsyncGenerator[None]:
        """The clients call until the way out; a fault of theirs is raised there."""
        clients = [
            asyncio.create_task(self._client(turn, call))
            for turn, call in zip(self._turns, (self.read, self._cancel), strict=True)
        ]
        try:
            yield
        finally:
            faults = await end_all(clients)
        for fault in faults:
            raise fault

    @asynccontextmanager
    async def still(self) -> AsyncGenerator[None]:
        """No client has a call open."""
        async with contextlib.AsyncExitStack() as stack:
            for turn in self._turns:
                await stack.enter_async_context(turn)
            yield

    async def _client(self, turn: asyncio.Lock, call: Callable[[], Awaitable[Answer | None]]) -> None:
        while True:
            async with turn:
                answer = await call()
                if answer is not None:
                    self.answered += 1
            if answer is None or answer.code not in {None, "denied"}:
                await self._product.serves()
            await asyncio.sleep(0)  # so that whoever wants it still has a turn

    async def read(self) -> Answer | None:
        """One read of the reader's, every fifth of which is refused; noted if it is answered."""
        mark, hub = self._promises.mark(), self._product.pid("hub")
        self._reads += 1
        if self._reads % _EVERY_REFUSAL:
            answer = await self._product.call(READER, "search_lore", {"query": mark})
        else:
            given = {"documents": [{"title": mark, "text": "The ferry never sank."}]}
            answer = await self._product.call(READER, "ingest_documents", given)
        if answer is not None:
            self._promises.note_read(mark, hub, time.monotonic(), answer)
        return answer

    async def _cancel(self) -> Answer | None:
        job = await self._promises.something_to_cancel()
        answer = await self._product.call(WRITER, "cancel_job", {"id": job})
        if answer is not None:
            self._promises.note_cancel(job, answer)
        return answer
