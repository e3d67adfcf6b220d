"""A directory keeps objects whole through kills, keeps keys within it, and says what is wrong with it."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest

from body_broker.errors import NotConfigured, NotFound, TooLarge, Unavailable
from body_broker.storage.objects import open_objects
from body_broker.storage.objects.model import OBJECT_BYTES_MAX
from tests.tools.project import ROOT
from tests.waiting import wait_until_sync

WRITER = """
import asyncio, pathlib, sys
from body_broker.storage.objects import open_objects

async def main():
    async with open_objects(sys.argv[1]) as objects:
        for n in range(100_000):
            await objects.put("kind/job", bytes([n % 250]) * 3_000_000)

asyncio.run(main())
"""
FULL = """
import asyncio, resource, signal, sys
from body_broker.errors import Unavailable
from body_broker.storage.objects import open_objects

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))

async def main():
    async with open_objects(sys.argv[1]) as objects:
        await objects.put("small", b"x")
        try:
            await objects.put("small", b"y" * 5000)
        except Unavailable as error:
            print(error.message)
        print(await objects.get("small"))

asyncio.run(main())
"""


def test_a_killed_writer_leaves_the_old_bytes_or_the_new_and_its_draft_is_swept(tmp_path: Path) -> None:
    file, drafts = tmp_path / "kind" / "job", tmp_path / ".drafts"
    for _ in range(5):
        writer = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], cwd=ROOT)
        try:
            wait_until_sync(lambda: drafts.exists() and any(drafts.iterdir()), "it is writing")
        finally:
            writer.kill()
            writer.wait()
        if file.exists():
            found = file.read_bytes()
            assert found == found[:1] * 3_000_000
    (drafts / "new").write_bytes(b"another writer's, at work")
    (drafts / "old").write_bytes(b"a dead writer's")
    os.utime(drafts / "old", (0, 0))

    asyncio.run(_opened(tmp_path))

    left = {each.name for each in drafts.iterdir()}
    assert "new" in left
    assert "old" not in left


async def _opened(folder: Path) -> None:
    async with open_objects(folder):
        pass


def test_a_full_disk_is_said_and_the_old_bytes_stay(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, check=False, timeout=60
    )

    assert (done.stdout, done.stderr) == ("The disk of BODY_BROKER_RESULTS is full.\nb'x'\n", "")
    assert list((tmp_path / ".drafts").iterdir()) == []


async def test_no_link_leads_out_of_the_directory(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "job").write_bytes(b"secret")
    async with open_objects(tmp_path / "results") as objects:
        (tmp_path / "results" / "kind").symlink_to(outside)
        (tmp_path / "results" / "link").symlink_to(outside / "job")

        for asked in (objects.put("kind/new", b"x"), objects.get("kind/job"), objects.drop("kind/job")):
            with pytest.raises(NotConfigured, match="leads out"):
                await asked
        with pytest.raises(NotFound):
            await objects.get("link")
        assert await objects.head("link") is None
        await objects.put("link", b"mine")

    assert (outside / "job").read_bytes() == b"secret"
    assert [each.name for each in outside.iterdir()] == ["job"]


async def test_what_is_no_plain_file_is_no_object(tmp_path: Path) -> None:
    async with open_objects(tmp_path) as objects:
        os.mkfifo(tmp_path / "pipe")
        (tmp_path / "folder").mkdir()

        for key in ("pipe", "folder"):
            assert await objects.head(key) is None
            with pytest.raises(NotFound):
                await objects.get(key)


async def test_a_file_that_somebody_made_too_large_is_not_read(tmp_path: Path) -> None:
    async with open_objects(tmp_path) as objects:
        with (tmp_path / "large").open("wb") as file:
            file.truncate(OBJECT_BYTES_MAX + 1)

        with pytest.raises(TooLarge):
            await objects.get("large")


async def test_only_its_user_may_read_what_it_makes(tmp_path: Path) -> None:
    async with open_objects(tmp_path / "results") as objects:
        await objects.put("kind/job", b"x")

    made = [tmp_path / "results" / "kind", tmp_path / "results" / "kind" / "job"]
    assert [oct(each.stat().st_mode & 0o777) for each in made] == ["0o700", "0o600"]


async def test_a_file_in_the_way_is_said(tmp_path: Path) -> None:
    (tmp_path / "results").write_text("not a directory")

    with pytest.raises(NotConfigured, match="BODY_BROKER_RESULTS") as caught:
        async with open_objects(tmp_path / "results"):
            pass

    assert "directory" in caught.value.next_step
    assert caught.value.details == {"setting": "BODY_BROKER_RESULTS"}


async def test_a_directory_that_went_away_is_made_again(tmp_path: Path) -> None:
    async with open_objects(tmp_path / "results") as objects:
        (tmp_path / "results" / ".drafts").rmdir()
        (tmp_path / "results").rmdir()

        await objects.put("kind/job", b"x")

        assert await objects.get("kind/job") == b"x"


async def test_a_disk_that_refuses_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with open_objects(tmp_path / "results") as objects:
        for number, kind in ((13, NotConfigured), (30, NotConfigured), (5, Unavailable)):

            def refuse(*_: object, number: int = number) -> None:
                raise OSError(number, "words of the system")

            monkeypatch.setattr("body_broker.storage.objects.directory.os.fsync", refuse)
            with pytest.raises(kind) as caught:
                await objects.put("a", b"x")
            assert "words" not in caught.value.message
