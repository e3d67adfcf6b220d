from __future__ import annotations

import asyncio
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import pytest

from body_broker.lore.embedding.bulk import Bulk
from body_broker.lore.embedding.local import Local, find_weights
from body_broker.lore.embedding.words import ModelAway, Text
from body_broker.storage.embedded.processes import birth
from tests.body_broker.lore.embedding.conftest import Open, Studio, text, texts
from tests.components import PROJECT
from tests.kill.harness import seed_of_tests
from tests.waiting import wait_until

pytestmark = pytest.mark.requires("weights")

TEXTS = [Text("The Quay", "Chapter 1", f"The lantern of pier {n} went out.") for n in range(5)]
LONG = Text("The Quay", "Chapter 1", " ".join(f"The lantern of pier {n} went out before dawn." for n in range(60)))
CHILD = b"body_broker.lore.embedding.child"


@pytest.fixture(scope="session")
def folder() -> Path:
    found = find_weights()
    assert found is not None
    return found


@pytest.fixture
async def local(folder: Path) -> AsyncIterator[Local]:
    found = Local(folder)
    yield found
    await found.close()


async def test_passages_and_queries_get_the_same_vectors_of_two_processes(local: Local) -> None:
    passages = await local.passages(TEXTS)
    queries = [await local.query(f"{t.title}\n{t.heading}\n{t.content}") for t in TEXTS]

    assert [len(vectors) for vectors in passages] == [1] * 5
    for (one,), (other,) in zip(passages, queries, strict=True):
        assert list(one) == pytest.approx(list(other), abs=1e-5)


async def test_a_long_passage_gets_several_vectors_between_short_ones(local: Local) -> None:
    found = await local.passages([TEXTS[0], LONG, TEXTS[1]])

    assert [len(vectors) for vectors in found] == [1, 3, 1]
    assert list(found[2][0]) == pytest.approx(list((await local.passages([TEXTS[1]]))[0][0]), abs=1e-5)


async def test_nothing_is_started_before_it_is_needed_and_one_process_serves_all(local: Local) -> None:
    assert local.bulk_pid is None
    await asyncio.gather(*(local.passages(TEXTS[:1]) for _ in range(3)))
    first = local.bulk_pid
    await local.passages(TEXTS)
    assert local.bulk_pid == first is not None


async def test_the_process_ends_once_it_has_been_idle(folder: Path) -> None:
    bulk = Bulk(folder, idle_s=0.05)
    await bulk.passages(TEXTS)
    pid = bulk.pid or 0

    await wait_until(lambda: bulk.pid is None, "it is ended")
    await wait_until(lambda: _is_gone(pid), "it is gone")
    assert len(await bulk.passages(TEXTS)) == 5, "and started again"
    await bulk.close()


async def test_a_process_that_is_killed_is_told_and_the_next_question_starts_another(local: Local) -> None:
    await local.passages(TEXTS)
    asking = asyncio.create_task(local.passages([LONG] * 40))
    await asyncio.sleep(0)
    pid = local.bulk_pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)

    with pytest.raises(ModelAway, match="ended in the middle of its work"):
        await asking
    assert len(await local.passages(TEXTS)) == 5
    assert local.bulk_pid != pid


async def test_whoever_gives_up_waiting_leaves_no_answer_to_the_next(local: Local) -> None:
    await local.passages(TEXTS)
    asking = asyncio.create_task(local.passages([LONG] * 20))
    await asyncio.sleep(0)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking

    found = await local.passages(TEXTS[:2])
    assert [len(vectors) for vectors in found] == [1, 1]


async def test_other_weights_are_refused_by_both(folder: Path, tmp_path: Path) -> None:
    shutil.copy(folder / "tokenizer.json", tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"\x02\0\0\0\0\0\0\0{}")
    local = Local(tmp_path)

    with pytest.raises(ModelAway, match="not those of all-MiniLM-L6-v2"):
        await local.query("who rows the dead")
    with pytest.raises(ModelAway, match="not those of all-MiniLM-L6-v2"):
        await local.passages(TEXTS)
    await local.close()


async def test_a_search_by_meaning_needs_no_more_than_this_machine(open_studio: Open) -> None:
    async with open_studio(embeddings="local") as studio:
        await studio.bring(
            text("Osric Vane", "The ferryman takes no coin from the drowned. He rows them over before dawn."),
            text("The Bell", "It tolls when a debt is paid in full, and the whole quay falls silent."),
        )
        await studio.embed_all()
        page = await studio.search("boatman who carries the dead without payment", by="meaning")

    assert [p.title for p in page.passages] == ["Osric Vane", "The Bell"]


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the process ends after its batch")
async def test_a_worker_killed_within_a_batch_takes_its_process_along_and_loses_nothing(
    open_studio: Open, database_url: str
) -> None:
    chance = random.Random(seed_of_tests())  # noqa: S311  # repeatable, nothing secret
    async with open_studio(embeddings="local") as studio:
        await studio.bring(*texts([f"The lantern of pier {n} went out." for n in range(70)]))
        for batches in chance.sample((0, 1, 2), 3):
            await _killed(studio, database_url, after=batches)
        await studio.embed_all()
        made = await studio.vectors()
        assert len(made) == len(set(made)) == 70
        assert studio.embedding.lacks is None


async def _killed(studio: Studio, database_url: str, *, after: int) -> None:
    """A worker that makes so many batches and is killed while the next one stands before its commit."""
    wanted = min(len(await studio.vectors()) + 16 * after, 64)
    worker = await asyncio.to_thread(_start_worker, database_url)
    holder = await asyncpg.connect(database_url)
    try:
        await wait_until(lambda: _at_least(studio, wanted), f"{wanted} vectors are there", timeout_s=60)
        await holder.execute("BEGIN; LOCK TABLE lore_vector IN SHARE MODE")
        await wait_until(lambda: _stands(studio), "a batch stands before its commit", timeout_s=60)
        (child,) = await asyncio.to_thread(_children_of, worker.pid)
        worker.kill()
        await wait_until(lambda: _is_gone(child), "its process died with it")
    finally:
        await holder.close()
        worker.kill()
        await asyncio.to_thread(worker.wait)


def _start_worker(database_url: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "tests.body_broker.lore.embedding.worker_process", database_url], cwd=PROJECT
    )


async def _at_least(studio: Studio, count: int) -> bool:
    return len(await studio.vectors()) >= count


async def _stands(studio: Studio) -> bool:
    return await studio.sql(
        "SELECT true FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE '%INSERT INTO lore_vector%'"
        " AND pid <> pg_backend_pid() AND datname = current_database() LIMIT 1"
    )


def _children_of(pid: int) -> list[int]:
    found: list[int] = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command, stat = (folder / "cmdline").read_bytes(), (folder / "stat").read_text()
        except OSError:
            continue
        if CHILD in command and int(stat.rpartition(")")[2].split()[1]) == pid:
            found.append(int(folder.name))
    return found


async def _is_gone(pid: int) -> bool:
    return await asyncio.to_thread(birth, pid) is None
