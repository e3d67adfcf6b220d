"""Owns our engine: it holds the epoch, decides what is queued tick by tick, records it, and tells readers."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

import asyncpg

from body_broker.background import running
from body_broker.storage.postgres import LOST, Connection, Pool
from body_broker.storage.redis import Redis
from body_broker.telemetry import get_logger
from body_broker.work.link import Link
from body_broker.world import epochs, reading
from body_broker.world.engine import outbox
from body_broker.world.epochs import Epoch, Superseded
from body_broker.world.herald import Herald
from body_broker.world.model import CHANGE_CHANNEL, Entity, Event
from body_broker.world.patching import after
from body_broker.world.recorder import claim, record
from body_broker.world.rules import decide

logger = get_logger(__name__)

_AFTER_LOSS_S = 0.25
_AFTER_FAULT_S = 0.5
_LAST_WORD_S = 1.0
_STAND_BY_S = 0.05


class Arbiter:
    """Decides queued changes until `stop`; one at a time over all processes. Survives the loss of PostgreSQL and of Redis.

    Beside the pool it opens one connection of its own.

    Args:
        pool: Where the world lies.
        redis: Where readers follow it.
        database_url: The pool's database.
        name: Who holds the epoch, as `get_engine_status` shows it.
        tick_hz: How often it decides at most.
        lease_s: How long it may be silent before another takes its place.
    """

    def __init__(
        self, pool: Pool, redis: Redis, *, database_url: str, name: str, tick_hz: float = 30, lease_s: float = 3.0
    ) -> None:
        self.name = name
        self._pool = pool
        self._tick_hz, self._lease_s = tick_hz, lease_s
        self._awake, self._stopped = asyncio.Event(), asyncio.Event()
        self._link = Link(
            database_url,
            name=f"body-broker engine {name}",
            timeout_s=max(lease_s, 2.0),
            heard=lambda _payload: self._awake.set(),
            lost=self._awake.set,
            channel=CHANGE_CHANNEL,
        )
        self.on_epoch: Callable[[int | None], None] = _tell_nobody
        """Told the number of each epoch that begins here, and None when it first has to wait for one."""
        self._epoch: int | None = None
        self._waits = False
        self._pos = 0
        self._entities: dict[str, Entity] = {}
        self._herald = Herald(pool, redis, prove=self._prove, proof_s=lease_s)

    @property
    def epoch(self) -> int | None:
        """The epoch it holds, as far as it knows; None while another engine arbitrates, or it is paused."""
        return self._epoch

    def stop(self) -> None:
        """Decide nothing more; `run` returns and lets the next engine begin at once."""
        self._stopped.set()
        self._awake.set()

    async def run(self) -> None:
        """Arbitrate, or wait for the right to, until `stop`."""
        async with running(self._herald.run(), name="world-herald"):
            try:
                while not self._stopped.is_set():
                    await self._stand()
            finally:
                await self._leave()

    async def _stand(self) -> None:
        try:
            if await self._hold():
                while not self._stopped.is_set():
                    await self._turn()
        except Superseded:
            logger.info("engine_superseded", engine=self.name, epoch=self._epoch)
            self._epoch = None
        except (*LOST, asyncpg.PostgresError):
            logger.warning("engine_lost_database", engine=self.name, exc_info=True)
            await _within(self._stopped, _AFTER_LOSS_S)
        except Exception:
            # Whatever it is, the world must not be left without its engine: begin with what the record says.
            logger.exception("engine_failed", engine=self.name, epoch=self._epoch)
            await self._link.close()
            await _within(self._stopped, _AFTER_FAULT_S)

    async def _hold(self) -> bool:
        """Have the epoch and know the world; False after a wait where another engine has it, or it is paused."""
        async with self._link.connection() as connection:
            if self._epoch is None:
                made = await epochs.acquire(connection, name=self.name, lease_s=self._lease_s, tick_hz=self._tick_hz)
                self._epoch = made and made.number
                if made or not self._waits:
                    self.on_epoch(self._epoch)
                self._waits = made is None
            else:  # the connection was lost, not the epoch: nobody else can have written since
                await epochs.renew(connection, self._epoch, self._lease_s)
            if self._epoch is not None:
                await self._learn(connection, self._epoch)
                return True
            free_in_s = await epochs.free_in_s(connection)
            paused = (await epochs.status(connection)).paused_at is not None
        if paused:  # nobody else ends what has expired while nobody decides
            await outbox.expire(self._pool)
        # Not by what is queued, which is news for another, and not for a whole lease, which may be given back before its end.
        await _within(self._stopped, min(max(free_in_s, _STAND_BY_S), self._lease_s / 3))
        return False

    async def _learn(self, connection: Connection, epoch: int) -> None:
        async with connection.transaction():
            await epochs.fenced(connection, epoch)
            found = await reading.world_now(connection)
        self._entities, self._pos = found.entities, found.pos
        self._herald.begin(epoch, self._entities, self._pos)

    async def _turn(self) -> None:
        """One tick, and the wait until the next can have something to decide."""
        clock = asyncio.get_running_loop()
        began = clock.time()
        self._awake.clear()
        if await self._tick():
            await asyncio.sleep(max(began + 1 / self._tick_hz - clock.time(), 0))
        elif not await _within(self._awake, self._lease_s / 3):
            await self._prove(self._held())

    async def _tick(self) -> int:
        """Decide what is queued; how much it was."""
        async with self._link.connection() as connection, connection.transaction():
            held = await epochs.fenced(connection, self._held())
            claimed = await claim(connection)
            if not claimed.changes:
                return 0
            verdicts = decide(claimed.changes, self._entities, held.tick + 1, now=claimed.now)
            events = await record(
                connection,
                epoch=held.number,
                tick=held.tick + 1,
                changes=claimed.changes,
                verdicts=verdicts,
                entities=self._entities,
                lease_s=self._lease_s,
            )
        self._take(held, events)
        self._herald.tell(events, [verdict.change_id for verdict in verdicts])
        return len(verdicts)

    def _take(self, held: Epoch, events: list[Event]) -> None:
        assert held.last_pos == self._pos, "nobody else writes under this epoch"
        for event in events:
            self._entities[event.entity_id] = after(self._entities.get(event.entity_id), event)
        self._pos += len(events)

    async def _prove(self, epoch: int) -> None:
        async with self._link.connection() as connection:
            await epochs.renew(connection, epoch, self._lease_s)

    def _held(self) -> int:
        assert self._epoch is not None, "it arbitrates"
        return self._epoch

    async def _leave(self) -> None:
        if self._epoch is not None:
            await self._herald.drained(_LAST_WORD_S)
            with contextlib.suppress(*LOST, asyncpg.PostgresError):
                async with self._link.connection() as connection:
                    await epochs.release(connection, self._epoch)
        self._epoch = None
        await self._link.close()


async def _within(event: asyncio.Event, pause_s: float) -> bool:
    """Wait for the event, or for the time to be over; whether it came."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(pause_s):
            await event.wait()
    return event.is_set()


def _tell_nobody(_epoch: int | None) -> None:
    """Nobody asked."""
