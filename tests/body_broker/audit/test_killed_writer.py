"""A writer that is killed loses nothing it promised, and its chain verifies but for its missing end."""

from __future__ import annotations

import asyncio
import signal
import sys
from pathlib import Path

import pytest

from body_broker.audit.anchor import write_anchor
from body_broker.audit.auditor import open_auditor
from body_broker.audit.verify import verify
from body_broker.storage.postgres import Pool
from tests.body_broker.audit.stored import KEY, read_of, sequences

PROGRAM = Path(__file__).with_name("writing.py")


async def kill_after(database_url: str, promises: int) -> tuple[str, list[int]]:
    """Run a writer, kill it with SIGKILL after so many promises, and return its chain and every promise it made."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(PROGRAM), database_url, KEY.hex(), stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    lines = [await process.stdout.readline() for _ in range(promises)]
    process.send_signal(signal.SIGKILL)
    lines += (await process.stdout.read()).splitlines(keepends=True)
    assert await process.wait() == -signal.SIGKILL
    whole = [line.decode().split() for line in lines if line.endswith(b"\n")]
    return whole[0][0], [int(sequence) for _, sequence in whole]


@pytest.mark.parametrize("promises", [1, 40])
async def test_every_promised_record_of_a_killed_writer_is_there(
    pool: Pool, database_url: str, tmp_path: Path, promises: int
) -> None:
    killed = await asyncio.gather(kill_after(database_url, promises), kill_after(database_url, promises + 5))
    async with open_auditor(pool, KEY) as auditor:  # life goes on beside the dead
        auditor.add(read_of(1))
    await write_anchor(pool, KEY, tmp_path / "anchor")
    report = await verify(pool, KEY, tmp_path / "anchor")
    assert report.intact, report.breaches
    assert report.writers == 3
    for writer, promised in killed:
        assert len(promised) >= promises
        stored = await sequences(pool, writer)
        assert stored == list(range(1, len(stored) + 1))
        assert set(promised) <= set(stored)
    missing_ends = [note for note in report.notes if "no closing record" in note]
    assert len(missing_ends) == 2
    assert all(any(writer in note for note in missing_ends) for writer, _ in killed)
    assert auditor.writer not in "".join(missing_ends)
