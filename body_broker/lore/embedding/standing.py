"""Owns how far the vectors are: what operators are told of models, passages and jobs, and waiting for all of it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from body_broker.calls import Progress
from body_broker.lore.embedding import building
from body_broker.lore.embedding.building import VECTORS
from body_broker.lore.embedding.models import Model, models
from body_broker.lore.embedding.words import ModelAway
from body_broker.lore.importing import IMPORT, REINDEX
from body_broker.storage.postgres import Executor, Pool
from body_broker.work import queue
from body_broker.work.model import WorkSummary

_LOOK_EVERY_S = 0.25
_TRIES_SHOWN = 3
"""Attempts that may fail before whoever waits is told: a moment's fault heals by itself."""


@dataclass(frozen=True, slots=True)
class Standing:
    """How far it is.

    Attributes:
        documents: That readers see.
        passages: Of them.
        models: Each with how many of the passages have its vectors; the one that serves first.
        jobs: Of lore, not ended yet; and the last one of the vectors where it failed.
    """

    documents: int
    passages: int
    models: list[tuple[Model, int]]
    jobs: list[WorkSummary]


async def standing(connection: Executor) -> Standing:
    """How far it is now."""
    documents: int = await connection.fetchval("SELECT count(*) FROM lore_document WHERE rev IS NOT NULL")
    passages, found = 0, list[tuple[Model, int]]()
    for model in await models(connection):
        passages, left = await building.lacking(connection, model)
        found.append((model, passages - left))
    if not found:
        passages = await connection.fetchval("SELECT count(*) FROM lore_chunk c JOIN lore_document d ON d.rev = c.rev")
    kinds = (IMPORT, REINDEX, VECTORS)
    jobs = await queue.list_newest(connection, owner=None, states=("queued", "running"), kinds=kinds)
    latest = await queue.list_newest(connection, owner=None, kinds=(VECTORS,), limit=1)
    failed = [job for job in latest.items if job.state == "failed"]
    return Standing(documents, passages, found, [*jobs.items, *failed])


async def all_made(pool: Pool, progress: Progress | None = None) -> None:
    """Return once every passage has a vector of the model that is wanted; some worker must be running that can make them.

    Args:
        pool: Where lore lies.
        progress: Told passages done and in all.

    Raises:
        ModelAway: The job failed, or fails again and again; or the model refuses some of them.
    """
    await heal(pool)
    idle = 0
    while True:
        now = await standing(pool)
        if not now.models:
            return
        model, have = now.models[-1]
        # A job that has just made the last of them ends by itself, and is not left to whoever comes next.
        ending = any(job.kind == VECTORS and not job.error for job in now.jobs)
        if have == now.passages and model.state == "serving" and not ending:
            return
        if progress is not None:
            await progress(have, now.passages, "passages have their vector")
        for job in now.jobs:
            if job.kind == VECTORS and job.error and (job.state == "failed" or job.attempts >= _TRIES_SHOWN):
                raise ModelAway(f"The vectors wait: {job.error['message']}", next_step=job.error["next_step"])
        # Twice, because the job may have ended between counting the passages and looking for it.
        idle = 0 if any(job.kind == VECTORS for job in now.jobs) else idle + 1
        if idle > 1:
            raise ModelAway(
                f"{now.passages - have} passages have no vector: the model refuses them.",
                next_step="Words find them; the log names each.",
            )
        await asyncio.sleep(_LOOK_EVERY_S)


async def heal(pool: Pool) -> None:
    """Enqueue the job where something is left to do."""
    for model in (await models(pool))[-1:]:
        _, left = await building.lacking(pool, model)
        if left or model.state == "building":
            async with pool.acquire() as connection, connection.transaction():
                await building.enqueue(connection)
