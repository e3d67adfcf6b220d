"""Owns the telling of what an engine recorded: in order, beside arbitration, and made up for whole where Redis was away."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping

import asyncpg

from body_broker.storage.postgres import LOST as POSTGRES_LOST
from body_broker.storage.postgres import Pool
from body_broker.storage.redis import LOST as REDIS_LOST
from body_broker.storage.redis import Redis
from body_broker.telemetry import get_logger
from body_broker.world import mirror, reading
from body_broker.world.epochs import Superseded
from body_broker.world.model import Entity, Event

logger = get_logger(__name__)

_AGAIN_S = 0.5
_AT_ONCE = 500
_LOOK_EVERY_S = 1.0


class Herald:
    """Publishes for one engine. A Redis that hangs or is away delays readers, never the engine.

    Args:
        pool: Where what the stream lacks is read.
        redis: Where it is told.
        prove: Renews the engine's epoch, and raises Superseded where it is over.
        proof_s: For how long from then on nobody else can have another.
    """

    def __init__(self, pool: Pool, redis: Redis, *, prove: Callable[[int], Awaitable[None]], proof_s: float) -> None:
        self._pool, self._redis = pool, redis
        self._prove, self._proof_s = prove, proof_s
        self._news = asyncio.Event()
        self._quiet = asyncio.Event()
        self._epoch: int | None = None
        self._entities: Mapping[str, Entity] = {}
        self._pos = 0
        self._events: list[Event] = []
        self._whole_after = 0  # `_events` has all that was recorded after this position and is not told yet
        self._decided: list[str] = []
        self._stale = False

    def begin(self, epoch: int, entities: Mapping[str, Entity], pos: int) -> None:
        """Speak for this epoch from now on; the copy in Redis is made whole first.

        Args:
            epoch: The engine's.
            entities: The whole world; the engine goes on changing it as it records.
            pos: The position of the record's latest event.
        """
        self._epoch, self._entities, self._pos, self._stale = epoch, entities, pos, True
        self._events, self._decided, self._whole_after = [], [], pos
        self._wake()

    def tell(self, events: list[Event], decided: list[str]) -> None:
        """These were recorded, and these changes decided."""
        self._pos += len(events)
        self._events += events
        if len(self._events) > mirror.EVENTS_KEPT:  # Redis is away: what it lacks will be read from the record
            self._events, self._whole_after, self._stale = [], self._pos, True
        self._decided += decided
        del self._decided[: -mirror.DECIDED_KEPT]  # who waits for an older one looks now and then
        self._wake()

    @property
    def kept(self) -> tuple[int, int]:
        """How many events and decisions wait here to be told."""
        return len(self._events), len(self._decided)

    async def run(self) -> None:
        """Tell for ever."""
        while True:
            news = await self._wait()
            self._news.clear()
            try:
                if not news and self._epoch is not None:
                    self._stale = self._stale or not await mirror.is_kept(self._redis, self._epoch)
                done = await self._catch_up()
            except Superseded:
                self._epoch, self._events, self._decided, self._stale = None, [], [], False
                done = True
            except (*REDIS_LOST, *POSTGRES_LOST, asyncpg.PostgresError):
                logger.warning("world_not_told", epoch=self._epoch)
                self._decided, self._stale, done = [], True, False
            except Exception:  # whatever it is, readers must not be left without news
                logger.exception("world_not_told", epoch=self._epoch)
                self._decided, self._stale, done = [], True, False
            if not done:
                self._news.set()
                await asyncio.sleep(_AGAIN_S)
            elif not self._news.is_set():
                self._quiet.set()

    async def drained(self, timeout_s: float) -> None:
        """Return once all is told, or the time is over."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._quiet.wait()
        except TimeoutError:
            logger.warning("world_not_told", epoch=self._epoch)

    async def _wait(self) -> bool:
        """Until there is something to tell, or it is time to see whether Redis still has what it was told; which of them."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LOOK_EVERY_S):
                await self._news.wait()
        return self._news.is_set()

    def _wake(self) -> None:
        self._quiet.clear()
        self._news.set()

    async def _catch_up(self) -> bool:
        """Tell all there is; whether that went through."""
        epoch = self._epoch
        if epoch is None:
            return True
        if self._stale and not await self._make_whole(epoch):
            return False
        if self._stale:  # more was recorded meanwhile than is kept here
            self._news.set()
            return True
        events, self._events = self._events[:_AT_ONCE], self._events[_AT_ONCE:]
        decided, self._decided = self._decided[:_AT_ONCE], self._decided[_AT_ONCE:]
        if not events and not decided:
            return True
        if not await mirror.publish(self._redis, events, self._entities, epoch=epoch, decided=decided):
            self._stale = True
            return False
        if self._events or self._decided:
            self._news.set()
        return True

    async def _make_whole(self, epoch: int) -> bool:
        pos = self._pos
        lacking = max(min(await mirror.latest(self._redis), pos), pos - mirror.EVENTS_KEPT)
        events = await self._events_between(lacking, pos)
        whole = await mirror.rewrite(
            self._redis,
            dict(self._entities),
            events,
            epoch=epoch,
            last_pos=pos,
            prove=lambda: self._prove(epoch),
            proof_s=self._proof_s,
        )
        if whole and epoch == self._epoch:
            # What was recorded meanwhile is not in it, and is told after it.
            self._events = [event for event in self._events if event.pos > pos]
            self._stale = pos < self._whole_after
        return whole

    async def _events_between(self, after_pos: int, last_pos: int) -> list[Event]:
        found: list[Event] = []
        while after_pos < last_pos:
            events = await reading.events(self._pool, after_pos=after_pos, limit=reading.EVENTS_MAX)
            if not events:
                break
            found += [event for event in events if event.pos <= last_pos]
            after_pos = events[-1].pos
        return found
