"""Owns what the rag server's tools need, and the operator's way in: importing files from the command line."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from body_broker.calls import Json, Progress, Receipt
from body_broker.errors import Conflict, InternalError, Unavailable
from body_broker.lore import Lore, read_paths
from body_broker.lore.importing import Announce, announce_nothing
from body_broker.lore.index import Follower, SearchIndex
from body_broker.lore.model import Imported, Intake, index_named
from body_broker.lore.ranking import Embed, embed_nothing
from body_broker.storage.postgres import LOST, Pool
from body_broker.tuning import Tuning
from body_broker.work import queue
from body_broker.work.model import FINAL, Origin, WorkItem
from body_broker.work.run import Handler

_LOOK_EVERY_S = 0.1
_AWAY_MAX_S = 60.0


@dataclass(frozen=True, slots=True)
class Services:
    """Lore and figures; a worker needs `handlers()`."""

    pool: Pool
    lore: Lore
    tuning: Tuning
    following: Mapping[str, Handler]

    @classmethod
    def build(
        cls,
        pool: Pool,
        announce: Announce = announce_nothing,
        *,
        embed: Embed = embed_nothing,
        copy: SearchIndex | None = None,
        followers: Sequence[Follower] = (),
        following: Mapping[str, Handler] | None = None,
    ) -> Self:
        """The services over a database.

        Args:
            pool: Where lore, figures and work lie.
            announce: Told the resource URI of each document that changed.
            embed: Makes a query's vector.
            copy: An index that holds copies, asked first.
            followers: What goes after each change of the lore.
            following: The work that followers have enqueued, by kind.
        """
        lore = Lore(pool, announce=announce, copy=copy, embed=embed, followers=followers)
        return cls(pool, lore, Tuning(pool), following or {})

    def handlers(self) -> Mapping[str, Handler]:
        """What a worker needs to import, reindex, and go after both."""
        return {**self.lore.importing.handlers(), **self.following}

    async def import_paths(
        self,
        paths: Sequence[Path],
        *,
        index: str,
        by: str,
        canon: bool = True,
        title: str | None = None,
        metadata: Mapping[str, Json] | None = None,
        receipt: Receipt | None = None,
        progress: Progress | None = None,
    ) -> Imported:
        """What an operator's import did, once it is done; some worker must be running, in this process or another.

        Everything is read and stored with its job first, so that nothing is half imported, and the job goes on without us.

        Args:
            paths: Files and folders: text, Markdown, JSON Lines.
            index: shared or persona:NAME.
            by: operator:NAME.
            canon: Whether it is the studio's own truth.
            title: The title, where there is exactly one document.
            metadata: Of every document: whom it may be told, what it can be searched by.
            receipt: The command's place on the audit.
            progress: Told passages done and in all.

        Raises:
            BadInput: A file is no lore; its name is said, and nothing was imported.
            TooLarge: More than the limits.
            Conflict: Somebody cancelled the job.
            InternalError: The job failed.
        """
        into = index_named(index)
        drafts = await asyncio.to_thread(read_paths, paths, title=title, metadata=metadata)
        origin = Origin(chain=(by,), session=by, receipt=receipt)
        intake = await self.lore.importing.take(drafts, index=into, canon=canon, origin=origin)
        return await self.follow(intake, progress)

    async def follow(self, intake: Intake, progress: Progress | None = None) -> Imported:
        """What an import did, once its job has ended.

        Raises:
            Conflict: Somebody cancelled it.
            InternalError: It failed.
        """
        if intake.job_id is None:
            return Imported(None, 0, len(intake.documents), 0)
        while True:
            job = await self._look(intake.job_id)
            if progress is not None and job.progress:
                await progress(job.progress["done"], job.progress["total"], job.progress["message"])
            if job.state in FINAL:
                break
            await asyncio.sleep(_LOOK_EVERY_S)
        if job.state == "succeeded":
            return Imported(job.id, job.result["documents"], job.result["unchanged"], job.result["passages"])
        if job.state == "failed":
            raise InternalError(f"The import {job.id} failed: {job.error['message']}", next_step=job.error["next_step"])
        raise Conflict(
            f"The import {job.id} was {job.state}.", next_step="Import again; what is there is left as it is."
        )

    async def _look(self, job_id: str) -> WorkItem:
        """The job as it is; a database that is away for a moment is waited for, as the job itself does."""
        loop = asyncio.get_running_loop()
        until = loop.time() + _AWAY_MAX_S
        while True:
            try:
                return await queue.get(self.pool, job_id, owner=None)
            except LOST as error:
                if loop.time() > until:
                    raise Unavailable(
                        f"The database went away while {job_id} was being followed.",
                        next_step="The job goes on once it is back; import again to see what it did.",
                    ) from error
                await asyncio.sleep(_LOOK_EVERY_S)
