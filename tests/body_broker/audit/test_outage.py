"""While the database is away nothing is lost, doubled or served unaudited; when it is back, all goes on by itself."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass

import pytest

from body_broker.audit.auditor import Auditor, Pace, open_auditor
from body_broker.audit.verify import verify
from body_broker.errors import Unavailable
from body_broker.storage.postgres import Pool, open_pool
from tests.body_broker.audit.stored import KEY, actions, break_connections, read_of, sequences
from tests.body_broker.audit.wire import Wire, wire_to
from tests.waiting import wait_until

QUICK = Pace(linger_s=0.001, retry_s=0.01)


@dataclass
class Clock:
    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
async def wired(database_url: str) -> AsyncIterator[tuple[Wire, Pool]]:
    """A pool whose wire can be cut; `pool` is another way to the same database."""
    async with wire_to(database_url) as (wire, url), open_pool(url) as found:
        yield wire, found


async def takes(auditor: Auditor) -> bool:
    try:
        auditor.check()
    except Unavailable:
        return False
    return True


async def refused(auditor: Auditor) -> None:
    """Who waits for a record is told that it did not come, and no other is taken."""
    receipt = auditor.add(read_of(1))
    with pytest.raises(Unavailable):
        await auditor.durable(receipt)
    with pytest.raises(Unavailable):
        auditor.add(read_of(2))


async def test_connections_terminated_mid_flush_leave_no_hole_and_no_double(pool: Pool, database_url: str) -> None:
    async with open_auditor(pool, KEY, pace=QUICK) as auditor:
        stop = asyncio.Event()

        async def write() -> int:
            number = 0
            while not stop.is_set():
                # Where two attempts in a row are struck, the record stays queued: what is asked here is that it comes once.
                receipt = auditor.add(read_of(number))
                number += 1
                try:
                    await auditor.durable(receipt)
                except Unavailable:
                    await asyncio.sleep(0)
            return number

        writing = [asyncio.create_task(write()) for _ in range(3)]
        broken = 0
        for _ in range(10):
            commits = auditor.commits
            await wait_until(lambda before=commits: auditor.commits > before, "a commit went through")
            broken += await break_connections(database_url)
        stop.set()
        total = sum(await asyncio.gather(*writing))
        assert broken > 0
    assert await sequences(pool, auditor.writer) == list(range(1, total + 3))
    assert (await verify(pool, KEY)).intact


async def test_one_dropped_connection_is_not_seen_by_who_waits(pool: Pool, wired: tuple[Wire, Pool]) -> None:
    wire, weak = wired
    async with open_auditor(weak, KEY, pace=QUICK) as auditor:
        await auditor.durable(auditor.add(read_of(1)))
        wire.cut_streams()
        await auditor.durable(auditor.add(read_of(2)))
    assert await actions(pool, auditor.writer) == ["read_1", "read_2"]


async def test_a_commit_whose_answer_was_lost_is_found_and_not_doubled(pool: Pool, wired: tuple[Wire, Pool]) -> None:
    wire, weak = wired
    async with open_auditor(weak, KEY, pace=QUICK) as auditor:
        await auditor.durable(auditor.add(read_of(1)))
        wire.lose_next_reply()
        receipts = [auditor.add(read_of(number), b"body") for number in (2, 3, 4)]
        await auditor.durable(receipts[-1])
        assert wire.replies_lost == 1
    assert await actions(pool, auditor.writer) == ["read_1", "read_2", "read_3", "read_4"]
    assert await pool.fetchval("SELECT count(*) FROM audit_body") == 3
    assert (await verify(pool, KEY)).intact


async def test_a_write_is_refused_while_the_database_is_away_and_its_record_comes_later(
    pool: Pool, wired: tuple[Wire, Pool]
) -> None:
    wire, weak = wired
    async with open_auditor(weak, KEY, pace=QUICK) as auditor:
        wire.cut()
        receipt = auditor.add(read_of(1))
        with pytest.raises(Unavailable) as caught:
            await auditor.durable(receipt)
        assert caught.value.details == {"component": "audit"}
        assert caught.value.retryable
        assert auditor.backlog == 1
        wire.mend()
        await wait_until(lambda: auditor.backlog == 0, "the record is committed after all")
    assert await actions(pool, auditor.writer) == ["read_1"]


async def test_a_database_that_hangs_is_given_up_on_and_taken_up_again(pool: Pool, wired: tuple[Wire, Pool]) -> None:
    wire, weak = wired
    async with open_auditor(weak, KEY, pace=Pace(linger_s=0.001, retry_s=0.01, attempt_s=0.5)) as auditor:
        wire.hang()
        receipt = auditor.add(read_of(1))
        with pytest.raises(Unavailable):
            await auditor.durable(receipt)
        wire.flow()
        await wait_until(lambda: auditor.backlog == 0, "the record is committed after all")
    assert await actions(pool, auditor.writer) == ["read_1"]


async def test_a_full_backlog_takes_nothing_until_the_database_is_back(pool: Pool, wired: tuple[Wire, Pool]) -> None:
    wire, weak = wired
    async with open_auditor(weak, KEY, pace=Pace(linger_s=0.001, retry_s=0.01, backlog_records=50)) as auditor:
        wire.cut()
        for number in range(50):
            auditor.add(read_of(number))
        with pytest.raises(Unavailable):
            auditor.add(read_of(50))
        wire.mend()
        await wait_until(lambda: takes(auditor), "records are taken again")
        await wait_until(lambda: auditor.backlog == 0, "the backlog is committed")
        auditor.add(read_of(50))
    assert await actions(pool, auditor.writer) == [f"read_{number}" for number in range(51)]
    assert (await verify(pool, KEY)).intact


async def test_the_backlog_is_bounded_in_bytes_too(wired: tuple[Wire, Pool]) -> None:
    wire, weak = wired
    async with open_auditor(weak, KEY, pace=Pace(linger_s=0.001, retry_s=0.01, backlog_bytes=10_000)) as auditor:
        wire.cut()
        auditor.add(read_of(1), b"x" * 10_000)
        with pytest.raises(Unavailable):
            auditor.add(read_of(2))
        wire.mend()
        await wait_until(lambda: takes(auditor), "records are taken again")


async def test_ten_seconds_of_silence_stop_even_reads(pool: Pool, wired: tuple[Wire, Pool]) -> None:
    wire, weak = wired
    clock = Clock()
    async with open_auditor(weak, KEY, monotonic=clock, pace=QUICK) as auditor:
        wire.cut()
        with pytest.raises(Unavailable):
            await auditor.durable(auditor.add(read_of(1)))
        clock.now += 10
        auditor.add(read_of(2))
        clock.now += 0.1
        with pytest.raises(Unavailable):
            auditor.add(read_of(3))
        wire.mend()
        await wait_until(lambda: takes(auditor), "records are taken again")
        clock.now += 3600  # an hour without a record is no silence: nothing was due
        auditor.add(read_of(4))
    assert await actions(pool, auditor.writer) == ["read_1", "read_2", "read_4"]


async def test_closing_without_the_database_says_that_records_are_lost(wired: tuple[Wire, Pool]) -> None:
    wire, weak = wired
    async with AsyncExitStack() as chain:
        auditor = await chain.enter_async_context(open_auditor(weak, KEY, pace=QUICK))
        wire.cut()
        auditor.add(read_of(1))
        with pytest.raises(Unavailable):
            await chain.aclose()
        assert auditor.backlog == 2  # the read and the closing record
    wire.mend()


async def test_no_chain_opens_without_the_database(wired: tuple[Wire, Pool]) -> None:
    wire, weak = wired
    wire.cut()
    with pytest.raises(Unavailable):
        async with open_auditor(weak, KEY):
            pytest.fail("an auditor without a database")
    wire.mend()


async def test_a_writer_that_finds_its_place_taken_stops_for_good(pool: Pool) -> None:
    async with AsyncExitStack() as chain:
        auditor = await chain.enter_async_context(open_auditor(pool, KEY, pace=QUICK))
        await pool.execute(
            "INSERT INTO audit_record (writer, seq, mac, body) VALUES ($1, 2, $2, '{}')", auditor.writer, b"m" * 32
        )
        await refused(auditor)
        with pytest.raises(Unavailable):
            await chain.aclose()


async def test_a_writer_whose_task_was_ended_takes_nothing(pool: Pool) -> None:
    async with AsyncExitStack() as chain:
        auditor = await chain.enter_async_context(open_auditor(pool, KEY, pace=QUICK))
        (appender,) = [task for task in asyncio.all_tasks() if task.get_name() == f"audit {auditor.writer}"]
        appender.cancel()
        await refused(auditor)
        with pytest.raises(Unavailable):
            await chain.aclose()
