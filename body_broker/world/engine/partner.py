"""Owns the hub's side of the protocol as `engine check` plays it: it welcomes, sends, hears, and believes nothing."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from pydantic import BaseModel

from body_broker.storage.redis import Redis
from body_broker.world.engine.coding import Unreadable, read_report
from body_broker.world.engine.messages import (
    TO_ENGINE,
    TO_HUB,
    Change,
    ChangePart,
    Ended,
    EndReason,
    EntityPart,
    Heartbeat,
    Hello,
    Lease,
    Numbered,
    Outcome,
    OutcomePart,
    Report,
    Snapshot,
    Welcome,
)
from body_broker.world.engine.streams import Stream

R = TypeVar("R", bound=BaseModel)
_BLOCK_MS = 200
_JUST_NOW_S = 1.5
"""A hello of so short a time ago is still waiting for its answer."""
_FIRST_EPOCH = 1_000


class Broken(Exception):
    """What the engine did wrong, in words for who wrote it."""


@dataclass(slots=True)
class Reports:
    """What an engine has said, in order."""

    every: list[Report] = field(default_factory=list[Report])
    faults: list[str] = field(default_factory=list[str])
    news: asyncio.Condition = field(default_factory=asyncio.Condition)


class Partner:
    """A hub with a world of the check's own.

    Args:
        redis: A Redis that nothing else uses.
        engine: Only this engine is heard; None hears the first that says hello.
        patience_s: How long an answer may take.
        start_s: How long the first hello may take.
        lease_ms: The lease it gives.
    """

    def __init__(self, redis: Redis, *, engine: str | None, patience_s: float, start_s: float, lease_ms: int) -> None:
        self._orders, self._stream = Stream(redis, TO_ENGINE), Stream(redis, TO_HUB)
        self._engine, self._patience_s, self.lease_ms = engine, patience_s, lease_ms
        self.start_s = start_s
        self._reports = Reports()
        self._said = 0
        self._heard = 0
        self._hello: Hello | None = None
        self._changes = 0
        self.epoch = _FIRST_EPOCH
        self.leasing = True
        """Whether heartbeats are answered."""
        # Messages stand in the stream in the order of their numbers: heartbeats are answered while a check sends.
        self._writing = asyncio.Lock()

    async def listen(self) -> None:
        """Hear until cancelled."""
        after = await self._stream.since(_JUST_NOW_S)
        while True:
            for entry, raw in await self._stream.read(after, block_ms=_BLOCK_MS):
                after = entry
                await self._hear(raw)

    @property
    def place(self) -> int:
        """How much was said so far; what comes after it is looked for from here."""
        return len(self._reports.every)

    def since(self, place: int, kind: type[R]) -> list[R]:
        """What was said of this type since then."""
        return [report for report in self._reports.every[place:] if isinstance(report, kind)]

    async def expect(
        self,
        kind: type[R],
        what: str,
        *,
        after: int,
        where: Callable[[R], bool] = lambda _: True,
        patience_s: float | None = None,
    ) -> R:
        """The first report of this type since then that fits.

        Raises:
            Broken: It did not come, or something came that is no message.
        """
        until = time.monotonic() + (patience_s or self._patience_s)
        async with self._reports.news:
            while True:
                if self._reports.faults:
                    raise Broken(self._reports.faults.pop(0))
                if found := [report for report in self.since(after, kind) if where(report)]:
                    return found[0]
                left_s = until - time.monotonic()
                if left_s <= 0:
                    raise Broken(f"waited {patience_s or self._patience_s:g} s for {what}")
                try:
                    async with asyncio.timeout(left_s):
                        await self._reports.news.wait()
                except TimeoutError:
                    continue

    async def hello(self, patience_s: float | None = None) -> Hello:
        """The engine's next hello, or the last one if it was not answered."""
        if self._hello is None:
            await self.expect(Hello, "hello", after=self.place, patience_s=patience_s)
        assert self._hello is not None, "a hello was heard"
        return self._hello

    async def begin(
        self, world: Sequence[EntityPart], *, parts: int = 1, extra: Mapping[str, Any] | None = None
    ) -> None:
        """End what is, wait for a hello, and welcome it to a world in so many parts."""
        if self._hello is None:
            await self.end("reload")
        hello = await self.hello()
        self._hello = None
        self.epoch += 1
        self._said = self._heard = 0
        self.leasing = True
        self._reports.faults.clear()
        pages = [list(world[number::parts]) for number in range(parts)]
        await self.say_next(
            lambda n: Welcome(
                engine=hello.engine,
                instance=hello.instance,
                epoch=self.epoch,
                n=n,
                lease_ms=self.lease_ms,
                tick=100,
                entities=len(world),
                snapshots=len(pages),
            ),
            extra,
        )
        for page in pages:
            await self.say_next(lambda n, page=page: Snapshot(epoch=self.epoch, n=n, entities=tuple(page)))

    async def end(self, reason: EndReason) -> None:
        """Say that the epoch is over."""
        await self.say(Ended(epoch=self.epoch, reason=reason))

    def next_n(self) -> int:
        """The number of the message that is said next."""
        self._said += 1
        return self._said

    async def say_next(self, message: Callable[[int], BaseModel], extra: Mapping[str, Any] | None = None) -> None:
        """Write the message that is made of the next number, before anybody else writes one; `extra` as `say` has it."""
        async with self._writing:
            await self.say(message(self.next_n()), extra)

    async def say(self, message: BaseModel | bytes, extra: Mapping[str, Any] | None = None) -> None:
        """Write a message, with fields that no version of today has where `extra` names some."""
        if extra and isinstance(message, BaseModel):
            message = type("Later", (type(message),), {"model_config": {"extra": "allow"}})(
                **message.model_dump(), **extra
            )
        await self._orders.add(message)

    def change(self, entity_id: str, op: str, payload: Mapping[str, Any], **more: Any) -> ChangePart:
        """A change with an id of its own."""
        self._changes += 1
        settled: dict[str, Any] = {
            "change_id": f"sch_check{self._changes}",
            "expect_version": None,
            "rank": 1,
            "priority": 0,
            "depth": 0,
            "causation": None,
            "actor": "service:check",
            "tainted": False,
            "expires_in_ms": 60_000,
        }
        return ChangePart(entity_id=entity_id, op=op, payload=dict(payload), **{**settled, **more})

    async def send(self, *changes: ChangePart, atomic: bool = False, epoch: int | None = None) -> int:
        """Send changes in one message; the place to look from for what comes of it."""
        place = self.place
        if epoch is not None:
            await self.say(Change(epoch=epoch, n=1, atomic=atomic, changes=changes))
        else:
            await self.say_next(lambda n: Change(epoch=self.epoch, n=n, atomic=atomic, changes=changes))
        return place

    async def outcome(self, change: ChangePart, *, after: int) -> OutcomePart:
        """What became of a change.

        Raises:
            Broken: Nothing did.
        """
        found = await self.expect(
            Outcome,
            f"the outcome of {change.op} {change.entity_id}",
            after=after,
            where=lambda said: any(part.change_id == change.change_id for part in said.outcomes),
        )
        return next(part for part in found.outcomes if part.change_id == change.change_id)

    async def decide(self, entity_id: str, op: str, payload: Mapping[str, Any], **more: Any) -> OutcomePart:
        """Send one change, and what became of it."""
        change = self.change(entity_id, op, payload, **more)
        return await self.outcome(change, after=await self.send(change))

    async def _hear(self, raw: bytes) -> None:
        report = read_report(raw)
        if isinstance(report, Unreadable):
            await self._note(fault=f"it sent a message that is none: {report.message}")
        elif isinstance(report, Hello):
            if self._engine in {None, report.engine}:
                self._engine = report.engine
                self._hello = report
                await self._note(report)
        elif report.epoch == self.epoch:
            await self._count(report)
            if isinstance(report, Heartbeat) and self.leasing:
                await self.say_next(lambda n: Lease(epoch=self.epoch, n=n, lease_ms=self.lease_ms))
            await self._note(report)
        else:
            await self._note(report)

    async def _count(self, report: Numbered) -> None:
        if report.n != self._heard + 1:
            await self._note(fault=f"its message after n={self._heard} of an epoch has n={report.n}")
        self._heard = report.n

    async def _note(self, report: Report | None = None, *, fault: str | None = None) -> None:
        async with self._reports.news:
            if report is not None:
                self._reports.every.append(report)
            if fault is not None:
                self._reports.faults.append(fault)
            self._reports.news.notify_all()
