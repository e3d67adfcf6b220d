"""Owns the one appender of a process: records are chained at once, committed in groups, and never lost in silence.

When the database is away, records wait in order and are retried; when too many wait or for too long, nothing more is
taken, and so nothing is served that the audit does not know.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from itertools import islice

import asyncpg

from body_broker.audit.chain import Chain, key_id
from body_broker.audit.ledger import NOT_TAKEN, Row, append, chained, register
from body_broker.audit.record import Record
from body_broker.background import end
from body_broker.calls import Receipt
from body_broker.errors import Conflict, Detail, Unavailable
from body_broker.storage.postgres import Connection, Pool
from body_broker.telemetry import get_logger
from body_broker.text import new_id

_STOPPED = "The audit of this process has stopped."
_OUTAGE = 2  # failures in a row; a single one is a dropped connection, retried at once and unseen by whoever waits
# A database that runs without it acknowledges what a power cut then loses; a stronger setting is left alone.
_COMMIT_FOR_REAL = (
    "SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit') = 'off'"
)
_log = get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How an auditor groups, waits and gives up.

    Attributes:
        linger_s: The longest that a record nobody waits for is held back.
        batch_records: So many are committed at once, and waiting for more ends when they are there.
        batch_bytes: Upper bound of one statement, save for a single larger record.
        backlog_records: Uncommitted records beyond which `add` refuses.
        backlog_bytes: The same in bytes.
        silence_s: Time without a successful commit, while one is due, beyond which `add` refuses.
        attempt_s: How long one attempt to commit may take.
        retry_s: The longest pause between attempts.
    """

    linger_s: float = 0.1
    batch_records: int = 256
    batch_bytes: int = 8 * 1024 * 1024
    backlog_records: int = 10_000
    backlog_bytes: int = 64 * 1024 * 1024
    silence_s: float = 10
    attempt_s: float = 5
    retry_s: float = 1


class Auditor:
    """The appender of one chain; made by `open_auditor`.

    Attributes:
        writer: This chain's name, unguessable and used once.
        commits: Statements that the database took since the chain was opened.
    """

    def __init__(
        self, pool: Pool, chain: Chain, *, clock: Callable[[], float], monotonic: Callable[[], float], pace: Pace
    ) -> None:
        self.writer = chain.name
        self.commits = 0
        self._pool = pool
        self._chain = chain
        self._clock = clock
        self._monotonic = monotonic
        self._pace = pace
        self._queue: deque[Row] = deque()  # in order, from the first that is not known to be committed
        self._queue_bytes = 0
        self._durable = chain.sequence
        self._waiters: list[tuple[int, asyncio.Future[None]]] = []
        self._some = asyncio.Event()
        self._hurry = asyncio.Event()
        self._connection: asyncpg.pool.PoolConnectionProxy[asyncpg.Record] | None = None
        self._began = 0.0  # the loop's time when the last commit began
        self._trying_since: float | None = None
        self._closing = False
        self._stopped = False

    @property
    def backlog(self) -> int:
        """Records that are not committed yet."""
        return len(self._queue)

    @property
    def _full(self) -> bool:
        return len(self._queue) >= self._pace.batch_records or self._queue_bytes >= self._pace.batch_bytes

    def check(self) -> None:
        """Return where a record would be taken now; `add` asks this first, and /readyz may.

        Raises:
            Unavailable: The audit stopped, is too far behind, or the database has not taken a record for too long.
        """
        if self._stopped or self._closing:
            raise _unavailable(_STOPPED)
        if len(self._queue) >= self._pace.backlog_records or self._queue_bytes >= self._pace.backlog_bytes:
            raise _unavailable("The audit is too far behind to take another record.")
        since = self._trying_since
        if since is not None and self._monotonic() - since > self._pace.silence_s:
            raise _unavailable("The audit's database has not taken a record for too long.")

    def add(self, record: Record, body: bytes | None = None) -> Receipt:
        """Chain a record and queue it; it is committed soon, with others. Costs microseconds and never waits.

        Args:
            record: What happened; its digest is filled in from `body`, its time from the clock.
            body: The arguments' bytes, kept beside the chain, which holds only their digest.

        Raises:
            Unavailable: As `check`; the record is not taken and the call must not be served.
            TooLarge: The body is over BODY_BYTES_MAX.
        """
        assert record.kind not in ("opened", "closed"), "the auditor frames its own chain"
        self.check()
        return self._put(record, body)

    async def durable(self, receipt: Receipt) -> None:
        """Return when the record is committed; those who wait at the same time share one commit.

        A cancelled wait does not take the record back.

        Raises:
            Unavailable: The database did not take it, twice. The record stays queued and may still be committed:
                an effect that was not begun then stands as a decision without an outcome.
        """
        assert receipt.writer == self.writer, "a receipt is awaited where it was given"
        if receipt.sequence <= self._durable:
            return
        if self._stopped:
            raise _unavailable(_STOPPED)
        taken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.append((receipt.sequence, taken))
        self._hurry.set()
        await taken

    def _put(self, record: Record, body: bytes | None = None) -> Receipt:
        row = chained(self._chain, record, self._clock(), body)
        self._queue.append(row)
        self._queue_bytes += len(row.body) + len(body or b"")
        if len(self._queue) == 1:
            self._some.set()
        if self._full:
            self._hurry.set()
        return Receipt(self.writer, row.sequence)

    async def run(self) -> None:
        """Commit until cancelled, or until the chain turns out not to be ours alone."""
        self._began = asyncio.get_running_loop().time()
        try:
            while True:
                await self._due()
                await self._commit()
        finally:
            await self._disconnect(clean=self._trying_since is None)

    def stopped(self, task: asyncio.Task[None]) -> None:
        """Called when the appender's task has ended, however it did: whoever waits is told, and nothing more is taken."""
        self._stopped = True
        self._fail_waiters(_STOPPED)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.critical("audit_stopped", writer=self.writer, backlog=len(self._queue), error=repr(error))

    async def close(self) -> None:
        """Take no more, write the closing record and commit what is queued.

        Raises:
            Unavailable: The database does not take it; the log says how many records are lost.
        """
        self._closing = True
        receipt = self._put(Record(kind="closed"))
        try:
            await self.durable(receipt)
        except Unavailable:
            _log.error("audit_records_lost", writer=self.writer, records=len(self._queue))
            raise

    async def _due(self) -> None:
        loop = asyncio.get_running_loop()
        since = self._began  # what is queued now came after that
        while not self._queue:
            self._some.clear()
            await self._some.wait()
            since = loop.time()
        if self._waiters or self._full:
            return
        self._hurry.clear()
        try:
            async with asyncio.timeout_at(since + self._pace.linger_s):
                await self._hurry.wait()
        except TimeoutError:
            return

    async def _commit(self) -> None:
        """Commit the head of the queue, however many attempts it takes."""
        failures = 0
        self._began = asyncio.get_running_loop().time()
        while True:
            batch = self._batch()
            if self._trying_since is None:
                self._trying_since = self._monotonic()
            try:
                async with asyncio.timeout(self._pace.attempt_s):
                    await append(await self._connected(), self.writer, batch)
                break
            except Conflict:
                raise
            except Exception as error:  # noqa: BLE001 - whatever the driver raises, the records wait and `check` refuses in time
                failures += 1
                await self._disconnect()
                if failures == _OUTAGE:
                    _log.error("audit_not_taken", writer=self.writer, backlog=len(self._queue), error=repr(error))
            if failures >= _OUTAGE:
                self._fail_waiters("The audit's database does not take records.")
                await asyncio.sleep(min(self._pace.retry_s, 0.05 * 2**failures))
        if failures >= _OUTAGE:
            _log.warning("audit_taken_again", writer=self.writer, backlog=len(self._queue))
        self._trying_since = None
        self.commits += 1
        for row in batch:
            self._queue.popleft()
            self._queue_bytes -= len(row.body) + len(row.content or b"")
        self._tell_waiters(batch[-1].sequence)

    def _batch(self) -> list[Row]:
        batch: list[Row] = []
        size = 0
        for row in islice(self._queue, self._pace.batch_records):
            size += len(row.body) + len(row.content or b"")
            if batch and size > self._pace.batch_bytes:
                break
            batch.append(row)
        return batch

    def _tell_waiters(self, durable: int) -> None:
        self._durable = durable
        waiting = self._waiters
        self._waiters = []
        for waiter in waiting:
            if waiter[0] > durable:
                self._waiters.append(waiter)
            elif not waiter[1].done():
                waiter[1].set_result(None)

    def _fail_waiters(self, message: str) -> None:
        waiting, self._waiters = self._waiters, []
        for _, taken in waiting:
            if not taken.done():
                taken.set_exception(_unavailable(message))

    async def _connected(self) -> Connection:
        # Held for the chain's life: a release costs a round trip (RESET ALL) for every commit.
        if self._connection is None:
            connection = await self._pool.acquire()
            self._connection = connection
            await connection.execute(_COMMIT_FOR_REAL)
        return self._connection

    async def _disconnect(self, *, clean: bool = False) -> None:
        connection, self._connection = self._connection, None
        if connection is None:
            return
        with suppress(*NOT_TAKEN):  # one that broke while idle is the pool's again already
            if not clean:  # what it was doing is unknown, so nobody else gets it
                connection.terminate()
            await self._pool.release(connection, timeout=1)


@asynccontextmanager
async def open_auditor(
    pool: Pool,
    key: bytes,
    *,
    clock: Callable[[], float] = time.time,  # noqa: TID251 - the default of the injected clock
    monotonic: Callable[[], float] = time.monotonic,
    pace: Pace | None = None,
    details: Mapping[str, Detail] | None = None,
) -> AsyncGenerator[Auditor]:
    """A process's auditor on a chain of its own: `opened` is committed before it is yielded, `closed` on the way out.

    One connection of the pool is held meanwhile.

    Args:
        pool: A pool on a migrated database.
        key: 32 bytes; the same for every process that shares the database.
        clock: Unix seconds, for the records.
        monotonic: Seconds, for how long the database has been silent.
        pace: How it groups and gives up.
        details: What the opening record says of the process: its name, its version.

    Raises:
        Unavailable: The database did not take the opening record, or on the way out not the last ones.
    """
    auditor = await _begin(pool, key, clock=clock, monotonic=monotonic, pace=pace or Pace(), details=details or {})
    appender = asyncio.create_task(auditor.run(), name=f"audit {auditor.writer}")
    appender.add_done_callback(auditor.stopped)
    try:
        yield auditor
    finally:
        await _outlast(asyncio.create_task(_end(auditor, appender), name=f"audit close {auditor.writer}"))


async def _end(auditor: Auditor, appender: asyncio.Task[None]) -> None:
    try:
        await auditor.close()
    finally:
        await end(appender)


async def _outlast(task: asyncio.Task[None]) -> None:
    """Wait for the task even while being cancelled: a hub that is stopped closes its chain."""
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        raise cancelled from task.exception()
    task.result()


async def _begin(
    pool: Pool,
    key: bytes,
    *,
    clock: Callable[[], float],
    monotonic: Callable[[], float],
    pace: Pace,
    details: Mapping[str, Detail],
) -> Auditor:
    writer = new_id("wrt")
    begun: list[Chain] = []

    def opened(number: int) -> Row:
        begun.append(Chain(key, writer, number))
        return chained(begun[0], Record(kind="opened", details=details), clock())

    try:
        async with pool.acquire() as connection:
            await connection.execute(_COMMIT_FOR_REAL)
            await register(connection, writer, key_id(key), opened)
    except NOT_TAKEN as error:
        raise _unavailable("The audit cannot open its chain: the database does not take it.") from error
    return Auditor(pool, begun[0], clock=clock, monotonic=monotonic, pace=pace)


def _unavailable(message: str) -> Unavailable:
    return Unavailable(message, details={"component": "audit"})
