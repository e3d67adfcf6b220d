"""A process's records are chained in order, committed in groups, and framed by an opening and a closing one."""

from __future__ import annotations

import asyncio
import hashlib

import anyio
import pytest

from body_broker.audit.auditor import Auditor, Pace, open_auditor
from body_broker.audit.chain import key_id
from body_broker.audit.ledger import BODY_BYTES_MAX
from body_broker.audit.operators import record_operator
from body_broker.audit.record import Record, decode
from body_broker.audit.verify import verify
from body_broker.calls import Receipt
from body_broker.errors import TooLarge, Unavailable
from body_broker.storage.postgres import Pool
from tests.body_broker.audit.stored import KEY, actions, read_of, sequences
from tests.waiting import wait_until

FOREVER = Pace(linger_s=3600)


async def records_of(pool: Pool, writer: str) -> list[Record]:
    rows = await pool.fetch("SELECT body FROM audit_record WHERE writer = $1 ORDER BY seq", writer)
    return [decode(row["body"]) for row in rows]


async def test_a_chain_opens_and_closes_around_its_records(pool: Pool) -> None:
    async with open_auditor(pool, KEY, clock=lambda: 5.0, details={"process": "hub"}) as auditor:
        assert await sequences(pool, auditor.writer) == [1]
        receipt = auditor.add(read_of(1))
        assert receipt == Receipt(auditor.writer, 2)
    found = await records_of(pool, auditor.writer)
    assert [record.kind for record in found] == ["opened", "decision", "closed"]
    assert {record.at for record in found} == {5.0}
    assert found[0].details == {"process": "hub"}


async def test_a_writer_is_registered_with_its_key_and_the_next_number(pool: Pool) -> None:
    writers: list[str] = []
    for _ in range(3):
        async with open_auditor(pool, KEY) as auditor:
            writers.append(auditor.writer)
    rows = await pool.fetch("SELECT writer, number, key_id FROM audit_writer ORDER BY number")
    assert [tuple(row) for row in rows] == [(name, place, key_id(KEY)) for place, name in enumerate(writers, 1)]


async def test_writers_that_open_at_once_get_numbers_without_a_hole(pool: Pool) -> None:
    await asyncio.gather(*(record_operator(pool, KEY, operator="anna", action="config set") for _ in range(4)))
    rows = await pool.fetch("SELECT number FROM audit_writer ORDER BY number")
    assert [row["number"] for row in rows] == [1, 2, 3, 4]


async def test_a_durable_record_is_committed(pool: Pool) -> None:
    async with open_auditor(pool, KEY, pace=FOREVER) as auditor:
        receipt = auditor.add(read_of(1))
        await auditor.durable(receipt)
        assert await sequences(pool, auditor.writer) == [1, 2]
        assert auditor.backlog == 0
        await auditor.durable(receipt)  # a second time it is so at once


async def test_those_who_wait_together_share_one_commit(pool: Pool) -> None:
    async with open_auditor(pool, KEY, pace=FOREVER) as auditor:

        async def write(number: int) -> None:
            await auditor.durable(auditor.add(read_of(number)))

        await asyncio.gather(*(write(number) for number in range(200)))
        assert await sequences(pool, auditor.writer) == list(range(1, 202))
        assert auditor.commits <= 2


async def test_a_wait_takes_the_reads_before_it_along(pool: Pool) -> None:
    async with open_auditor(pool, KEY, pace=FOREVER) as auditor:
        for number in range(10):
            auditor.add(read_of(number))
        await auditor.durable(auditor.add(read_of(10)))
        assert (auditor.commits, auditor.backlog) == (1, 0)


@pytest.mark.parametrize("at_once", [True, False])
async def test_a_full_batch_is_committed_though_nobody_waits(pool: Pool, *, at_once: bool) -> None:
    async with open_auditor(pool, KEY, pace=FOREVER) as auditor:
        for number in range(256):
            auditor.add(read_of(number))
            if not at_once:
                await asyncio.sleep(0)  # so that the appender waits for more when the last one comes
        await wait_until(lambda: auditor.backlog == 0, "256 records are committed")
        assert auditor.commits == 1


async def test_one_record_is_committed_after_the_linger_though_nobody_waits(pool: Pool) -> None:
    async with open_auditor(pool, KEY) as auditor:
        auditor.add(read_of(1))
        await wait_until(lambda: auditor.backlog == 0, "the record is committed")
        assert await sequences(pool, auditor.writer) == [1, 2]


async def test_a_statement_is_bounded_in_bytes(pool: Pool) -> None:
    async with open_auditor(pool, KEY, pace=Pace(batch_bytes=3000)) as auditor:
        receipts = [auditor.add(read_of(number), b"x" * 2000) for number in range(6)]
        await auditor.durable(receipts[-1])
        assert auditor.commits == 6
        assert await actions(pool, auditor.writer) == [f"read_{number}" for number in range(6)]


async def test_the_chain_holds_the_digest_and_the_body_lies_beside_it(pool: Pool) -> None:
    body = b'{"query":"the lighthouse"}'
    async with open_auditor(pool, KEY) as auditor:
        receipt = auditor.add(read_of(1), body)
        auditor.add(read_of(2))
    rows = await pool.fetch("SELECT writer, seq, content FROM audit_body")
    assert [tuple(row) for row in rows] == [(receipt.writer, receipt.sequence, body)]
    found = await records_of(pool, auditor.writer)
    assert [record.digest for record in found] == [None, hashlib.sha256(body).hexdigest(), None, None]
    assert await pool.fetchval("SELECT count(*) FROM audit_record WHERE body LIKE '%lighthouse%'") == 0


async def test_bytes_that_are_no_text_are_kept_as_they_are(pool: Pool) -> None:
    body = bytes(range(256))
    async with open_auditor(pool, KEY) as auditor:
        auditor.add(read_of(1), body)
    assert await pool.fetchval("SELECT content FROM audit_body") == body


async def test_a_body_beyond_the_limit_is_refused_and_the_chain_goes_on(pool: Pool) -> None:
    async with open_auditor(pool, KEY) as auditor:
        with pytest.raises(TooLarge):
            auditor.add(read_of(1), bytes(BODY_BYTES_MAX + 1))
        auditor.add(read_of(2))
    assert await sequences(pool, auditor.writer) == [1, 2, 3]
    assert (await verify(pool, KEY)).intact


async def test_an_effect_can_refer_to_its_decision_in_its_own_transaction(pool: Pool) -> None:
    await pool.execute(
        "CREATE TABLE effect (writer text, seq bigint, FOREIGN KEY (writer, seq) REFERENCES audit_record (writer, seq))"
    )
    async with open_auditor(pool, KEY) as auditor:
        receipt = auditor.add(read_of(1))
        await auditor.durable(receipt)
        async with pool.acquire() as connection, connection.transaction():
            await connection.execute("INSERT INTO effect VALUES ($1, $2::bigint)", receipt.writer, receipt.sequence)
        auditor.add(Record(kind="outcome", verdict="ok", refers_to=receipt))
    assert (await records_of(pool, auditor.writer))[-2].refers_to == receipt


@pytest.mark.parametrize("kind", ["opened", "closed"])
async def test_nobody_else_frames_a_chain(pool: Pool, kind: str) -> None:
    async with open_auditor(pool, KEY) as auditor:
        with pytest.raises(AssertionError):
            auditor.add(Record(kind=kind))  # pyright: ignore[reportArgumentType] - one of the kinds


async def test_a_closed_auditor_takes_nothing(pool: Pool) -> None:
    async with open_auditor(pool, KEY) as auditor:
        pass
    with pytest.raises(Unavailable) as caught:
        auditor.add(read_of(1))
    assert caught.value.details == {"component": "audit"}
    with pytest.raises(Unavailable):
        await auditor.durable(Receipt(auditor.writer, 99))


async def test_a_process_that_is_being_cancelled_closes_its_chain_first(pool: Pool) -> None:
    # A cancelled anyio scope cancels every await inside it again.
    opened: list[Auditor] = []
    with anyio.CancelScope() as scope:
        async with open_auditor(pool, KEY, pace=FOREVER) as auditor:
            opened.append(auditor)
            auditor.add(read_of(1))
            scope.cancel()
            await anyio.sleep_forever()
    assert scope.cancelled_caught
    (auditor,) = opened
    assert auditor.backlog == 0
    assert [record.kind for record in await records_of(pool, auditor.writer)] == ["opened", "decision", "closed"]


async def test_a_cancelled_wait_does_not_take_the_record_back(pool: Pool) -> None:
    async with open_auditor(pool, KEY, pace=FOREVER) as auditor:
        receipt = auditor.add(read_of(1))
        waiting = asyncio.create_task(auditor.durable(receipt))
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.wait({waiting})
        await auditor.durable(auditor.add(read_of(2)))
        assert await sequences(pool, auditor.writer) == [1, 2, 3]


async def test_an_operators_command_stands_on_a_short_closed_chain(pool: Pool) -> None:
    receipt = await record_operator(pool, KEY, operator="anna", action="config set", body=b'{"key":"spawn"}')
    opened, command, closed = await records_of(pool, receipt.writer)
    assert (opened.kind, command.kind, closed.kind) == ("opened", "operator", "closed")
    assert (command.requester, command.action, command.verdict) == ("operator:anna", "config set", "allow")
    report = await verify(pool, KEY)
    assert report.intact
    assert report.notes_found == 1  # that no anchor was compared


async def test_two_writers_at_once_keep_two_whole_chains(pool: Pool) -> None:
    async def serve(count: int) -> str:
        async with open_auditor(pool, KEY) as auditor:
            for number in range(count):
                receipt = auditor.add(read_of(number))
                if number % 7 == 0:
                    await auditor.durable(receipt)
        return auditor.writer

    one, two = await asyncio.gather(serve(100), serve(150))
    assert await sequences(pool, one) == list(range(1, 103))
    assert await sequences(pool, two) == list(range(1, 153))
    report = await verify(pool, KEY)
    assert report.intact
    assert (report.writers, report.records) == (2, 254)
