"""A backup or restore that is killed at any moment leaves nothing half, and the next one succeeds."""

from __future__ import annotations

import asyncio
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.body_broker.storage.commands import HUB, backed_up, command, names_in, restored, table_held
from tests.components import scratch_dir
from tests.waiting import wait_until

pytestmark = pytest.mark.timeout(300)
TRIES = 6
HOW_FAR = (
    "secrets/root.key",
    "stores/postgres.new",
    "stores/postgres/PG_VERSION",
    "stores/run/.s.PGSQL.5432",
    "stores/postgres/base/5",
)


async def test_a_backup_that_is_killed_while_it_dumps_leaves_no_backup(own_dir: Path, tmp_path: Path) -> None:
    file = tmp_path / "hub.backup"
    await command("status", "--data-dir", own_dir)  # which brings the schema
    async with table_held(own_dir):
        assert await _killed_when(lambda: _drafts(tmp_path), "backup", file, "--data-dir", own_dir)
    assert not file.exists()
    (left,) = _drafts(tmp_path)
    assert left.stat().st_mode & 0o077 == 0

    await backed_up(own_dir, file)

    assert names_in(tmp_path) == ["hub.backup"]
    assert "intact" in await restored(file, tmp_path / "data")


@pytest.fixture
def short() -> Iterator[Path]:
    """A folder of few characters: where paths are long, the stores' sockets lie elsewhere."""
    with tempfile.TemporaryDirectory(prefix="bb-", dir=scratch_dir()) as folder:
        yield Path(folder)


async def test_a_restore_that_is_killed_leaves_no_data_dir_and_the_next_one_succeeds(
    own_dir: Path, short: Path
) -> None:
    file, home = short / "hub.backup", short / "data"
    await command("config", "set", "spawn.rate", "42", "--data-dir", own_dir)
    await backed_up(own_dir, file)

    for made in HOW_FAR:  # each finds what the one before left, and begins anew
        place = short / ".data.restoring" / made
        for _ in range(TRIES):
            left = _identity(place)
            if await _killed_when(
                lambda place=place, left=left: _identity(place) not in {None, left},
                *("restore", file, "--data-dir", home),
            ):
                break
            # Some stages are short, and a busy machine looks away: this restore got through unseen.
            await asyncio.to_thread(shutil.rmtree, home)
        else:
            pytest.fail(f"no restore was seen at {made}")
        assert not home.exists()

    assert "intact" in await restored(file, home)
    assert names_in(short) == ["data", "hub.backup"]
    assert await command("config", "get", "spawn.rate", "--data-dir", home) == "42\n"


async def test_two_restores_at_once_make_one_data_dir(own_dir: Path, tmp_path: Path) -> None:
    await command("status", "--data-dir", own_dir)
    await backed_up(own_dir, tmp_path / "hub.backup")

    said = await asyncio.gather(*(_ended(tmp_path) for _ in range(2)))

    assert {code for code, _ in said} == {0, 1}
    assert any("just now" in text or "holds something" in text for _, text in said)
    assert names_in(tmp_path) == ["data", "hub.backup"]
    assert "intact" in await command("audit", "verify", "--data-dir", tmp_path / "data")


async def _ended(folder: Path) -> tuple[int | None, str]:
    process = await asyncio.create_subprocess_exec(
        *(HUB, "restore", folder / "hub.backup", "--data-dir", folder / "data"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    out, _ = await process.communicate()
    return process.returncode, out.decode()


def _identity(place: Path) -> tuple[int, int] | None:
    try:
        found = place.stat()
    except FileNotFoundError:
        return None
    return found.st_ino, found.st_ctime_ns


def _drafts(folder: Path) -> list[Path]:
    return [found for found in folder.glob(".hub.backup.*.partial") if found.stat().st_size]


async def _killed_when(reached: Callable[[], object], *words: str | Path) -> bool:
    """Whether it was killed there, and had not ended by itself."""
    process = await asyncio.create_subprocess_exec(*(HUB, *words), stdout=asyncio.subprocess.DEVNULL)
    await wait_until(lambda: reached() or process.returncode is not None, "it has come so far", 60)
    if process.returncode is not None:
        assert process.returncode == 0
        return False
    process.kill()
    return await process.wait() == -signal.SIGKILL  # it may have ended at that very moment
