"""A backup that is cut off, changed, newer than the program or none at all is refused, and nothing is made of it."""

from __future__ import annotations

import asyncio
import io
import json
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from body_broker.errors import BadInput, Conflict
from body_broker.storage import embedded
from body_broker.storage.archive import DUMP, MANIFEST, ROOT_KEY, Facts, Writer, new_file, open_archive
from body_broker.storage.migrations import migrations
from tests.body_broker.storage.commands import HUB, command, names_in, restored

FACTS = Facts(program="0.1.0", schema=len(migrations()), postgres=18, taken_at="2026-11-21T00:00:00Z", key="0" * 64)
KEY = b"ab" * 32


def written(facts: Facts = FACTS, dump: bytes = b"PGDMP of a kind" * 200) -> bytes:
    handle = io.BytesIO()
    writer = Writer(handle)
    writer.add(ROOT_KEY, KEY)
    writer.add(DUMP, dump)
    writer.finish(facts)
    return handle.getvalue()


def test_a_backup_is_an_ordinary_tar_with_its_manifest_last() -> None:
    with tarfile.open(fileobj=io.BytesIO(written())) as tar:
        assert tar.getnames() == [ROOT_KEY, DUMP, MANIFEST]
        assert {entry.mode for entry in tar} == {0o600}
        manifest: Any = json.loads(tar.extractfile(MANIFEST).read())  # type: ignore[union-attr]
    assert manifest["format"] == 1
    assert set(manifest["members"]) == {ROOT_KEY, DUMP}


@pytest.mark.parametrize("part", [0, 1, 511, 512, 1024, 2000, -1600, -1024, -1])
def test_a_backup_that_is_cut_off_anywhere_is_refused(tmp_path: Path, part: int) -> None:
    said = _refused(tmp_path, written()[:part])

    assert "cut off" in said or (part < 512 and "no backup" in said)


def test_a_backup_in_which_any_byte_was_changed_is_refused(tmp_path: Path) -> None:
    whole = written()
    checked = 0
    for at in range(0, len(whole), 37):
        changed = bytearray(whole)
        changed[at] ^= 0x01
        try:
            said = _refused(tmp_path, bytes(changed))
        except DidNotRefuse:
            # What a reader never looks at: a header's owner and time, and the filling between members.
            assert whole[at : at + 1] in (b"\0", b"0")
            continue
        checked += 1
        assert "changed or damaged" in said or "no backup" in said or "cut off" in said
    assert checked > 80


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"not a backup at all\n" * 100, id="text"),
        pytest.param(bytes(4096), id="zeros"),
        pytest.param(written().replace(b'"root.key": {', b'"boot.key": {'), id="a manifest that lists another member"),
        pytest.param(written() + b"more", id="something behind its end"),
    ],
)
def test_a_file_that_is_no_backup_is_refused(tmp_path: Path, content: bytes) -> None:
    said = _refused(tmp_path, content)

    assert "no backup" in said or "changed or damaged" in said


def test_a_tar_of_something_else_is_refused(tmp_path: Path) -> None:
    assert "no backup" in _refused(tmp_path, _tar({"etc/passwd": b"root"}))
    assert "no backup" in _refused(tmp_path, _tar({DUMP: b"a"}, {DUMP: b"b"}))
    assert "newer version" in _refused(tmp_path, written().replace(b'"format": 1', b'"format": 2'))


async def test_a_backup_of_a_newer_schema_or_another_server_is_refused(tmp_path: Path) -> None:
    newest = FACTS.schema
    newer = written(replace(FACTS, schema=newest + 1))
    assert f"schema {newest + 1}; this program knows {newest}" in await _not_restored(tmp_path, newer)

    of_another_server = written(replace(FACTS, postgres=19))
    assert "PostgreSQL 19" in await _not_restored(tmp_path, of_another_server)


async def test_a_dump_that_postgresql_does_not_take_leaves_nothing(tmp_path: Path) -> None:
    said = await _not_restored(tmp_path, written())  # every digest fits, but it is no dump

    assert "pg_restore failed" in said


async def test_a_data_dir_that_holds_something_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "mine").write_text("mine")
    (tmp_path / "file").write_bytes(written())

    said = await restored(tmp_path / "file", tmp_path / "data", fails=True)

    assert "holds something already" in said
    assert names_in(tmp_path / "data") == ["mine"]


async def test_a_place_where_nothing_can_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    await command("status", "--data-dir", tmp_path / "data")

    said = await command("backup", tmp_path / "file" / "below", "--data-dir", tmp_path / "data", fails=True)

    assert "cannot be written" in said
    assert str(tmp_path) not in said


async def test_a_disk_that_is_full_leaves_no_backup(own_dir: Path, tmp_path: Path) -> None:
    await asyncio.to_thread(embedded.start, own_dir)  # not by the command, whose limit they would have too
    try:
        words = f"ulimit -f 8; exec {HUB} backup {tmp_path / 'hub.backup'} --data-dir '{own_dir}'"
        process = await asyncio.create_subprocess_exec("sh", "-c", words, stderr=asyncio.subprocess.PIPE)
        _, said = await process.communicate()
    finally:
        await asyncio.to_thread(embedded.release, own_dir)

    assert process.returncode == 1
    assert b"cannot be written" in said
    assert names_in(tmp_path) == []


def test_what_a_killed_backup_left_is_swept_and_what_is_being_written_is_not(tmp_path: Path) -> None:
    left = tmp_path / ".backup.0123.partial"
    left.write_bytes(b"half")
    with new_file(tmp_path / "backup", force=True) as first:
        assert not left.exists()
        with new_file(tmp_path / "backup", force=False) as second:  # another one at the same time
            second.write(b"second")
        first.write(b"first")
    assert (tmp_path / "backup").read_bytes() == b"first"
    assert names_in(tmp_path) == ["backup"]


def test_of_two_at_once_neither_replaces_the_other_unasked(tmp_path: Path) -> None:
    with pytest.raises(Conflict, match="There is a file of that name"), new_file(tmp_path / "backup", force=False):
        (tmp_path / "backup").write_bytes(b"another's")
    assert (tmp_path / "backup").read_bytes() == b"another's"
    assert names_in(tmp_path) == ["backup"]


class DidNotRefuse(AssertionError):
    """The backup was taken for a good one."""


def _refused(folder: Path, content: bytes) -> str:
    (folder / "file").write_bytes(content)
    try:
        with open_archive(folder / "file", lambda _doing, _done, _total: None):
            raise DidNotRefuse
    except BadInput as error:
        return error.message


async def _not_restored(folder: Path, content: bytes) -> str:
    await asyncio.to_thread((folder / "file").write_bytes, content)
    said = await restored(folder / "file", folder / "data", fails=True)
    assert names_in(folder) == ["file"]
    return said


def _tar(*members: dict[str, bytes]) -> bytes:
    handle = io.BytesIO()
    with tarfile.open(fileobj=handle, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for name, content in [pair for group in members for pair in group.items()]:
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return handle.getvalue()
