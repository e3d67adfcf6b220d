"""The newest records are readable, over all writers, by time."""

from __future__ import annotations

import pytest

from body_broker.audit.auditor import open_auditor
from body_broker.audit.record import Record
from body_broker.audit.trail import tail
from body_broker.errors import Conflict
from body_broker.storage.postgres import Pool
from tests.body_broker.audit.stored import KEY, read_of


async def test_the_newest_records_of_all_writers_come_first(pool: Pool) -> None:
    times = iter(range(1, 100))

    def clock() -> float:
        return float(next(times))

    async with open_auditor(pool, KEY, clock=clock) as one, open_auditor(pool, KEY, clock=clock) as two:
        for number in range(4):
            (one if number % 2 else two).add(read_of(number))
    found = await tail(pool, 4)
    assert [entry.record.kind for entry in found] == ["closed", "closed", "decision", "decision"]
    assert [entry.record.action for entry in found[2:]] == ["read_3", "read_2"]
    assert found[2].receipt.writer == one.writer
    assert [entry.record.at for entry in found] == [8.0, 7.0, 6.0, 5.0]


async def test_records_are_found_by_kind_action_and_requester(pool: Pool) -> None:
    async with open_auditor(pool, KEY) as auditor:
        auditor.add(Record(kind="refusal", action="delete_document", requester="tier:gold", rules=("default-deny",)))
        auditor.add(read_of(1))
        auditor.add(read_of(2))
    assert [entry.record.action for entry in await tail(pool, kind="refusal")] == ["delete_document"]
    assert [entry.record.kind for entry in await tail(pool, action="read_2")] == ["decision"]
    assert len(await tail(pool, requester="tier:silver")) == 2
    assert await tail(pool, requester="tier:silver", action="delete_document") == []


async def test_a_record_that_was_tampered_with_is_said_and_not_shown(pool: Pool) -> None:
    async with open_auditor(pool, KEY) as auditor:
        auditor.add(read_of(1))
    await pool.execute("UPDATE audit_record SET body = '[1]' WHERE seq = 2")
    with pytest.raises(Conflict):
        await tail(pool)
