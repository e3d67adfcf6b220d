"""Owns what tests of results share: finished jobs, workers that publish them, and one in a process of its own that can be killed.

As a program (`python -m tests.tiers.bronze.publishing DATABASE_URL REDIS_URL FOLDER POINT`) it is a worker that stands still at a point of
publishing, once it has made the file `at POINT` beside FOLDER, until it is killed; stopped and let go on, it goes on.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from body_broker.calls import Json
from body_broker.lore import Lore
from body_broker.storage.objects import Objects
from body_broker.storage.objects.directory import DirectoryObjects
from body_broker.storage.postgres import Connection, Pool, open_pool
from body_broker.storage.redis import Redis, open_redis
from body_broker.telemetry import configure_logging
from body_broker.work import queue
from body_broker.work.model import Origin, State, WorkItem
from body_broker.work.run import Handler, Run
from body_broker.work.worker import Worker
from tests.waiting import wait_until
from tiers.bronze.documents import PERSONA, Documents, Prepared
from tiers.bronze.model import Assignment, Finished, Shaped
from tiers.bronze.results import Kept, Results, is_made
from tiers.model import Fallback, Message, ToolUse, Usage

OWNER = "person:anna"
ORIGIN = Origin(chain=(OWNER, "tier:bronze"), session="s-1")
TEXT = "# The mill\n\nThe zephyrine mill of Orm grinds nothing but salt.\n"
SHAPED = Shaped(body={"story": "The mill grinds salt.", "parts": [1, 2.5, None]}, text=TEXT, searched=True)
POINTS = ("before the object", "after the object", "inside the commit", "after the commit")


def finished(run: Run, **other: Any) -> Finished:  # fields of Finished
    """The answers of a job."""
    plain = Finished(
        job=run.id,
        owner=run.origin.asker,
        assignment=Assignment.parse(run.input),
        answers=("The mill grinds salt.",),
        engines=("bronze",),
        models=("deepseek",),
        tools=(ToolUse("search_lore", "ok", 0.1),),
        fallbacks=(Fallback("sagemaker", "silent"),),
        usage=Usage(100, 20),
        cost_usd=0.25,
        maybe_spent=True,
        outside=False,
    )
    return replace(plain, **other)


class Bench:
    """Results over a test's stores, jobs whose handler publishes them, and workers.

    Attributes:
        shaped: What the next runs make of their answers.
        other: Fields of `Finished` that differ.
    """

    def __init__(self, pool: Pool, redis: Redis, objects: Objects, database_url: str) -> None:
        self.pool, self.objects, self.database_url = pool, objects, database_url
        self.announced: list[str] = []
        self.lore = Lore(pool, announce=self._announce)
        self.results = Results(pool, redis, objects, Documents(self.lore))
        self.shaped: Shaped = SHAPED
        self.other: dict[str, Any] = {}
        self.made = 0

    async def _announce(self, uri: str) -> None:
        self.announced.append(uri)

    async def perform(self, run: Run) -> Json:
        """The handler."""
        if is_made(run):
            return await self.results.publish(run, finished(run, **self.other), None)
        self.made += 1
        return await self.results.publish(run, finished(run, **self.other), self.shaped)

    async def submit(self, title: str = "The mill of Orm", owner: str = OWNER) -> str:
        """A job."""
        assignment = Assignment(kind="narrative", title=title, messages=(Message(role="user", content="Tell."),))
        origin = replace(ORIGIN, chain=(owner, "tier:bronze"))
        return await queue.enqueue(self.pool, "narrative", assignment.body(), origin=origin)

    @asynccontextmanager
    async def working(self, **options: Any) -> AsyncGenerator[Worker]:  # Worker's own
        """A worker in this process."""
        handlers: Mapping[str, Handler] = {
            "narrative": self.perform,
            **self.results.handlers(),
            **self.lore.importing.handlers(),
        }
        chosen: dict[str, Any] = {"lease_s": 30.0, "poll_s": 0.2, **options}
        worker = Worker(self.pool, handlers, database_url=self.database_url, **chosen)
        task = asyncio.create_task(worker.run())
        try:
            yield worker
        finally:
            worker.stop()
            await task

    async def ends(self, job: str, *states: State) -> WorkItem:
        """The job, once it is in one of these states."""

        async def there() -> WorkItem | None:
            item = await queue.get(self.pool, job, owner=None)
            return item if item.state in states else None

        found = await wait_until(there, f"{job} is {states}")
        assert found is not None
        return found

    async def publish(self, title: str = "The mill of Orm", owner: str = OWNER) -> str:
        """A job whose result is published, and found where it is searched."""
        job = await self.submit(title, owner)
        async with self.working():
            item = await self.ends(job, "succeeded", "failed")
            assert item.state == "succeeded", item.error
            await self.imported()
        return job

    async def imported(self) -> None:
        """Return once no import is on its way."""

        async def none() -> bool:
            return not await self.pool.fetchval(
                "SELECT true FROM work WHERE kind = 'lore_import' AND state IN ('queued', 'running')"
            )

        await wait_until(none, "what was published has been imported")

    async def found(self, query: str, persona: str | None = PERSONA) -> list[str]:
        """Ids of the documents that a search finds."""
        page = await self.lore.search(await self.lore.index_for(persona), query, limit=10, per_document=True)
        return [passage.doc_id for passage in page.passages]

    async def kept(self, job: str) -> Kept:
        """The result, which must be there."""
        found = await self.results.read(job, OWNER)
        assert found is not None
        return found


class StillObjects(DirectoryObjects):
    """A directory that stands still around a put."""

    def __init__(self, root: Path, pause: Callable[[str], Awaitable[None]]) -> None:
        super().__init__(root, setting="BODY_BROKER_RESULTS")
        self._pause = pause

    async def put(self, key: str, body: bytes, *, content_type: str = "application/json") -> None:
        await self._pause("before the object")
        await super().put(key, body, content_type=content_type)
        await self._pause("after the object")


class StillDocuments(Documents):
    """Documents that stand still inside the transaction."""

    def __init__(self, lore: Lore, pause: Callable[[str], Awaitable[None]]) -> None:
        super().__init__(lore)
        self._pause = pause

    async def write(self, connection: Connection, prepared: Prepared, origin: Origin) -> str:
        written = await super().write(connection, prepared, origin)
        await self._pause("inside the commit")
        return written


async def main(database_url: str, redis_url: str, folder: Path, point: str) -> None:
    """The worker of the process."""

    async def pause(place: str) -> None:
        if place == point:
            await asyncio.to_thread((folder.parent / f"at {point}").touch)
            go_on = folder.parent / "go on"
            await wait_until(lambda: asyncio.to_thread(go_on.exists), "it may go on", timeout_s=600)

    async with open_pool(database_url) as pool, open_redis(redis_url) as redis:
        objects = StillObjects(folder, pause)
        await objects.open()
        results = Results(pool, redis, objects, StillDocuments(Lore(pool), pause))

        async def perform(run: Run) -> Json:
            other = replace(SHAPED, body={"story": "Made by the process that is killed."})
            found = await results.publish(run, finished(run), other)
            await pause("after the commit")
            return found

        worker = Worker(pool, {"narrative": perform}, database_url=database_url, lease_s=1.0, poll_s=0.1)
        await worker.run()


if __name__ == "__main__":
    configure_logging("warning")
    asyncio.run(main(sys.argv[1], sys.argv[2], Path(sys.argv[3]), sys.argv[4]))
