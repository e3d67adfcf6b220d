"""Owns hearing what moves: one listening connection a process wakes whoever follows jobs and approvals; the tables say how they stand."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Collection
from contextlib import asynccontextmanager

import asyncpg

from body_broker.background import end
from body_broker.errors import Unavailable
from body_broker.storage.postgres import LOST
from body_broker.telemetry import get_logger
from body_broker.work.link import Link

log = get_logger(__name__)

CHANNEL = "work_moved"
"""The NOTIFY channel of a trigger on work; the payload is a job's id."""
_ALIVE_EVERY_S = 30.0  # a connection may be lost without a word
_AGAIN_S = 0.5
_TIMEOUT_S = 5.0
_FAILURES = (*LOST, asyncpg.PostgresError)


class Follower:
    """What one follower has not looked at yet."""

    def __init__(self) -> None:
        self._moved: dict[str, None] = {}
        self._woken = asyncio.Event()

    def note(self, moved: str) -> None:
        """This one is to be looked at; however often it is said, once."""
        self._moved[moved] = None
        self._woken.set()

    async def moved(self) -> list[str]:
        """Return what is to be looked at now, first said first; waits until there is something."""
        await self._woken.wait()
        self._woken.clear()
        found = list(self._moved)
        self._moved.clear()
        return found


class Moves:
    """Everybody of this process who follows jobs or approvals. Nothing is connected before the first of them.

    Args:
        database_url: Where to listen.
        also: Other channels whose payloads are ids.
    """

    def __init__(self, database_url: str, *, also: tuple[str, ...] = ()) -> None:
        self._link = Link(
            database_url,
            name="body-broker moves",
            timeout_s=_TIMEOUT_S,
            heard=self._heard,
            lost=self._lost,
            channel=CHANNEL,
            also=also,
        )
        self._followers: dict[str, set[Follower]] = {}
        self._keeper: asyncio.Task[None] | None = None
        self._listens, self._look = asyncio.Event(), asyncio.Event()

    @asynccontextmanager
    async def following(self, ids: Collection[str]) -> AsyncGenerator[Follower]:
        """Hear of each move of these until the way out; who reads them inside misses none.

        Raises:
            Unavailable: The database cannot be listened to.
        """
        if self._keeper is None or self._keeper.done():
            self._keeper = asyncio.create_task(self._keep(), name="moves-listener")
        try:
            async with asyncio.timeout(_TIMEOUT_S):
                await self._listens.wait()
        except TimeoutError as error:
            raise Unavailable(
                "PostgreSQL cannot be listened to now, so no change would be heard.", details={"component": "postgres"}
            ) from error
        follower = Follower()
        for each in ids:
            self._followers.setdefault(each, set()).add(follower)
        try:
            yield follower
        finally:
            for each in ids:
                followers = self._followers.get(each, set())
                followers.discard(follower)
                if not followers:
                    self._followers.pop(each, None)

    async def close(self) -> None:
        """End the listening connection."""
        if self._keeper is not None:
            await end(self._keeper)
        await self._link.close()

    async def _keep(self) -> None:
        """Hold the connection; after a new one everything is to be looked at, for nobody knows what was said meanwhile."""
        known: object = None
        while True:
            self._look.clear()
            try:
                async with self._link.connection() as connection:
                    await connection.execute("SELECT 1")
            except _FAILURES:
                known = None  # a connection that stood still is used again, and was not heard meanwhile
                self._listens.clear()
                log.warning("moves_not_listening", exc_info=True)
                await asyncio.sleep(_AGAIN_S)
                continue
            if connection is not known:
                known = connection
                self._listens.set()
                for each in list(self._followers):
                    self._heard(each)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_ALIVE_EVERY_S):
                    await self._look.wait()

    def _heard(self, moved: str) -> None:
        for follower in self._followers.get(moved, ()):
            follower.note(moved)

    def _lost(self) -> None:
        self._listens.clear()
        self._look.set()
