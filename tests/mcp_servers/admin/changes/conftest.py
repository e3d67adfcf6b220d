"""Owns what the tests of changes share: a studio of one database, in which changes are foreseen, approved, made and read back."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from body_broker.calls import Caller, Receipt
from body_broker.lore import Lore, make_draft, standing
from body_broker.storage.postgres import Pool
from body_broker.storage.redis import Redis
from body_broker.tuning import Tuning
from body_broker.work.model import Origin
from body_broker.work.worker import Worker
from body_broker.world import reading
from body_broker.world.map import WorldMap
from body_broker.world.model import Entity, Event
from mcp_servers.admin.changes.kind import Foreseen, Found, Maker, Reach
from mcp_servers.admin.changes.making import Changes
from mcp_servers.admin.changes.store import Requested
from tests.body_broker.world.scene import populate
from tests.waiting import wait_until

RECEIPT = Receipt("writer-1", 7)
ANNA = Caller(chain=("person:anna",), roles={}, session="s_anna")
_keys = itertools.count()


async def tell_nobody(_event: Event) -> None:
    """Nobody listens."""


def new_key() -> str:
    """The id of an approval."""
    return f"apr_{next(_keys):024d}"


def maker(key: str, *, tainted: bool = False) -> Maker:
    """Bronze for anna, under this approval."""
    chain = ("person:anna", "tier:bronze")
    return Maker(
        requester=">".join(chain),
        origin=Origin(chain=chain, session="s_1"),
        key=key,
        receipt=RECEIPT,
        tainted=tainted,
    )


class Studio:
    """What changes change, and whoever asks for them."""

    def __init__(self, reach: Reach, database_url: str) -> None:
        self.reach, self.changes = reach, Changes(reach, lambda _caller, _operation: None)
        self._database_url = database_url

    async def foresee(self, kind: str, target: str, **params: Any) -> Foreseen:
        """What people would be shown."""
        return await self.changes.foresee(Requested(kind, target, params))

    async def make(self, kind: str, target: str, *, key: str, basis: str | None, **params: Any) -> tuple[str, Found]:
        """Make it under a key, from what was foreseen with this basis."""
        return await self.changes.make(Requested(kind, target, params), maker(key), basis)

    async def approved(self, kind: str, target: str, **params: Any) -> Found:
        """Foresee, approve and make it."""
        foreseen = await self.foresee(kind, target, **params)
        _, found = await self.make(kind, target, key=new_key(), basis=foreseen.basis, **params)
        return found

    async def rows(self) -> list[tuple[str, str]]:
        """Kind and state of every change that is kept."""
        rows = await self.reach.pool.fetch("SELECT kind, state FROM admin_change ORDER BY created_at")
        return [(row["kind"], row["state"]) for row in rows]

    async def entity(self, entity_id: str) -> Entity:
        """As it is recorded."""
        return (await reading.entity(self.reach.pool, entity_id))[0]

    @asynccontextmanager
    async def working(self, kind: str = "ingest") -> AsyncGenerator[None]:
        """A worker that imports, for the one kind that needs it."""
        if kind != "ingest":
            yield
            return
        handlers = self.reach.lore.importing.handlers()
        worker = Worker(self.reach.pool, handlers, database_url=self._database_url, lease_s=2.0, poll_s=0.1)
        task = asyncio.create_task(worker.run())
        try:
            yield
        finally:
            worker.stop()
            await task

    async def bring(self, title: str, text: str, *, canon: bool) -> str:
        """A document that is there and found; its id."""
        async with self.working():
            origin = Origin(chain=("operator:ann",), session="operator:ann", receipt=RECEIPT)
            draft = make_draft(title, title, text)
            intake = await self.reach.lore.importing.take([draft], index="shared", canon=canon, origin=origin)
            document_id = intake.documents[0].doc_id

            async def there() -> bool:
                found = await standing.of_origins(self.reach.pool, "shared", [draft.origin], canon=canon)
                return (
                    draft.origin in found
                    and found[draft.origin].document_id == document_id
                    and not await self._imports()
                )

            await wait_until(there, f"{title} is imported")
        return document_id

    async def _imports(self) -> bool:
        return bool(
            await self.reach.pool.fetchval("SELECT true FROM work WHERE state IN ('queued', 'running') LIMIT 1")
        )


@pytest.fixture
async def studio(pool: Pool, redis: Redis, database_url: str) -> Studio:
    await populate(pool)
    world = WorldMap(pool, redis, tell_nobody)
    return Studio(Reach(pool=pool, lore=Lore(pool), tuning=Tuning(pool), world=world), database_url)
