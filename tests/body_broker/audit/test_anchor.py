"""The checkpoints' chain, and its copy in a file that the database's owner does not hold."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import orjson
import pytest

from body_broker.audit.anchor import write_anchor
from body_broker.audit.auditor import open_auditor
from body_broker.audit.checkpoints import checkpoint
from body_broker.audit.ledger import LOCK
from body_broker.audit.operators import record_operator
from body_broker.audit.verify import verify
from body_broker.errors import Conflict, Unavailable
from body_broker.storage.postgres import Pool
from tests.body_broker.audit.stored import KEY, named, read_of
from tests.waiting import wait_until


@pytest.fixture
def anchor(tmp_path: Path) -> Path:
    return tmp_path / "anchor.jsonl"


async def happen(pool: Pool) -> None:
    await record_operator(pool, KEY, operator="anna", action="config set")


def lines_of(anchor: Path) -> list[bytes]:
    return anchor.read_bytes().splitlines(keepends=True)


def rewrite(anchor: Path, *lines: bytes) -> None:
    anchor.write_bytes(b"".join(lines))


def numbers(anchor: Path) -> list[int]:
    return [orjson.loads(line)["number"] for line in lines_of(anchor)]


def mode(file: Path) -> int:
    return file.stat().st_mode & 0o777


def exists(file: Path) -> bool:
    return os.path.lexists(file)


async def test_a_checkpoint_lists_the_head_of_every_writer(pool: Pool) -> None:
    await happen(pool)
    async with open_auditor(pool, KEY) as auditor:
        await auditor.durable(auditor.add(read_of(1)))
        made = await checkpoint(pool, KEY)
    assert made.number == 1
    assert [(head.sequence, head.closed) for head in made.heads] == [(3, True), (2, False)]
    assert made.heads[1].writer == auditor.writer


async def test_nothing_moved_makes_no_new_checkpoint(pool: Pool) -> None:
    await happen(pool)
    assert await checkpoint(pool, KEY) == await checkpoint(pool, KEY)


async def test_a_closed_writer_is_listed_once_and_an_open_one_until_it_closes(pool: Pool) -> None:
    async with open_auditor(pool, KEY) as auditor:
        await happen(pool)
        first = await checkpoint(pool, KEY)
        await auditor.durable(auditor.add(read_of(1)))
        second = await checkpoint(pool, KEY)
    third = await checkpoint(pool, KEY)
    listed = [
        [(head.writer == auditor.writer, head.sequence) for head in made.heads] for made in (first, second, third)
    ]
    assert listed == [[(True, 1), (False, 3)], [(True, 2)], [(True, 3)]]
    assert third.writers == 2


async def test_a_checkpoint_that_was_tampered_with_is_no_ground_to_leave_a_writer_out(pool: Pool) -> None:
    await happen(pool)
    made = await checkpoint(pool, KEY)
    await pool.execute("""UPDATE audit_checkpoint SET body = replace(body, '"writers":1', '"writers":9')""")
    again = await checkpoint(pool, KEY)
    assert again.number == 2
    assert again.heads == made.heads


async def test_checkpoints_made_at_once_are_numbered_without_a_hole(pool: Pool) -> None:
    async def work() -> None:
        await happen(pool)
        await checkpoint(pool, KEY)

    await asyncio.gather(*(work() for _ in range(4)))
    assert (await verify(pool, KEY)).intact


async def test_a_checkpoint_waits_for_whoever_makes_another(pool: Pool) -> None:
    await happen(pool)
    async with pool.acquire() as other:
        async with other.transaction():
            await other.execute("SELECT pg_advisory_xact_lock($1::bigint)", LOCK)
            making = asyncio.create_task(checkpoint(pool, KEY))
            waiting = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
            await wait_until(lambda: other.fetchval(waiting), "the checkpoint waits")
        assert (await making).number == 1


async def test_the_anchor_is_private_and_holds_every_checkpoint_once(pool: Pool, anchor: Path) -> None:
    await happen(pool)
    await write_anchor(pool, KEY, anchor)
    await write_anchor(pool, KEY, anchor)
    await happen(pool)
    await checkpoint(pool, KEY)
    await happen(pool)
    newest = await write_anchor(pool, KEY, anchor)
    assert numbers(anchor) == [1, 2, 3]
    assert newest.number == 3
    assert mode(anchor) == 0o600
    assert not any(b"operator:anna" in line for line in lines_of(anchor))


async def test_hubs_may_share_an_anchor(pool: Pool, anchor: Path) -> None:
    async def work() -> None:
        await happen(pool)
        await write_anchor(pool, KEY, anchor)

    await asyncio.gather(*(work() for _ in range(4)))
    assert numbers(anchor) == list(range(1, len(numbers(anchor)) + 1))
    report = await verify(pool, KEY, anchor)
    assert report.intact
    assert report.anchor_lines == report.checkpoints


async def test_half_a_line_left_by_a_power_cut_is_removed_by_the_next_append(pool: Pool, anchor: Path) -> None:
    await happen(pool)
    await write_anchor(pool, KEY, anchor)
    rewrite(anchor, *lines_of(anchor), b'{"number":2,"ma')
    assert (await verify(pool, KEY, anchor)).intact
    await happen(pool)
    await write_anchor(pool, KEY, anchor)
    assert numbers(anchor) == [1, 2]


async def test_lines_longer_than_a_read_are_found_whole(pool: Pool, anchor: Path) -> None:
    # 1,500 open writers make a checkpoint of more than 100 kB.
    await pool.execute(
        "INSERT INTO audit_writer SELECT 'wrt_' || n, n, 'deadbeef' FROM generate_series(1, 1500) AS n;"
        "INSERT INTO audit_record (writer, seq, mac, body)"
        " SELECT 'wrt_' || n, 1, decode(repeat('00', 32), 'hex'), '{\"at\":1}' FROM generate_series(1, 1500) AS n"
    )
    await write_anchor(pool, KEY, anchor)
    assert len(lines_of(anchor)[0]) > 100_000
    await happen(pool)
    await write_anchor(pool, KEY, anchor)
    assert numbers(anchor) == [1, 2]


async def test_an_anchor_of_another_database_is_not_continued(pool: Pool, anchor: Path) -> None:
    await happen(pool)
    await write_anchor(pool, KEY, anchor)
    await pool.execute("DELETE FROM audit_checkpoint")
    before = lines_of(anchor)
    with pytest.raises(Conflict) as caught:
        await write_anchor(pool, KEY, anchor)
    assert "audit verify" in caught.value.next_step
    assert lines_of(anchor) == before


async def test_an_anchor_that_ends_in_nonsense_is_not_continued(pool: Pool, anchor: Path) -> None:
    await happen(pool)
    rewrite(anchor, b"nonsense\n")
    with pytest.raises(Conflict):
        await write_anchor(pool, KEY, anchor)


async def test_an_anchor_that_cannot_be_written_is_said(pool: Pool, tmp_path: Path) -> None:
    with pytest.raises(Unavailable) as caught:
        await write_anchor(pool, KEY, tmp_path / "absent" / "anchor")
    assert caught.value.details == {"component": "audit_anchor"}
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(Unavailable):
        await write_anchor(pool, KEY, link)
    assert not exists(tmp_path / "elsewhere")


async def test_a_missing_anchor_is_said(pool: Pool, anchor: Path) -> None:
    report = await verify(pool, KEY, anchor)
    assert report.anchor_lines is None
    assert "No anchor was compared" in report.notes[0]


async def test_an_anchor_behind_the_database_is_said(pool: Pool, anchor: Path) -> None:
    await happen(pool)
    await write_anchor(pool, KEY, anchor)
    await happen(pool)
    await checkpoint(pool, KEY)
    report = await verify(pool, KEY, anchor)
    assert report.intact
    assert report.notes == ("The anchor ends at checkpoint 1, the database at 2.",)


async def test_a_changed_anchor_is_named(pool: Pool, anchor: Path) -> None:
    for _ in range(3):
        await happen(pool)
        await write_anchor(pool, KEY, anchor)
    lines = lines_of(anchor)
    rewrite(anchor, lines[0], b"nonsense\n", lines[2])
    report = await verify(pool, KEY, anchor)
    assert {("edited", "anchor", 2), ("deleted", "anchor", 2)} == named(report)
    rewrite(anchor, lines[0], lines[1].replace(b"wrt_", b"xxx_"), lines[2])
    assert ("edited", "anchor", 2) in named(await verify(pool, KEY, anchor))
