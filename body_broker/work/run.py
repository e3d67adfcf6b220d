"""Owns one run of a piece of work, as its handler sees it: input, progress, and the three ways to have an effect."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Literal

from body_broker.calls import Json
from body_broker.errors import OutcomeUnknown
from body_broker.storage.postgres import Connection
from body_broker.text import clean
from body_broker.work.fence import Fence
from body_broker.work.model import LeaseLost, Origin, decode, encode

Interruption = Literal["cancelled", "stopping", "lost"]
"""Why a run is stopped: by its owner, by its worker's end, or because another worker has it."""

_LAST_LOOK_S = 1.0
_PROGRESS = """
UPDATE work SET progress = $3::text::jsonb WHERE id = $1 AND token = $2::bigint AND state = 'running' RETURNING id
"""
_OPEN = """
UPDATE work SET open_effect = $3 WHERE id = $1 AND token = $2::bigint AND state = 'running'
    AND (open_effect IS NULL OR open_effect = $3) RETURNING id
"""
# Recorded again when the first answer was lost with its connection.
_RECORD = """
WITH held AS (
    UPDATE work SET open_effect = NULL WHERE id = $1 AND token = $2::bigint AND state = 'running'
        AND (open_effect IS NULL OR open_effect = $3) RETURNING id)
INSERT INTO work_step (work, name, outcome) SELECT id, $3, $4::text::jsonb FROM held
ON CONFLICT (work, name) DO UPDATE SET outcome = excluded.outcome RETURNING work
"""
_GETS_ON = "UPDATE work SET attempts = 1 WHERE id = $1"
# No ON CONFLICT: where a handler repeats a commit whose answer was lost, the second effect must be rolled back.
_RECORD_COMMITTED = "INSERT INTO work_step (work, name, outcome) VALUES ($1, $2, $3::text::jsonb)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Claimed:
    """What a claim found: the work, which attempt this is, and the repeatable effect that an earlier one began.

    Attributes:
        created_at: When it was asked for, by the database, in UTC.
        expires_at: When it expires where it waits or is queued then; None is never.
    """

    kind: str
    origin: Origin
    input: Json
    attempt: int
    attempts_max: int
    created_at: datetime
    expires_at: datetime | None = None
    steps: Mapping[str, Json]
    begun: str | None = None


class Run:
    """One claimed attempt, handed to the handler. What the handler does outside the three effects happens at least once.

    Attributes:
        work: What was claimed.
        open_effect: The `once` effect that has begun and whose outcome is not recorded.
        interrupted: Why it is being stopped, if it is.
    """

    def __init__(self, fence: Fence, work: Claimed) -> None:
        self.fence = fence
        self.work = work
        self.open_effect: str | None = None
        self.interrupted: Interruption | None = None
        self._steps: dict[str, Json] = dict(work.steps)
        self._task: asyncio.Task[None] | None = None
        self._live = False

    @property
    def id(self) -> str:
        """The work's id: the key under which a repeatable outside effect is the same effect."""
        return self.fence.work_id

    @property
    def input(self) -> Json:
        """What it was given."""
        return self.work.input

    @property
    def origin(self) -> Origin:
        """Who asked for it and how; `origin.receipt` belongs into the transaction of an effect."""
        return self.work.origin

    @property
    def stopped(self) -> bool:
        """Whether a `CancelledError` of its handler was meant for it, and is not the handler's own fault."""
        return self.interrupted is not None or (self._task is not None and self._task.cancelling() > 0)

    def within_time(self, wait_s: float) -> float:
        """Seconds to wait instead, so that whatever comes before the work expires is still looked at: at most half of what is left."""
        if self.work.expires_at is None:
            return wait_s
        left_s = (self.work.expires_at - datetime.now(UTC)).total_seconds()
        return min(wait_s, max(left_s / 2, _LAST_LOOK_S))

    async def progress(self, done: float, total: float | None = None, message: str | None = None) -> None:
        """Publish how far it is; the form of `calls.Progress`, so that one function serves calls and work.

        Raises:
            LeaseLost: The run no longer owns its work.
        """
        said = message and clean(message, limit=500)
        await self.fence.write(_PROGRESS, encode({"done": done, "total": total, "message": said}, "progress"))

    @asynccontextmanager
    async def fenced(self) -> AsyncGenerator[Connection]:
        """A short transaction that can commit only while this run owns its work; write through its connection only.

        Raises:
            LeaseLost: The run no longer owns its work.
        """
        self._refuse_after_unknown()
        async with self.fence.transaction() as connection:
            yield connection

    async def step(self, name: str, effect: Callable[[], Awaitable[Json]]) -> Json:
        """The outcome of an outside effect that may be repeated; a later attempt reuses the recorded one.

        The effect gets `id` as its key where the far side takes one: a worker that was paused may still perform it late.

        Raises:
            LeaseLost: The run no longer owns its work.
        """
        self._refuse_after_unknown()
        if name not in self._steps:
            outcome = encode(await effect(), f"step {name}")
            await self.fence.write(_RECORD, name, outcome)
            self._steps[name] = decode(outcome)
        return self._steps[name]

    async def commit(self, name: str, effect: Callable[[Connection], Awaitable[Json]]) -> Json:
        """The outcome of an effect in our database, which happens exactly once: effect, outcome and fence commit together.

        Raises:
            LeaseLost: The run no longer owns its work; the effect is rolled back.
        """
        if name not in self._steps:
            async with self.fenced() as connection:
                outcome = encode(await effect(connection), f"step {name}")
                await connection.execute(_RECORD_COMMITTED, self.id, name, outcome)
            self._steps[name] = decode(outcome)
        return self._steps[name]

    async def gets_on(self, connection: Connection) -> None:
        """Count attempts anew, this one as the first, for it has come further than any before: long work may fail now and then.

        Args:
            connection: Of `fenced`, or of the effect of `commit`.
        """
        await connection.execute(_GETS_ON, self.id)
        self.work = replace(self.work, attempt=1)

    async def once(self, name: str, effect: Callable[[], Awaitable[Json]]) -> Json:
        """The outcome of an outside effect that must never be repeated.

        Once begun it is not interrupted by a cancel. A run that dies, stalls past its lease or fails inside it, or cannot
        record its outcome, ends as `unknown`; a person settles it.

        Raises:
            LeaseLost: The run no longer owned its work when the effect was about to begin, or when it had ended.
            OutcomeUnknown: The effect may or may not have happened.
        """
        self._refuse_after_unknown()
        if name in self._steps:
            return self._steps[name]
        self._yield_to_interruption()
        self.open_effect = name  # before it is written: a cancel that came in between would leave the row open
        try:
            await self.fence.write(_OPEN, name)
        except BaseException:
            self.open_effect = None
            raise
        try:
            outcome = encode(await effect(), f"step {name}")
            await self.fence.write(_RECORD, name, outcome)
        except LeaseLost:
            raise
        except BaseException as error:
            raise unknown(name) from error
        self.open_effect = None
        self._steps[name] = decode(outcome)
        self._yield_to_interruption()
        return self._steps[name]

    def begin(self, performance: Coroutine[None, None, None]) -> asyncio.Task[None]:
        """Start it as a task of its own; the worker's, as are the next four."""
        self._task = asyncio.create_task(performance, name=f"work {self.id}")
        return self._task

    def enter(self) -> None:
        """Note that the handler begins; from here on it can be interrupted."""
        self._live = True
        self._yield_to_interruption()

    def leave(self) -> None:
        """Note that the handler has ended: from here on nothing interrupts the writing of what became of it."""
        self._live = False

    def interrupt(self, why: Interruption) -> None:
        """Stop the handler where it stands, but not inside a `once` effect: that one is brought to its end first."""
        if self.interrupted is None:
            self.interrupted = why
            if self.open_effect is None:
                self._cancel()

    def abandon(self) -> None:
        """Stop the handler wherever it stands; inside a `once` effect its outcome is unknown."""
        self.interrupted = self.interrupted or "stopping"
        self._cancel()

    def _cancel(self) -> None:
        # A task cancelled before its first step would never come to write anything.
        if self._live and self._task is not None:
            self._task.cancel()

    def _yield_to_interruption(self) -> None:
        if self.interrupted is not None:
            raise asyncio.CancelledError

    def _refuse_after_unknown(self) -> None:
        if self.open_effect is not None:
            raise unknown(self.open_effect)


def unknown(effect: str) -> OutcomeUnknown:
    """The error of work whose `once` effect may or may not have happened."""
    return OutcomeUnknown("The effect may or may not have happened.", details={"effect": effect})


Handler = Callable[[Run], Awaitable[Json]]
"""What runs one kind of work; its result is any JSON value up to 4 MiB. What burns CPU leaves the event loop."""
