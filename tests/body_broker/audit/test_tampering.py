"""Whoever changes the audit in the database is found out, and the report names the place and what was done."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import orjson
import pytest

from body_broker.audit import verify as verification
from body_broker.audit.anchor import write_anchor
from body_broker.audit.auditor import open_auditor
from body_broker.audit.chain import Chain, key_id, link
from body_broker.audit.checkpoints import checkpoint
from body_broker.audit.operators import record_operator
from body_broker.audit.record import Record, encode
from body_broker.audit.trail import forget_bodies
from body_broker.audit.verify import verify
from body_broker.storage.postgres import Pool
from tests.body_broker.audit.stored import KEY, named, read_of

OTHER = b"o" * 32


@pytest.fixture
async def writer(pool: Pool) -> str:
    """A closed chain: opened, ten decisions with bodies, closed; then one more, so that it is not the last."""
    async with open_auditor(pool, KEY) as auditor:
        for number in range(10):
            auditor.add(read_of(number), b'{"n":%d}' % number)
    await record_operator(pool, KEY, operator="anna", action="config set")
    return auditor.writer


@pytest.fixture
def anchor(tmp_path: Path) -> Path:
    return tmp_path / "anchor.jsonl"


async def forge(pool: Pool, writer: str, sequence: int) -> None:
    """Append what looks like a record, linked to the one before it, by somebody who has another key."""
    previous = await pool.fetchval(
        "SELECT mac FROM audit_record WHERE writer = $1 AND seq = $2::bigint", writer, sequence - 1
    )
    body = encode(read_of(99), sequence, 1.0, None)
    mac = link(OTHER, writer, previous, sequence, body)
    await pool.execute(
        "INSERT INTO audit_record (writer, seq, mac, body) VALUES ($1, $2::bigint, $3, $4)",
        writer,
        sequence,
        mac,
        body.decode(),
    )


async def cut_after(pool: Pool, writer: str, sequence: int) -> None:
    await pool.execute("DELETE FROM audit_record WHERE writer = $1 AND seq > $2::bigint", writer, sequence)


@pytest.mark.usefixtures("writer")
async def test_an_untouched_audit_has_no_breach_and_is_counted(pool: Pool, anchor: Path) -> None:
    await write_anchor(pool, KEY, anchor)
    report = await verify(pool, KEY, anchor)
    assert report.intact
    assert report.breaches == ()
    assert report.notes == ()
    assert (report.writers, report.records, report.bodies) == (2, 15, 10)
    assert (report.checkpoints, report.anchor_lines) == (1, 1)


async def test_an_empty_audit_has_no_breach(pool: Pool, anchor: Path) -> None:
    await write_anchor(pool, KEY, anchor)
    report = await verify(pool, KEY, anchor)
    assert report.intact
    assert report.records == 0


async def test_an_edit_is_named(pool: Pool, writer: str) -> None:
    await pool.execute(
        "UPDATE audit_record SET body = replace(body, 'allow', 'deny') WHERE writer = $1 AND seq = 4", writer
    )
    report = await verify(pool, KEY)
    assert named(report) == {("edited", writer, 4)}
    assert str(report.breaches[0]) == f"edited: {writer}: Record 4 is not what was written."
    assert not report.intact


async def test_a_deleted_record_is_named(pool: Pool, writer: str) -> None:
    await pool.execute("DELETE FROM audit_record WHERE writer = $1 AND seq IN (4, 5)", writer)
    report = await verify(pool, KEY)
    assert named(report) == {("deleted", writer, 4)}
    assert "4 to 5" in report.breaches[0].text


async def test_two_exchanged_records_are_named(pool: Pool, writer: str) -> None:
    for before, after in ((4, 1000), (7, 4), (1000, 7)):
        await pool.execute(
            "UPDATE audit_record SET seq = $3::bigint WHERE writer = $1 AND seq = $2::bigint", writer, before, after
        )
    assert ("reordered", writer, 4) in named(await verify(pool, KEY))


async def test_a_record_that_was_cut_out_and_closed_up_is_named(pool: Pool, writer: str) -> None:
    await pool.execute("DELETE FROM audit_record WHERE writer = $1 AND seq = 4", writer)
    for sequence in range(5, 13):
        await pool.execute(
            "UPDATE audit_record SET seq = $2::bigint - 1 WHERE writer = $1 AND seq = $2::bigint", writer, sequence
        )
    assert ("reordered", writer, 4) in named(await verify(pool, KEY))


async def test_a_forged_append_is_named(pool: Pool, writer: str) -> None:
    await forge(pool, writer, 13)
    await forge(pool, writer, 14)
    report = await verify(pool, KEY)
    assert named(report) == {("forged", writer, 13)}
    assert "13 to 14" in report.breaches[0].text


async def test_a_chain_cut_short_is_named_by_a_checkpoint(pool: Pool, writer: str) -> None:
    await checkpoint(pool, KEY)
    await cut_after(pool, writer, 8)
    report = await verify(pool, KEY)
    assert named(report) == {("truncated", writer, 9)}
    assert "had 12" in report.breaches[0].text
    assert any(writer in note for note in report.notes)  # no closing record any more


async def test_a_hole_where_a_checkpoint_stood_is_named_once_and_rightly(pool: Pool) -> None:
    async with open_auditor(pool, KEY) as auditor:
        pinned = auditor.add(read_of(1))
        await auditor.durable(pinned)
        await checkpoint(pool, KEY)
        auditor.add(read_of(2))
    await pool.execute(
        "DELETE FROM audit_record WHERE writer = $1 AND seq = $2::bigint", pinned.writer, pinned.sequence
    )
    assert named(await verify(pool, KEY)) == {("deleted", pinned.writer, pinned.sequence)}


async def test_a_record_rewritten_with_the_key_is_named_by_a_checkpoint(pool: Pool) -> None:
    async with open_auditor(pool, KEY) as auditor:
        pass
    await checkpoint(pool, KEY)
    chain = Chain(KEY, auditor.writer, 1)
    for kind in ("opened", "closed"):
        body = encode(Record(kind=kind), chain.sequence + 1, 1.0, None)
        mac = chain.extend(body)
        await pool.execute(
            "UPDATE audit_record SET mac = $2, body = $3 WHERE writer = $1 AND seq = $4::bigint",
            auditor.writer,
            mac,
            body.decode(),
            chain.sequence,
        )
    assert named(await verify(pool, KEY)) == {("forged", auditor.writer, 2)}


async def test_checkpoints_and_chain_cut_short_together_are_named_by_the_anchor(
    pool: Pool, writer: str, anchor: Path
) -> None:
    await write_anchor(pool, KEY, anchor)
    await cut_after(pool, writer, 8)
    await pool.execute("DELETE FROM audit_checkpoint")
    assert (await verify(pool, KEY)).intact  # what the anchor is for
    report = await verify(pool, KEY, anchor)
    assert named(report) == {("truncated", "checkpoints", 1), ("truncated", writer, 9)}


async def test_an_audit_emptied_altogether_is_found_by_the_anchor(pool: Pool, writer: str, anchor: Path) -> None:
    await write_anchor(pool, KEY, anchor)
    await pool.execute("TRUNCATE audit_record, audit_body, audit_writer, audit_checkpoint")
    report = await verify(pool, KEY, anchor)
    assert ("truncated", writer, 1) in named(report)
    assert report.breaches_found == 3  # the checkpoint and both writers


async def test_a_checkpoint_made_after_the_cut_does_not_hide_it(pool: Pool, writer: str, anchor: Path) -> None:
    await write_anchor(pool, KEY, anchor)
    await cut_after(pool, writer, 8)
    await pool.execute("DELETE FROM audit_checkpoint")
    await checkpoint(pool, KEY)
    report = await verify(pool, KEY, anchor)
    assert named(report) == {("forged", "checkpoints", 1), ("truncated", writer, 9)}


async def test_a_writer_that_vanished_leaves_a_hole_in_the_register(pool: Pool, writer: str) -> None:
    for table in ("audit_record", "audit_body", "audit_writer"):
        await pool.execute(f"DELETE FROM {table} WHERE writer = $1", writer)  # noqa: S608 - our own table names
    assert named(await verify(pool, KEY)) == {("deleted", "writers", 1)}


async def test_records_without_a_registered_writer_are_named(pool: Pool, writer: str) -> None:
    await pool.execute("DELETE FROM audit_writer WHERE writer = $1", writer)
    assert ("forged", writer, None) in named(await verify(pool, KEY))


async def test_a_registered_writer_without_any_record_is_named(pool: Pool, writer: str) -> None:
    await cut_after(pool, writer, 0)
    assert named(await verify(pool, KEY)) == {("deleted", writer, 1)}


@pytest.mark.usefixtures("writer")
async def test_a_whole_chain_forged_with_another_key_is_named(pool: Pool) -> None:
    forged = Chain(OTHER, "wrt_forged", 3)
    await pool.execute("INSERT INTO audit_writer (writer, number, key_id) VALUES ('wrt_forged', 3, $1)", key_id(KEY))
    for kind in ("opened", "closed"):
        body = encode(Record(kind=kind), forged.sequence + 1, 1.0, None)
        mac = forged.extend(body)
        await pool.execute(
            "INSERT INTO audit_record (writer, seq, mac, body) VALUES ('wrt_forged', $1::bigint, $2, $3)",
            forged.sequence,
            mac,
            body.decode(),
        )
    assert named(await verify(pool, KEY)) == {("forged", "wrt_forged", 1)}


async def test_a_changed_registration_breaks_its_chain(pool: Pool, writer: str) -> None:
    await pool.execute("UPDATE audit_writer SET number = 9 WHERE writer = $1", writer)
    found = named(await verify(pool, KEY))
    assert ("edited", writer, 1) in found
    assert ("deleted", "writers", 1) in found


@pytest.mark.usefixtures("writer")
async def test_a_chain_of_an_unknown_key_is_not_called_sound(pool: Pool) -> None:
    async with open_auditor(pool, OTHER) as auditor:
        auditor.add(read_of(1))
    report = await verify(pool, KEY)
    assert named(report) == {("unknown_key", auditor.writer, None)}
    assert key_id(OTHER) in report.breaches[0].text


@pytest.mark.usefixtures("writer")
async def test_checkpoints_of_an_unknown_key_are_named_and_their_successors_hold(pool: Pool) -> None:
    await checkpoint(pool, OTHER)
    await record_operator(pool, KEY, operator="anna", action="config set")
    await checkpoint(pool, KEY)
    assert named(await verify(pool, KEY)) == {("unknown_key", "checkpoints", 1)}


async def test_an_edited_checkpoint_is_named(pool: Pool, writer: str) -> None:
    await checkpoint(pool, KEY)
    await record_operator(pool, KEY, operator="anna", action="config set")
    await checkpoint(pool, KEY)
    await pool.execute("UPDATE audit_checkpoint SET body = replace(body, $1, 'wrt_x') WHERE number = 1", writer)
    assert ("edited", "checkpoints", 1) in named(await verify(pool, KEY))


@pytest.mark.usefixtures("writer")
async def test_a_deleted_checkpoint_is_named(pool: Pool) -> None:
    await checkpoint(pool, KEY)
    await record_operator(pool, KEY, operator="anna", action="config set")
    await checkpoint(pool, KEY)
    await pool.execute("DELETE FROM audit_checkpoint WHERE number = 1")
    assert named(await verify(pool, KEY)) == {("deleted", "checkpoints", 1)}


async def test_a_changed_body_is_named(pool: Pool, writer: str) -> None:
    await pool.execute("UPDATE audit_body SET content = '{}' WHERE writer = $1 AND seq = 5", writer)
    assert named(await verify(pool, KEY)) == {("body_changed", writer, 5)}


async def test_a_body_beside_a_record_that_has_none_is_named(pool: Pool, writer: str) -> None:
    await pool.execute("INSERT INTO audit_body (writer, seq, content) VALUES ($1, 1, '{}')", writer)
    assert named(await verify(pool, KEY)) == {("body_changed", writer, 1)}


@pytest.mark.usefixtures("writer")
async def test_bodies_may_be_forgotten_and_the_chain_still_verifies(pool: Pool) -> None:
    await pool.execute("UPDATE audit_body SET kept_at = now() - interval '40 days' WHERE seq <= 4")
    assert await forget_bodies(pool, timedelta(days=30)) == 3
    report = await verify(pool, KEY)
    assert report.intact
    assert report.bodies == 7
    assert await forget_bodies(pool, timedelta(0)) == 7
    assert (await verify(pool, KEY)).intact


async def test_body_that_is_no_json_does_not_stop_the_verdict(pool: Pool, writer: str) -> None:
    await pool.execute("UPDATE audit_record SET body = '[1]' WHERE writer = $1 AND seq = 4", writer)
    assert named(await verify(pool, KEY)) == {("edited", writer, 4), ("body_changed", writer, 4)}


async def test_chains_longer_than_a_page_verify_and_breaches_are_bounded(
    pool: Pool, monkeypatch: pytest.MonkeyPatch, writer: str
) -> None:
    monkeypatch.setattr(verification, "_PAGE", 3)
    monkeypatch.setattr(verification, "NAMED_MAX", 2)
    await checkpoint(pool, KEY)
    assert (await verify(pool, KEY)).intact
    await pool.execute("DELETE FROM audit_record WHERE writer = $1 AND seq % 2 = 0", writer)
    report = await verify(pool, KEY)
    assert len(report.breaches) == 2
    assert report.breaches_found == 6


async def test_a_hub_may_go_on_writing_while_the_audit_is_verified(pool: Pool, anchor: Path) -> None:
    async with open_auditor(pool, KEY) as auditor:
        for number in range(20):
            await auditor.durable(auditor.add(read_of(number)))
            if number % 5 == 0:
                await write_anchor(pool, KEY, anchor)
            assert (await verify(pool, KEY, anchor)).intact
    newest = await checkpoint(pool, KEY)
    assert orjson.loads(newest.body)["heads"] == [[auditor.writer, 22, newest.heads[0].mac, True]]
