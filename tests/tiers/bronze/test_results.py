"""Results are published once whatever is killed, read by their owner alone from wherever they are left, and forgotten whole."""

from __future__ import annotations

import hashlib
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Generator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import orjson
import pytest

from body_broker.errors import InternalError, NotConfigured, NotFound
from body_broker.lore import Effect
from body_broker.storage.objects import open_objects
from body_broker.storage.postgres import Pool
from body_broker.storage.redis import Redis
from body_broker.work import queue
from tests.counterparts.s3 import KEY, SECRET, Bucket, running, saying
from tests.ports import free_port
from tests.tiers.bronze.publishing import ORIGIN, OWNER, POINTS, SHAPED, TEXT, Bench
from tests.tools.project import ROOT
from tests.waiting import wait_until
from tiers.bronze.model import Shaped
from tiers.bronze.results import CACHED_S, PURGE, ROW_BYTES_MAX, STORE_AWAY, Results, schedules

MADE = {
    "engines": ["bronze"],
    "models": ["deepseek"],
    "tools": [{"name": "search_lore", "outcome": "ok"}],
    "prompt_tokens": 100,
    "completion_tokens": 20,
    "cost_usd": 0.25,
    "maybe_spent": True,
    "fallbacks": [{"engine": "sagemaker", "reason": "silent"}],
    "truncated": False,
    "outside": False,
}


@pytest.fixture
async def bench(pool: Pool, redis: Redis, database_url: str, tmp_path: Path) -> AsyncIterator[Bench]:
    async with open_objects(tmp_path / "results") as objects:
        yield Bench(pool, redis, objects, database_url)


@pytest.fixture
def credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)


def file_of(folder: Path, job: str) -> Path:
    return folder / "results" / "narrative" / f"{job}.json"


async def test_what_is_published_is_told_kept_put_and_found(bench: Bench, tmp_path: Path) -> None:
    job = await bench.publish()

    item = await queue.get(bench.pool, job, owner=OWNER)
    kept = await bench.kept(job)
    stored = file_of(tmp_path, job).read_bytes()
    assert item.result == kept.body == {**SHAPED.body, "made": MADE}
    assert (kept.job, kept.owner, kept.kind, kept.title) == (job, OWNER, "narrative", "The mill of Orm")
    assert (kept.object, kept.bytes) == (f"narrative/{job}.json", len(stored))
    assert kept.sha256 == hashlib.sha256(stored).hexdigest()
    assert orjson.loads(stored) == {
        "format": 1,
        "job": job,
        "owner": OWNER,
        "kind": "narrative",
        "title": "The mill of Orm",
        "body": kept.body,
        "text": TEXT,
    }
    assert await bench.found("zephyrine mill") == [kept.document]
    assert await bench.results.text(job, OWNER) == TEXT


async def test_its_document_is_outside_canon_and_in_no_other_search(bench: Bench) -> None:
    job = await bench.publish()

    page = await bench.lore.search("persona:expert-results", "zephyrine", limit=5)
    assert [(each.source, each.title) for each in page.passages] == [("outside", "The mill of Orm")]
    assert await bench.found("zephyrine", persona=None) == []
    assert await bench.found("zephyrine", persona="osric") == []
    row = await bench.pool.fetchrow("SELECT knowledge::text FROM lore_edition")
    assert row is not None
    assert orjson.loads(row["knowledge"]) == {"job": job, "made_as": "narrative", "spoiler_level": 100}


async def test_the_same_text_of_two_jobs_is_two_documents(bench: Bench) -> None:
    jobs = [await bench.publish(), await bench.publish()]

    assert len({(await bench.kept(job)).document for job in jobs}) == 2


@pytest.mark.parametrize("shaped", [replace(SHAPED, searched=False), replace(SHAPED, text=" \n")])
async def test_what_is_not_to_be_searched_or_has_no_text_is_no_document(bench: Bench, shaped: Shaped) -> None:
    bench.shaped = shaped

    job = await bench.publish()

    assert (await bench.kept(job)).document is None
    assert await bench.pool.fetchval("SELECT count(*) FROM lore_document") == 0


async def test_text_from_outside_marks_the_result(bench: Bench, redis: Redis) -> None:
    bench.other = {"outside": True, "cost_usd": None}

    job = await bench.publish()

    cached = await bench.kept(job)
    await redis.delete(f"expert:result:{job}")
    for kept in (cached, await bench.kept(job)):
        assert (kept.outside, kept.body["made"]["outside"], kept.body["made"]["cost_usd"]) == (True, True, None)


# ----------------------------------------------------------------------------------------------------------------- killed


@contextmanager
def process(database_url: str, redis_url: str, folder: Path, point: str) -> Generator[subprocess.Popen[bytes]]:
    arguments = [sys.executable, "-m", "tests.tiers.bronze.publishing", database_url, redis_url, str(folder), point]
    worker = subprocess.Popen(arguments, cwd=ROOT)
    try:
        yield worker
    finally:
        worker.kill()
        worker.wait()


async def is_whole(bench: Bench, job: str, folder: Path) -> None:
    """There is one result, its object is the one that its row names, and its one document is found."""
    kept = await bench.kept(job)
    assert hashlib.sha256(file_of(folder, job).read_bytes()).hexdigest() == kept.sha256
    assert (await queue.get(bench.pool, job, owner=OWNER)).result == kept.body
    assert kept.body["story"] == "Made by the process that is killed."
    assert await bench.pool.fetchval("SELECT count(*) FROM expert_result WHERE job = $1", job) == 1
    await bench.imported()
    assert kept.document in await bench.found("zephyrine mill")
    editions = "SELECT count(*) FROM lore_edition e JOIN lore_document d ON d.id = e.document_id WHERE d.source = $1"
    assert await bench.pool.fetchval(editions, f"expert-results/{job}") == 1


@pytest.mark.parametrize("point", POINTS)
async def test_a_worker_killed_anywhere_publishes_once(
    bench: Bench, database_url: str, redis_url: str, tmp_path: Path, point: str
) -> None:
    job = await bench.submit()
    with process(database_url, redis_url, tmp_path / "results", point):
        await wait_until((tmp_path / f"at {point}").exists, f"the process is at {point}")

    async with bench.working(lease_s=1.0):
        item = await bench.ends(job, "succeeded", "failed")
        assert item.state == "succeeded", item.error
        await is_whole(bench, job, tmp_path)

    assert bench.made == 0, "what was made and recorded is not made again"
    await bench.pool.execute("DELETE FROM work WHERE id = $1", job)
    assert (await bench.kept(job)).body == item.result


@pytest.mark.parametrize("point", ["before the object", "inside the commit"])
async def test_a_worker_that_was_paused_and_comes_late_changes_nothing(
    bench: Bench, database_url: str, redis_url: str, tmp_path: Path, point: str
) -> None:
    job = await bench.submit()
    with process(database_url, redis_url, tmp_path / "results", point) as paused:
        await wait_until((tmp_path / f"at {point}").exists, f"the process is at {point}")
        paused.send_signal(signal.SIGSTOP)
        async with bench.working(lease_s=1.0):
            assert (await bench.ends(job, "succeeded", "failed")).state == "succeeded"
            await is_whole(bench, job, tmp_path)
        before = file_of(tmp_path, job).stat().st_mtime_ns

        (tmp_path / "go on").touch()
        paused.send_signal(signal.SIGCONT)
        if point == "before the object":
            await wait_until(lambda: file_of(tmp_path, job).stat().st_mtime_ns != before, "it puts, late")
        else:
            await is_past(bench, paused)

    async with bench.working(lease_s=1.0):
        await is_whole(bench, job, tmp_path)


async def is_past(bench: Bench, paused: subprocess.Popen[bytes]) -> None:
    """Return once the process has run something else."""
    other = await bench.submit("Another")
    assert (await bench.ends(other, "succeeded")).state == "succeeded"
    assert paused.poll() is None


# -------------------------------------------------------------------------------------------------------- the place is away


async def test_a_place_that_refuses_is_waited_for_and_said(bench: Bench, tmp_path: Path) -> None:
    (tmp_path / "results" / "narrative").write_text("in the way")
    job = await bench.submit()

    async with bench.working():
        item = await bench.ends(job, "waiting")
        assert (item.waits_for, item.attempts) == (STORE_AWAY, 0)
        said = item.progress["message"]
        assert said.startswith("The result is made and waits to be stored. The directory of BODY_BROKER_RESULTS")
        assert "read and write" in said
        assert await bench.results.read(job, OWNER) is None

        (tmp_path / "results" / "narrative").unlink()
        assert await queue.wake(bench.pool, STORE_AWAY) == 1
        item = await bench.ends(job, "succeeded", "failed")

    assert (item.state, bench.made) == ("succeeded", 1)


async def test_a_place_is_looked_for_once_more_before_the_job_s_time_is_over(bench: Bench, tmp_path: Path) -> None:
    (tmp_path / "results" / "narrative").write_text("in the way")
    job = await bench.submit()
    await bench.pool.execute("UPDATE work SET expires_at = clock_timestamp() + interval '40 s' WHERE id = $1", job)
    async with bench.working():
        await bench.ends(job, "waiting")
    assert await bench.pool.fetchval("SELECT wake_at < expires_at FROM work WHERE id = $1", job)


@pytest.mark.parametrize(
    ("status", "code", "words"),
    [
        (403, "AccessDenied", "does not let this hub use s3:PutObject"),
        (404, "NoSuchBucket", "is not there"),
        (400, "ExpiredToken", "have expired"),
        (0, "", "cannot be reached"),
    ],
)
@pytest.mark.usefixtures("credentials")
async def test_a_bucket_that_refuses_is_waited_for_until_it_does_not(
    bench: Bench, redis: Redis, status: int, code: str, words: str
) -> None:
    with saying(status=status, code=code) as server:
        url = server.url if status else f"http://127.0.0.1:{free_port()}"
        async with open_objects("s3://bucket/results", endpoint_url=url) as away:
            bench.results = Results(bench.pool, redis, away)
            job = await bench.submit()

            async with bench.working():
                item = await bench.ends(job, "waiting")
                said: str = item.progress["message"]
                server.status, server.code = 200, ""
                assert await queue.wake(bench.pool, STORE_AWAY) == 1
                assert (await bench.ends(job, "succeeded" if status else "waiting")).error is None

    assert words in said
    assert not said.endswith("…"), "the next step is said whole"
    assert (bench.made, "secret words" in said) == (1, False)


@pytest.mark.requires("s3")
@pytest.mark.usefixtures("credentials")
async def test_it_is_published_into_a_bucket_read_from_it_and_dropped(
    bench: Bench, redis: Redis, tmp_path: Path
) -> None:
    bench.shaped = Shaped(body={"story": "x" * ROW_BYTES_MAX}, text=TEXT)
    (tmp_path / "s3").mkdir()
    with running(tmp_path / "s3") as url:
        bucket = Bucket(url, "studio").make()
        async with open_objects("s3://studio/results", endpoint_url=url) as objects:
            bench.results = Results(bench.pool, redis, objects)

            job = await bench.publish()

            assert bucket.keys() == [f"results/narrative/{job}.json"]
            assert (await bench.kept(job)).body["story"] == "x" * ROW_BYTES_MAX
            assert await bench.results.text(job, OWNER) == TEXT
            await ages(bench, job)
            assert await bench.results.purge() == 1
            assert bucket.keys() == []


# ---------------------------------------------------------------------------------------------------------------- reading


async def test_nobody_reads_another_s_result(bench: Bench, redis: Redis) -> None:
    job = await bench.publish()

    for _ in range(2):
        assert await bench.results.read(job, "person:bob") is None
        assert await bench.results.text(job, "person:bob") is None
        assert (await bench.results.read(job, None)) is not None
        await redis.delete(f"expert:result:{job}")
    assert await bench.results.read("job_unknown", OWNER) is None


async def test_it_is_read_from_the_cache_then_from_its_row(bench: Bench, redis: Redis) -> None:
    job = await bench.publish()
    first = await bench.kept(job)
    assert 0 < await redis.ttl(f"expert:result:{job}") <= CACHED_S

    await bench.pool.execute("UPDATE expert_result SET title = 'changed'")
    assert await bench.kept(job) == first
    await redis.delete(f"expert:result:{job}")
    assert await bench.kept(job) == replace(first, title="changed")
    assert await redis.exists(f"expert:result:{job}") == 1


@pytest.mark.parametrize("said", [b"", b"{", b"[]", b'{"job": "x"}', b'{"created_at": 7}'])
async def test_what_another_version_cached_is_passed_over(bench: Bench, redis: Redis, said: bytes) -> None:
    job = await bench.publish()
    await redis.set(f"expert:result:{job}", said)

    assert (await bench.kept(job)).body["story"] == "The mill grinds salt."


async def test_without_redis_it_is_published_read_and_forgotten(bench: Bench) -> None:
    away = Redis(host="127.0.0.1", port=1)
    bench.results = Results(bench.pool, away, bench.objects)

    job = await bench.publish()

    assert (await bench.kept(job)).body["made"] == MADE
    await ages(bench, job)
    assert await bench.results.purge() == 1
    await away.aclose()


async def test_a_long_result_is_read_from_its_object(bench: Bench, redis: Redis, tmp_path: Path) -> None:
    bench.shaped = Shaped(body={"story": "x" * ROW_BYTES_MAX}, text=TEXT)

    job = await bench.publish()

    assert await bench.pool.fetchval("SELECT body = 'null' FROM expert_result")
    assert await redis.exists(f"expert:result:{job}") == 0
    assert (await bench.kept(job)).body["story"] == "x" * ROW_BYTES_MAX
    assert await bench.results.read(job, "person:bob") is None
    assert file_of(tmp_path, job).stat().st_size > ROW_BYTES_MAX


async def test_a_result_of_more_than_4_mib_fails_and_says_so(bench: Bench, tmp_path: Path) -> None:
    bench.shaped = Shaped(body={"story": "x" * 4 * ROW_BYTES_MAX}, text=TEXT)
    job = await bench.submit()

    async with bench.working():
        item = await bench.ends(job, "failed")

    assert item.error["code"] == "too_large"
    assert not file_of(tmp_path, job).exists()


@pytest.mark.parametrize("damage", ["changed", "cut", "no json", "another's"])
async def test_an_object_that_is_not_what_was_put_is_not_believed(bench: Bench, tmp_path: Path, damage: str) -> None:
    bench.shaped = Shaped(body={"story": "x" * ROW_BYTES_MAX}, text=TEXT)
    job, other = await bench.publish(), await bench.publish()
    file = file_of(tmp_path, job)
    stored = file.read_bytes()
    file.write_bytes(
        {
            "changed": stored.replace(b"xx", b"xy", 1),
            "cut": stored[:-100],
            "no json": b"\xff\x00",
            "another's": file_of(tmp_path, other).read_bytes(),
        }[damage]
    )

    for asked in (bench.results.read(job, OWNER), bench.results.text(job, OWNER)):
        with pytest.raises(InternalError, match="not what was put") as caught:
            await asked
        assert caught.value.details == {"object": f"narrative/{job}.json"}
    assert (await bench.kept(other)).body["story"].startswith("xx")


async def test_an_object_that_is_gone_is_said(bench: Bench, tmp_path: Path) -> None:
    bench.shaped = Shaped(body={"story": "x" * ROW_BYTES_MAX}, text=TEXT)
    job = await bench.publish()
    file_of(tmp_path, job).unlink()

    with pytest.raises(NotFound, match="object of this result is gone"):
        await bench.results.read(job, OWNER)


# ------------------------------------------------------------------------------------------------------------- forgetting


async def ages(bench: Bench, job: str) -> None:
    await bench.pool.execute(
        "UPDATE expert_result SET created_at = created_at - interval '91 days' WHERE job = $1", job
    )


async def test_old_results_are_forgotten_whole(bench: Bench, redis: Redis, tmp_path: Path) -> None:
    old, young = await bench.publish("Old"), await bench.publish("Young")
    gone = (await bench.kept(old)).document
    await ages(bench, old)

    assert await bench.results.purge() == 1
    assert await bench.results.purge() == 0

    assert await bench.results.read(old, OWNER) is None
    assert await redis.exists(f"expert:result:{old}") == 0
    assert not file_of(tmp_path, old).exists()
    assert await bench.found("zephyrine mill") == [(await bench.kept(young)).document]
    assert bench.announced[-1] == f"lore://doc/{gone}"
    assert file_of(tmp_path, young).exists()


async def test_a_document_that_became_canon_stays(bench: Bench) -> None:
    job = await bench.publish()
    document = (await bench.kept(job)).document
    assert document is not None
    await bench.lore.approve(document, Effect("operator:ann", None))
    await ages(bench, job)

    assert await bench.results.purge() == 1

    assert await bench.results.read(job, OWNER) is None
    assert await bench.found("zephyrine mill") == [document]


async def test_a_document_that_somebody_deleted_before_hinders_nothing(bench: Bench) -> None:
    job = await bench.publish()
    document = (await bench.kept(job)).document
    assert document is not None
    await bench.lore.delete_document(document, Effect("person:anna", None))
    await ages(bench, job)

    assert await bench.results.purge() == 1


async def test_a_row_stays_until_its_object_could_be_dropped(bench: Bench, tmp_path: Path) -> None:
    job = await bench.publish()
    await ages(bench, job)
    (tmp_path / "elsewhere").mkdir()
    shutil.rmtree(tmp_path / "results" / "narrative")
    (tmp_path / "results" / "narrative").symlink_to(tmp_path / "elsewhere")

    with pytest.raises(NotConfigured):
        await bench.results.purge()
    assert await bench.pool.fetchval("SELECT count(*) FROM expert_result") == 1

    (tmp_path / "results" / "narrative").unlink()
    assert await bench.results.purge() == 1


async def test_an_object_whose_job_ended_before_its_row_is_dropped(bench: Bench, tmp_path: Path) -> None:
    published = await bench.publish()
    cancelled = await queue.enqueue(bench.pool, "narrative", {}, origin=ORIGIN, delay_s=600.0)
    await bench.pool.execute("INSERT INTO work_step (work, name, outcome) VALUES ($1, 'result', '{}')", cancelled)
    await queue.cancel(bench.pool, cancelled, owner=OWNER)
    await bench.objects.put(f"narrative/{cancelled}.json", b"{}")

    await bench.results.purge()
    assert file_of(tmp_path, cancelled).exists(), "its worker may still write"
    await bench.pool.execute("UPDATE work SET finished_at = finished_at - interval '2 hours'")
    await bench.results.purge()

    assert not file_of(tmp_path, cancelled).exists()
    assert file_of(tmp_path, published).exists()


async def test_a_worker_forgets_by_its_schedule(bench: Bench) -> None:
    job = await bench.publish()
    await ages(bench, job)

    async with bench.working(schedules=schedules()):

        async def purged() -> bool:
            done = "SELECT true FROM work WHERE kind = $1 AND state = 'succeeded'"
            return await bench.pool.fetchval(done, PURGE) is not None

        await wait_until(purged, "the schedule has run")

    assert await bench.results.read(job, OWNER) is None
