"""Owns this process's map of the world: every entity, kept as the engine leaves it, read without a store."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from datetime import datetime
from types import MappingProxyType
from typing import Any, cast

import asyncpg

from body_broker.background import running
from body_broker.errors import Unavailable
from body_broker.storage.postgres import LOST as POSTGRES_LOST
from body_broker.storage.postgres import Pool
from body_broker.storage.redis import LOST as REDIS_LOST
from body_broker.storage.redis import Redis
from body_broker.telemetry import get_logger
from body_broker.world import reading
from body_broker.world.forms import event_of
from body_broker.world.kinds import name_of
from body_broker.world.mirror import DECIDED_STREAM, latest
from body_broker.world.model import EVENT_STREAM, Entity, Event, Kind, Reading
from body_broker.world.patching import after

log = get_logger(__name__)

OnEvent = Callable[[Event], Awaitable[None]]

_CHECK_EVERY_S = 1.0
_BLOCK_MS = 1_000
_AFTER_LOSS_S = 0.25


class WorldMap:
    """The world in memory: as a process that stays follows it, or as one that comes and goes has loaded it.

    Args:
        pool: Where the record lies.
        redis: Where the engine tells what is new.
        on_event: Told of each event that is new here.
    """

    def __init__(self, pool: Pool, redis: Redis, on_event: OnEvent) -> None:
        self._pool, self._redis, self._on_event = pool, redis, on_event
        self._entities: dict[str, Entity] = {}
        self._regions: dict[str, set[str]] = {}
        self._kinds: dict[Kind, set[str]] = {}
        self._pos = self._tick = 0
        self._last: Event | None = None  # the event at `_pos`: a record that has another one there is another record
        self._doubted: int | None = None  # what the stream has up to here may be of another record; None: not known yet
        self._known_at: float | None = None  # monotonic: when this was last known to be all there is
        self._paused: tuple[datetime | None, str | None] = (None, None)  # as of the latest look
        self._waiting: dict[str, set[asyncio.Event]] = {}
        self._writing = asyncio.Lock()

    def get(self, entity_id: str) -> Entity | None:
        """The entity, also one that is gone (`removed`); None where there never was one."""
        return self._entities.get(entity_id)

    @property
    def entities(self) -> Mapping[str, Entity]:
        """All of them by id, those that are gone too."""
        return MappingProxyType(self._entities)

    def in_region(self, region: str, kind: Kind | None = None) -> list[Entity]:
        """What is in a region, by id; the region itself is not in it."""
        return self._sorted(self._regions.get(region, ()), kind)

    def of_kind(self, kind: Kind) -> list[Entity]:
        """What there is of a kind, by id."""
        return self._sorted(self._kinds.get(kind, ()), None)

    def near(
        self, region: str, position: Sequence[float], radius: float, kind: Kind | None = None
    ) -> list[tuple[float, Entity]]:
        """What has a position in this region within the radius, with its distance, the nearest first."""
        found: list[tuple[float, Entity]] = []
        for each in self.in_region(region, kind):
            at = each.data.get("position")
            if at is not None and (distance := math.dist(position, at)) <= radius:
                found.append((distance, each))
        return sorted(found, key=lambda pair: (pair[0], pair[1].id))

    def ids(self) -> frozenset[str]:
        """The ids of what there is."""
        return frozenset(each.id for each in self._entities.values() if not each.removed)

    def names(self) -> dict[str, str]:
        """What people call each thing that there is, by its id."""
        return {each.id: name_of(each) for each in self._entities.values() if not each.removed}

    def reading(self) -> Reading:
        """How much this map may be trusted now.

        Raises:
            Unavailable: It was never loaded.
        """
        if self._known_at is None:
            raise Unavailable("The map of the world is not loaded.", details={"component": "world"})
        age_ms = int((time.monotonic() - self._known_at) * 1000)
        paused_at, paused_by = self._paused
        return Reading(
            pos=self._pos, tick=self._tick, age_ms=age_ms, source="map", paused_at=paused_at, paused_by=paused_by
        )

    @contextmanager
    def deciding(self, change_id: str) -> Generator[asyncio.Event]:
        """An event that is set when this process hears that the change was decided; it may miss that, so look now and then."""
        heard = asyncio.Event()
        self._waiting.setdefault(change_id, set()).add(heard)
        try:
            yield heard
        finally:
            self._waiting[change_id].discard(heard)
            if not self._waiting[change_id]:
                del self._waiting[change_id]

    async def load(self) -> None:
        """Read the whole world from PostgreSQL.

        Raises:
            OSError, asyncpg.PostgresError: It cannot be reached.
        """
        async with self._writing:
            await self._load()

    async def _load(self) -> None:
        began = time.monotonic()
        found = await reading.world(self._pool)
        last = await self._event_at(found.pos)
        self._entities = found.entities
        self._regions, self._kinds = {}, {}
        for each in found.entities.values():
            self._note(None, each)
        self._last, self._doubted = last, None
        self._pos, self._tick, self._known_at = found.pos, found.tick, began
        self._paused = found.paused

    async def _event_at(self, pos: int) -> Event | None:
        found = await reading.events(self._pool, after_pos=pos - 1, limit=1)
        return found[0] if found and found[0].pos == pos else None

    async def reach(self, pos: int) -> None:
        """Hold the record up to this position at least; what is not here yet is read.

        Raises:
            OSError, asyncpg.PostgresError: It cannot be read.
        """
        if self._pos < pos:
            await self._repair()

    async def ensure(self) -> None:
        """Have loaded it once: what a process that comes and goes does before it reads."""
        if self._known_at is None:
            await self.load()

    @asynccontextmanager
    async def following(self) -> AsyncGenerator[None]:
        """Keep it as the engine leaves the world while open.

        Raises:
            OSError, asyncpg.PostgresError: The world cannot be read to begin with.
        """
        await self.load()
        async with running(self._tail(), name="world-tail"), running(self._watch(), name="world-watch"):
            yield

    async def _tail(self) -> None:
        """Take what the engine tells as it comes; a hole is filled from the record."""
        decided: str | None = None
        seen = (0, 0)  # of the stream's entries: one that is of no use is not looked at again and again
        while True:
            try:
                decided = decided or await self._latest_decision()
                if self._doubted is None:
                    self._doubted = await latest(self._redis)
                at = max(seen, (self._pos, 0))
                streams: Any = {EVENT_STREAM: f"{at[0]}-{at[1]}", DECIDED_STREAM: decided}
                found = _entries(await self._redis.xread(streams, block=_BLOCK_MS, count=500))
                if not found:
                    seen = (0, 0)  # the stream may have begun anew below
                for stream, entry_id, fields in found:
                    if stream == EVENT_STREAM:
                        seen = _number(entry_id)
                        await self._hear(fields)
                    else:
                        decided = entry_id
                        self._wake(fields.get(b"change", b"").decode(errors="replace"))
            except (*REDIS_LOST, *POSTGRES_LOST, asyncpg.PostgresError):
                log.warning("world_tail_lost_connection")
                await asyncio.sleep(_AFTER_LOSS_S)
            except Exception:  # whatever somebody wrote there must not stop the map
                log.exception("world_tail_failed")
                await asyncio.sleep(_AFTER_LOSS_S)

    async def _hear(self, fields: Mapping[bytes, bytes]) -> None:
        try:
            event = event_of(fields[b"event"])
            is_news = event.pos > self._pos
        except (KeyError, ValueError, TypeError):
            log.warning("world_tail_met_foreign_entry")
            await self._repair()
            return
        if is_news:
            await self._take(event)

    async def _latest_decision(self) -> str:
        top: Any = await self._redis.xrevrange(DECIDED_STREAM, count=1)
        return top[0][0].decode() if top else "0-0"

    async def _watch(self) -> None:
        """Compare with the record once a second: a lost stream, or an engine that died before it told, is noticed here."""
        while True:
            await asyncio.sleep(_CHECK_EVERY_S)
            try:
                await self.check()
            except (*POSTGRES_LOST, asyncpg.PostgresError):
                log.warning("world_watch_lost_database")
            except Exception:  # nor must what the record says
                log.exception("world_watch_failed")

    async def check(self) -> None:
        """Be as the record is now.

        Raises:
            OSError, asyncpg.PostgresError: It cannot be read.
        """
        began = time.monotonic()
        head = await reading.head(self._pool)
        self._paused = (head.paused_at, head.paused_by)
        if head.pos < self._pos:  # another database, or this one from a backup
            log.warning("world_went_back", known=self._pos, found=head.pos)
            await self.load()
            return
        await self._repair()
        if self._pos >= head.pos:
            self._tick, self._known_at = max(self._tick, head.tick), began

    async def _take(self, event: Event) -> None:
        if self._doubted is None or event.pos <= self._doubted or event.pos > self._pos + 1:
            await self._repair()
            return
        async with self._writing:
            if not await self._apply([event]):
                await self._load()

    async def _repair(self) -> None:
        """Take what the record has beyond this map; where it is another record than the map's, read it whole."""
        async with self._writing:
            while True:
                start = self._pos
                events = await reading.events(self._pool, after_pos=max(start - 1, 0), limit=reading.EVENTS_MAX)
                if not self._goes_on_with(events) or not await self._apply(events):
                    log.warning("world_is_another", known=self._pos)
                    await self._load()
                    return
                if len(events) < reading.EVENTS_MAX or self._pos == start:
                    return

    def _goes_on_with(self, events: Sequence[Event]) -> bool:
        """Whether the record has the event that this map has last."""
        last = self._last
        return last is None or (bool(events) and _is_same(events[0], last))

    async def _apply(self, events: Iterable[Event]) -> bool:
        """Take these events; False at the first that does not follow from what is here."""
        for event in events:
            if event.pos <= self._pos:
                continue
            before = self._entities.get(event.entity_id)
            epoch = 0 if self._last is None else self._last.epoch
            if (
                event.pos != self._pos + 1
                or event.version != (0 if before is None else before.version) + 1
                or event.epoch < epoch
            ):
                return False
            now = self._entities[event.entity_id] = after(before, event)
            self._note(before, now)
            self._pos, self._tick, self._last = event.pos, max(self._tick, event.tick), event
            if event.change_id is not None:
                self._wake(event.change_id)
            try:
                await self._on_event(event)
            except Exception:  # a listener's fault must not stop the map
                log.exception("world_event_not_announced")
        return True

    def _note(self, before: Entity | None, now: Entity) -> None:
        if before is not None and before.region is not None:
            self._regions.get(before.region, set()).discard(now.id)
        if now.removed:
            self._kinds.get(now.kind, set()).discard(now.id)
            return
        self._kinds.setdefault(now.kind, set()).add(now.id)
        if now.region is not None and now.region != now.id:
            self._regions.setdefault(now.region, set()).add(now.id)

    def _wake(self, change_id: str) -> None:
        for heard in self._waiting.get(change_id, ()):
            heard.set()

    def _sorted(self, ids: Iterable[str], kind: Kind | None) -> list[Entity]:
        found = [self._entities[each] for each in sorted(ids)]
        return found if kind is None else [each for each in found if each.kind == kind]


def _is_same(one: Event, other: Event) -> bool:
    return (one.pos, one.entity_id, one.version, one.change_id, one.epoch, one.type, one.patch) == (
        (other.pos, other.entity_id, other.version, other.change_id, other.epoch, other.type, other.patch)
    )


def _number(entry_id: str) -> tuple[int, int]:
    first, _, second = entry_id.partition("-")
    return int(first), int(second)


def _entries(reply: Any) -> list[tuple[str, str, dict[bytes, bytes]]]:  # XREAD's reply in RESP2's or RESP3's shape
    pairs: list[Any] = list(cast("dict[bytes, Any]", reply).items()) if isinstance(reply, dict) else list(reply or [])
    found: list[tuple[str, str, dict[bytes, bytes]]] = []
    for stream, entries in pairs:
        batches: list[Any] = entries if entries and isinstance(entries[0], list) else [entries]
        found += [(stream.decode(), entry_id.decode(), fields) for batch in batches for entry_id, fields in batch]
    return found
