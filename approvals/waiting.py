"""Owns waiting for people: one listening connection a process wakes whoever waits, and the table alone says how it stands."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from contextlib import asynccontextmanager

import asyncpg

from approvals.model import CHANNEL, FINAL, Approval, counted
from body_broker.calls import Progress
from body_broker.storage.postgres import LOST
from body_broker.telemetry import get_logger
from body_broker.work.link import Link

log = get_logger(__name__)

WAIT_MAX_S = 300.0
"""The longest a client may have its call wait."""
TELL_EVERY_S = 3.0
"""How often a waiting client hears that it waits."""
_LOOK_AGAIN_S = 5.0  # without being woken: a connection may be lost without a word
_TIMEOUT_S = 5.0
_FAILURES = (*LOST, asyncpg.PostgresError)


class Waiters:
    """Everybody of this process who waits for an approval; made by `open_waiters`.

    A wait holds no connection of the pool: it is woken by the one that listens, and reads the approval each time.

    Args:
        read: Reads one approval.
        database_url: Where to listen; connected at the first wait.
        monotonic: Seconds.
    """

    def __init__(
        self,
        read: Callable[[str], Awaitable[Approval]],
        database_url: str,
        *,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._read, self._monotonic = read, monotonic
        self._link = Link(
            database_url,
            name="body-broker approvals",
            timeout_s=_TIMEOUT_S,
            heard=self._heard,
            lost=self._lost,
            channel=CHANNEL,
        )
        self._woken: dict[str, set[asyncio.Event]] = {}
        self._connecting: asyncio.Task[None] | None = None
        self._listens = self._closed = False

    async def wait(self, approval_id: str, *, timeout_s: float, progress: Progress | None = None) -> Approval:
        """The approval once nothing more comes of it, or a person must settle it, or the time is up, or this hub stops.

        Args:
            approval_id: Which.
            timeout_s: Seconds, at most `WAIT_MAX_S`; 0 only looks.
            progress: Hears every few seconds, and with every vote, whom it waits for.
        """
        began = self._monotonic()
        until = began + max(0.0, min(timeout_s, WAIT_MAX_S))
        with self._waking(approval_id) as woken:
            told, told_at = "", float("-inf")
            while True:
                await self._listen()
                woken.clear()
                found = await self._read(approval_id)
                now = self._monotonic()
                if is_settled(found) or now >= until or self._closed:
                    return found
                if progress is not None and ((said := waits_for(found)) != told or now - told_at >= TELL_EVERY_S):
                    await progress(round(now - began, 3), round(until - began, 3), said)
                    told, told_at = said, now
                pause = min(until - now, TELL_EVERY_S if progress is not None else _LOOK_AGAIN_S)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(pause):
                        await woken.wait()

    def waiting(self, approval_id: str | None = None) -> int:
        """How many wait here for one approval, or for any."""
        if approval_id is not None:
            return len(self._woken.get(approval_id, ()))
        return sum(len(waiting) for waiting in self._woken.values())

    def close(self) -> None:
        """Whoever waits goes away with what there is: this hub stops."""
        self._closed = True
        self._wake_all()

    async def disconnect(self) -> None:
        """End the listening connection."""
        if self._connecting is not None:
            await asyncio.wait({self._connecting})
        await self._link.close()

    async def _listen(self) -> None:
        """Listening before it is read: what happens in between wakes."""
        if self._listens or self._closed:
            return
        if self._connecting is None:
            self._connecting = asyncio.create_task(self._connect(), name="approvals-listener")
        # Shielded: a client that leaves must not leave half a connection behind, nor the others without one.
        await asyncio.shield(self._connecting)

    async def _connect(self) -> None:
        try:
            async with self._link.connection():
                self._listens = True
        except _FAILURES:
            log.warning("approvals_not_listening", exc_info=True)  # it is read every few seconds all the same
        finally:
            self._connecting = None

    def _lost(self) -> None:
        self._listens = False
        self._wake_all()

    @contextlib.contextmanager
    def _waking(self, approval_id: str) -> Generator[asyncio.Event]:
        woken = asyncio.Event()
        waiting = self._woken.setdefault(approval_id, set())
        waiting.add(woken)
        try:
            yield woken
        finally:
            waiting.discard(woken)
            if not waiting and self._woken.get(approval_id) is waiting:
                del self._woken[approval_id]

    def _heard(self, approval_id: str) -> None:
        for woken in self._woken.get(approval_id, ()):
            woken.set()

    def _wake_all(self) -> None:
        for waiting in self._woken.values():
            for woken in waiting:
                woken.set()


@asynccontextmanager
async def open_waiters(
    read: Callable[[str], Awaitable[Approval]],
    database_url: str,
    *,
    monotonic: Callable[[], float] = time.monotonic,
) -> AsyncGenerator[Waiters]:
    """Waiters until the way out, when whoever still waits is sent away with what there is."""
    waiters = Waiters(read, database_url, monotonic=monotonic)
    try:
        yield waiters
    finally:
        waiters.close()
        await waiters.disconnect()


def is_settled(approval: Approval) -> bool:
    """Whether waiting longer brings nothing: it has ended, or a person must say what became of it."""
    return approval.standing in FINAL or approval.standing == "unknown"


def waits_for(approval: Approval) -> str:
    """What a waiting client is told, in a line: `waiting for sre or admin: 0 of 1`."""
    if approval.standing != "pending":
        return {"approved": "approved, about to run", "executing": "running"}.get(approval.standing, approval.standing)
    progress: dict[str, tuple[int, int]] = {}
    for each in approval.requirements:
        yes = counted(each, approval.votes, asker=approval.asker)
        own = "your own second factor or " if each.own and approval.alone else ""
        whom = f"{own}{' or '.join(each.approvers)}"
        progress[whom] = max(progress.get(whom, (0, 0)), (min(yes, each.quorum), each.quorum), key=lambda n: n[1])
    return f"waiting for {', '.join(f'{whom}: {got} of {quorum}' for whom, (got, quorum) in sorted(progress.items()))}"
