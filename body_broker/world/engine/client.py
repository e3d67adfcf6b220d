"""Owns an engine's side of the protocol: hello, heartbeats, changes in, outcomes out, one answer a change, begin anew when told."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from body_broker.storage.redis import LOST, Redis
from body_broker.telemetry import get_logger
from body_broker.world.engine.coding import Unreadable, read_order
from body_broker.world.engine.messages import (
    TO_ENGINE,
    TO_HUB,
    Bye,
    Change,
    ChangePart,
    EffectPart,
    Ended,
    EntityPart,
    Heartbeat,
    Hello,
    Lease,
    Observation,
    Order,
    Outcome,
    OutcomePart,
    Recorded,
    Refusal,
    Snapshot,
    Taken,
    Welcome,
)
from body_broker.world.engine.streams import Stream

log = get_logger(__name__)

HELLO_AGAIN_S = 2.0
_AGAIN_S = 0.2
_BEATS = 3
"""Heartbeats in one lease."""


class Arbiter(Protocol):
    """The game: what it knows of the world, and its rules."""

    @property
    def tick(self) -> int:
        """The tick it is in; never a smaller one than before."""
        ...

    def reload(self, entities: Sequence[EntityPart], tick: int) -> None:
        """Take the world as it is from now on; whatever else was known is void."""
        ...

    def decide(self, changes: Sequence[ChangePart], *, atomic: bool) -> Sequence[OutcomePart]:
        """Apply each change that may be, and say of each what was observed; an atomic batch whole or not at all."""
        ...


class Over(Exception):
    """This epoch is over for us."""


@dataclass(slots=True)
class Session:
    """One epoch of ours."""

    welcome: Welcome
    heard_at: float
    sent: int = 0
    heard: int = 1
    entities: list[EntityPart] = field(default_factory=list[EntityPart])
    snapshots: int = 0
    answers: dict[str, OutcomePart] = field(default_factory=dict[str, OutcomePart])
    answered: deque[tuple[int, str]] = field(default_factory=deque[tuple[int, str]])
    refused: int = 0
    recorded: int = 0

    @property
    def loaded(self) -> bool:
        """Whether the whole snapshot has come."""
        return self.snapshots >= self.welcome.snapshots

    def forget(self, upto: int) -> None:
        """Everything up to this message of ours is in the record: nobody asks for it again."""
        self.recorded = upto
        while self.answered and self.answered[0][0] <= upto:
            self.answers.pop(self.answered.popleft()[1], None)

    def next_n(self) -> int:
        """The number of the message that is written next."""
        self.sent += 1
        return self.sent


class EngineClient:
    """Holds an epoch for an arbiter for as long as it runs."""

    def __init__(
        self,
        redis: Redis,
        arbiter: Arbiter,
        *,
        engine: str,
        instance: str | None = None,
        tick_hz: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._arbiter, self._engine, self._tick_hz, self._clock = arbiter, engine, tick_hz, clock
        self._instance = instance or secrets.token_hex(8)
        self._orders, self._reports = Stream(redis, TO_ENGINE), Stream(redis, TO_HUB)
        self._session: Session | None = None
        # Numbers are given out in the order of writing.
        self._writing = asyncio.Lock()

    @property
    def epoch(self) -> int | None:
        """The epoch that is ours and loaded; None while there is none."""
        return self._session.welcome.epoch if self._session and self._session.loaded else None

    @property
    def recorded(self) -> int:
        """Up to which of our messages of this epoch all is in the record."""
        return self._session.recorded if self._session else 0

    async def run(self) -> None:
        """Arbitrate until cancelled, through lost connections and lost epochs; says bye on the way out."""
        try:
            while True:
                try:
                    await self._arbitrate()
                except LOST:
                    log.warning("engine_lost_connection")
                    await asyncio.sleep(_AGAIN_S)
                except Over:
                    pass
                self._session = None
        finally:
            await self._leave()

    async def observe(self, key: str, effects: Sequence[EffectPart]) -> int | None:
        """Tell what happened in the game by itself; the message's number, or None while no epoch is ours.

        What is not `recorded` when the epoch ends may not have happened: the next snapshot says how the world is, so look
        there before the same key is sent again under a later epoch. A key that is in the record from an earlier one is
        refused and ends the epoch; within one epoch the same observation again is taken and changes nothing.
        """
        async with self._writing:
            session = self._session
            if session is None or not session.loaded:
                return None
            message = Observation(
                epoch=session.welcome.epoch,
                n=session.next_n(),
                tick=self._arbiter.tick,
                key=key,
                effects=tuple(effects),
            )
            await self._reports.add(message)
            return message.n

    async def _leave(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            try:
                await self._reports.add(Bye(epoch=session.welcome.epoch, n=session.next_n()))
            except LOST:
                log.warning("engine_left_without_bye")

    async def _arbitrate(self) -> None:
        after = await self._orders.last()
        after = await self._join(after)
        beat_at = 0.0
        while True:
            session = self._held()
            interval_s = session.welcome.lease_ms / 1000 / _BEATS
            if self._clock() - session.heard_at > session.welcome.lease_ms / 1000:
                # Nobody renewed the lease: somebody else may hold the world by now.
                raise Over
            if self._clock() >= beat_at:
                await self._beat()
                beat_at = self._clock() + interval_s
            block_ms = max(1, int((beat_at - self._clock()) * 1000))
            for entry, raw in await self._orders.read(after, block_ms=block_ms):
                after = entry
                await self._hear(raw)

    def _held(self) -> Session:
        if self._session is None:
            raise Over
        return self._session

    async def _join(self, after: str) -> str:
        """Say hello until we are welcome; the id of the last entry read."""
        hello = Hello(engine=self._engine, instance=self._instance, tick_hz=self._tick_hz)
        while True:
            await self._reports.add(hello)
            until = self._clock() + HELLO_AGAIN_S
            while (left_s := until - self._clock()) > 0:
                for entry, raw in await self._orders.read(after, block_ms=max(1, int(left_s * 1000)), count=1):
                    after = entry
                    found = read_order(raw)
                    if isinstance(found, Welcome) and self._mine(found):
                        self._session = Session(found, self._clock())
                        return after
                    if isinstance(found, Taken) and self._mine(found):
                        until = self._clock() + found.retry_ms / 1000

    def _mine(self, order: Welcome | Taken) -> bool:
        return (order.engine, order.instance) == (self._engine, self._instance)

    async def _beat(self) -> None:
        async with self._writing:
            session = self._held()
            await self._reports.add(Heartbeat(epoch=session.welcome.epoch, n=session.next_n(), tick=self._arbiter.tick))

    async def _hear(self, raw: bytes) -> None:
        order = read_order(raw)
        if isinstance(order, Unreadable):
            log.warning("engine_heard_nonsense", code=order.code)
            return
        session = self._held()
        if isinstance(order, Welcome):
            if self._mine(order):
                self._session = Session(order, self._clock())
            return
        if isinstance(order, Taken) or order.epoch != session.welcome.epoch:
            return
        if isinstance(order, Refusal):
            self._refused(order)
        elif isinstance(order, Ended):
            log.info("engine_epoch_ended", reason=order.reason)
            raise Over
        elif order.n > session.heard:
            if order.n != session.heard + 1:
                # The stream lost something of this epoch: begin anew, the hub has it all.
                raise Over
            session.heard = order.n
            await self._take(session, order)

    def _refused(self, order: Refusal) -> None:
        log.warning("engine_message_refused", code=order.code, why=order.message)
        if order.code == "old_epoch":
            raise Over

    async def _take(self, session: Session, order: Order) -> None:
        match order:
            case Snapshot():
                session.entities += order.entities
                session.snapshots += 1
                if session.loaded:
                    self._arbiter.reload(session.entities, session.welcome.tick)
                    session.entities = []
            case Lease():
                session.heard_at = self._clock()
            case Recorded():
                session.forget(order.upto)
            case Change():
                await self._answer(session, order)
            case _:
                pass

    async def _answer(self, session: Session, order: Change) -> None:
        """Decide what is new, and say again what was said of the rest."""
        new = [c for c in order.changes if c.change_id not in session.answers]
        if new:
            outcomes = self._arbiter.decide(new, atomic=order.atomic)
            session.answers |= {o.change_id: o for o in outcomes}
        async with self._writing:
            number = session.next_n()
            session.answered += ((number, change.change_id) for change in new)
            await self._reports.add(
                Outcome(
                    epoch=session.welcome.epoch,
                    n=number,
                    tick=self._arbiter.tick,
                    outcomes=tuple(session.answers[c.change_id] for c in order.changes),
                )
            )
