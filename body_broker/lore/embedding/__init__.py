"""Embedding: what makes vectors of passages and queries, and keeps those of the passages as the lore is."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager

from body_broker.calls import Progress
from body_broker.errors import NotConfigured
from body_broker.lore.embedding import building, standing
from body_broker.lore.embedding.building import VECTORS, Building
from body_broker.lore.embedding.local import find_weights
from body_broker.lore.embedding.making import Makers
from body_broker.lore.embedding.models import Serving, models, want
from body_broker.lore.embedding.queries import Queries
from body_broker.lore.embedding.standing import Standing
from body_broker.lore.index import Follower, QueryVector
from body_broker.settings import Settings
from body_broker.storage.postgres import Connection, Pool
from body_broker.work.run import Handler

__all__ = ["Embedding", "open_embedding"]


class Embedding:
    """The vectors of one process: queries' and passages'. A `Follower` of the lore; made by `open_embedding`."""

    def __init__(self, pool: Pool, makers: Makers, followers: Sequence[Follower]) -> None:
        self._pool, self._makers = pool, makers
        self._queries = Queries(makers, Serving(pool))
        self._building = Building(pool, makers, followers)

    async def embed(self, text: str) -> QueryVector | None:
        """The vector of a query by the model that serves; None where none is configured, installed, or to be asked from here.

        Raises:
            ModelAway: The model cannot be asked now, or gives what cannot be used.
        """
        return await self._queries.embed(text)

    async def changed(self, connection: Connection, index_id: int, current: Sequence[int], gone: Sequence[int]) -> None:
        """See that revs which readers see from now on get their vectors; what is gone took its own with it."""
        _ = index_id, gone
        if current and await models(connection):
            await building.enqueue(connection)

    async def serving(self, connection: Connection, model_id: int) -> None:
        """Nothing: it is this one that tells."""

    def handlers(self) -> Mapping[str, Handler]:
        """The job, where this process can make vectors."""
        return {} if self._makers.wanted is None else {VECTORS: self._building.perform}

    @property
    def lacks(self) -> str | None:
        """Why this process makes no vectors; None where it does."""
        if self._makers.off:
            return "BODY_BROKER_EMBEDDINGS is off"
        return None if self._makers.wanted else "the weights of all-MiniLM-L6-v2 are not installed (group embeddings)"

    async def standing(self) -> Standing:
        """How far the vectors are."""
        return await standing.standing(self._pool)

    async def all_made(self, progress: Progress | None = None) -> None:
        """Return once every passage has its vectors; some worker must be running.

        Raises:
            NotConfigured: This process makes none.
            ModelAway: The job fails.
        """
        if self.lacks is not None:
            raise NotConfigured(
                f"There are no vectors to wait for: {self.lacks}.",
                next_step="What was imported is found by its words.",
                details={"setting": "BODY_BROKER_EMBEDDINGS"},
            )
        await standing.all_made(self._pool, progress)

    def hand_back(self) -> None:
        """Give up the job where it stands; called by a worker that stops."""
        self._building.hand_back()

    async def close(self) -> None:
        """End what is under way, and the process beside this one."""
        await self._queries.close()
        await self._makers.close()


@asynccontextmanager
async def open_embedding(
    pool: Pool, settings: Settings, followers: Sequence[Follower] = (), *, replace: bool = True
) -> AsyncGenerator[Embedding]:
    """What makes vectors by these settings; ended on the way out.

    Args:
        pool: Where lore lies.
        settings: `embeddings` and what belongs to it.
        followers: Told of each rev that has all its vectors, and of a model that serves from now on.
        replace: Whether these settings decide which model is wanted; a command that comes and goes leaves that as it is.

    Raises:
        SettingsError: The endpoint's URL may not be used so.
    """
    makers = Makers(settings, await asyncio.to_thread(find_weights))
    if makers.wanted is not None:
        await want(pool, makers.wanted, replace=replace)
        if replace:
            await standing.heal(pool)
    embedding = Embedding(pool, makers, followers)
    try:
        yield embedding
    finally:
        await embedding.close()
