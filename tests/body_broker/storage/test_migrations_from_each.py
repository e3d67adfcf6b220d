"""A database of every earlier schema, with what the program of its day left in it, becomes one that today's program works on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import asyncpg
import pytest

from approvals.desk import Desk
from approvals.model import WORK_KIND, Approval, Verdict
from approvals.voting import Void
from body_broker.audit.verify import verify
from body_broker.calls import Caller, Json
from body_broker.errors import Conflict, StoreStartError
from body_broker.settings import Settings
from body_broker.storage import embedded
from body_broker.storage.archive import Facts, new_file
from body_broker.storage.backup import write_backup
from body_broker.storage.embedded.binaries import POSTGRES_MAJOR
from body_broker.storage.migrations import Migration, migrate, migrations
from body_broker.storage.postgres import Pool, open_pool
from body_broker.work import queue
from body_broker.work.model import Origin
from body_broker.work.run import Run
from body_broker.work.worker import Worker
from body_broker.world.canon.store import read_facts
from body_broker.world.model import Proposal
from body_broker.world.queue import submit, wait
from mcp_servers.hub.cli.backup import fingerprint
from mcp_servers.hub.engine import arbitrating
from mcp_servers.hub.requests import Request
from mcp_servers.hub.runtime import Runtime, open_runtime
from mcp_servers.hub.secrets import Secrets
from mcp_servers.hub.worker import working
from tests.body_broker.storage.commands import command, restored
from tests.mcp_servers.hub.deeds import APPROVERS, say
from tests.waiting import wait_until

KNOWN = migrations()
EARLIER = range(1, len(KNOWN))
ROWS = Path(__file__).with_name("rows")
SECRET = "a-secret-key-of-the-tests-0123456789"
BROKEN = Migration(len(KNOWN) + 1, "broken", "DROP TABLE work CASCADE; SELECT nonsense")
AUDIT, IDENTITY, LORE, TUNING, WORLD, CANON, APPROVAL, SPEND = 2, 3, 4, 5, 7, 8, 10, 11
DECIDED, WAITING = "apr_Gax4ehk_NWdLhdQ3s2g9WuK8", "apr_Hzs0l0II9QjCXvDxsVt8OI1N"
"""What a person said yes to under schema 10, and what still waited."""
_TABLES = "SELECT table_name, column_name, data_type FROM information_schema.columns WHERE table_schema = 'public' ORDER BY 1, 2"


@pytest.fixture
def old_url(store_urls: embedded.StoreUrls) -> str:
    return store_urls.database_url.replace("/postgres?", "/earlier?")


def rows_of(migration: Migration) -> str:
    """What a real hub left in the tables of this migration, when it was the newest or not long after."""
    return (ROWS / f"{migration.number:04}_{migration.name}.sql").read_text("utf-8")


@asynccontextmanager
async def earlier(store_urls: embedded.StoreUrls, url: str, schema: int) -> AsyncGenerator[Pool]:
    """A database of that schema, with rows."""
    admin = await asyncpg.connect(store_urls.database_url)
    try:
        await admin.execute("CREATE DATABASE earlier")
        async with open_pool(url) as pool:
            assert await migrate(pool, KNOWN[:schema]) == schema
            for migration in KNOWN[:schema]:
                await pool.execute(await asyncio.to_thread(rows_of, migration))
            yield pool
    finally:
        await admin.execute("DROP DATABASE earlier WITH (FORCE)")
        await admin.close()


def test_every_earlier_schema_has_rows_to_migrate() -> None:
    wanted = {f"{migration.number:04}_{migration.name}.sql" for migration in KNOWN[:-1]}

    assert {file.name for file in ROWS.iterdir()} >= wanted


@pytest.mark.parametrize("schema", EARLIER)
async def test_what_an_earlier_program_left_works_after_the_migration(
    store_urls: embedded.StoreUrls, old_url: str, redis_url: str, tmp_path: Path, schema: int
) -> None:
    async with earlier(store_urls, old_url, schema) as pool:
        assert await migrate(pool) == len(KNOWN)

        await _jobs_run(pool, old_url)
        settings = {"database_url": old_url, "redis_url": redis_url, "secret_key": SECRET, "data_dir": tmp_path}
        async with open_runtime(Settings.model_validate(settings | {"embeddings": "off"})) as runtime:
            report = await verify(pool, runtime.secrets.derive("audit"))
            assert report.intact, report.breaches
            assert report.records >= (10 if schema >= AUDIT else 1)
            await _identities_hold(runtime, schema)
            await _lore_is_found(runtime, schema)
            if schema >= TUNING:
                assert (await runtime.services.rag.tuning.get("spawn.rate")).value == 42
            if schema >= WORLD:
                await _world_goes_on(runtime)
            if schema >= CANON:
                assert [fact.object for fact in await read_facts(pool, ["mara"])] == ["grey", "anna"]
            if schema >= SPEND:
                assert await _money_of_the_dead_is_booked(pool)


@pytest.mark.parametrize("verdict", ["approve", "deny"])
async def test_what_waited_for_people_is_read_and_decided_after_the_migration(
    store_urls: embedded.StoreUrls, old_url: str, redis_url: str, tmp_path: Path, verdict: Verdict
) -> None:
    approvers = tmp_path / "approvers.toml"
    await asyncio.to_thread(approvers.write_text, APPROVERS, "utf-8")
    settings = {"database_url": old_url, "redis_url": redis_url, "secret_key": SECRET, "data_dir": tmp_path}
    async with earlier(store_urls, old_url, APPROVAL) as pool:
        await _wait_for_people(pool)
        assert await migrate(pool) == len(KNOWN)

        async with open_runtime(
            Settings.model_validate(settings | {"embeddings": "off", "approvers": approvers})
        ) as runtime:
            desk = runtime.approvals.desk
            decided, waiting = await desk.get(DECIDED), await desk.get(WAITING)
            assert (decided.standing, decided.tool) == ("done", "ingest_documents")
            assert [(vote.voter, vote.verdict, vote.via) for vote in decided.votes] == [
                ("person:demo-ada", "approve", "local")
            ]
            assert (waiting.standing, waiting.headline) == ("pending", "Set “spawn.night.rate” to 2")
            assert [each.id for each in await desk.waiting_for("person:otto")] == [WAITING]

            if verdict == "approve" and not await _still_stands(desk, waiting):
                with pytest.raises(Conflict, match="The request is cancelled"):  # its tool or rule is another by now
                    await say(desk, WAITING, verdict)
                assert (await desk.get(WAITING)).standing == "cancelled"
            else:
                stands = (await say(desk, WAITING, verdict)).standing
                assert stands == {"approve": "approved", "deny": "denied"}[verdict]


@pytest.mark.parametrize("schema", [*EARLIER, len(KNOWN)])
async def test_a_migration_that_fails_leaves_the_earlier_schema_whole(
    store_urls: embedded.StoreUrls, old_url: str, schema: int
) -> None:
    async with earlier(store_urls, old_url, min(schema, len(KNOWN) - 1)) as pool:
        if schema == len(KNOWN):
            await migrate(pool)
        tables = await pool.fetch(_TABLES)

        with pytest.raises(StoreStartError, match=r"\(broken\) does not apply"):
            await migrate(pool, [*KNOWN, BROKEN])

        assert await pool.fetch(_TABLES) == tables
        assert await pool.fetchval("SELECT max(number) FROM schema_version") == schema
        assert await pool.fetchval("SELECT count(*) FROM work") >= 2
        assert await migrate(pool) == len(KNOWN)


@pytest.mark.parametrize("schema", [EARLIER[0], EARLIER[-1]])
async def test_a_backup_of_an_earlier_schema_is_restored_and_migrated(
    own_dir: Path, tmp_path: Path, schema: int
) -> None:
    env = {"BODY_BROKER_SECRET_KEY": SECRET}
    key = fingerprint(Secrets(SECRET.encode()))
    facts = Facts(program="0.1.0", schema=schema, postgres=POSTGRES_MAJOR, taken_at="2026-11-21T00:00:00Z", key=key)
    urls = await asyncio.to_thread(embedded.start, own_dir)
    async with open_pool(urls.database_url) as pool:
        await migrate(pool, KNOWN[:schema])
        for migration in KNOWN[:schema]:
            await pool.execute(await asyncio.to_thread(rows_of, migration))
    await asyncio.to_thread(_back_up, tmp_path / "old.backup", urls.database_url, facts)
    await asyncio.to_thread(embedded.release, own_dir)

    assert "intact" in await restored(tmp_path / "old.backup", tmp_path / "data", env=env)

    assert f"schema {len(KNOWN)}," in await command("status", "--data-dir", tmp_path / "data", env=env)


def _back_up(file: Path, database_url: str, facts: Facts) -> None:
    with new_file(file, force=False) as handle:
        nowhere = file.with_name("none")
        write_backup(handle, database_url, facts, root_key=None, anchor=nowhere, progress=_quiet)


def _quiet(_doing: str, _done: int, _total: int | None) -> None:
    """Nobody watches."""


async def _jobs_run(pool: Pool, url: str) -> None:
    done: list[Json] = []

    async def keep(run: Run) -> Json:
        done.append(run.work.input)
        return {"kept": True}

    worker = Worker(pool, {"tests.kept": keep}, database_url=url, lease_s=5.0, poll_s=0.1)
    task = asyncio.create_task(worker.run())
    await wait_until(lambda: _state_is(pool, "job_kept", "succeeded"), "the kept job has run")
    worker.stop()
    await task
    assert done == [{"n": 7}]
    assert await _state_is(pool, "job_waiting", "waiting")


async def _identities_hold(runtime: Runtime, schema: int) -> None:
    issued = await runtime.tokens.issue("person:anna", ttl_s=60)
    anna = await runtime.identities.authenticate(issued.token)
    if schema >= IDENTITY:
        assert anna.roles == {"person:anna": {"designer"}}  # and the old signing key signed, under the old root key
        assert await runtime.stores.pool.fetchval("SELECT count(*) FROM signing_key") == 1
        # Her session's witness is there, its state in Redis is not.
        assert (await runtime.sessions.enter(anna, fresh=True)).tainted


async def _lore_is_found(runtime: Runtime, schema: int) -> None:
    await runtime.tokens.issue("person:ben", roles=["designer"], ttl_s=60)
    ben = await runtime.identities.authenticate((await runtime.tokens.issue("person:ben", ttl_s=60)).token)
    if schema < LORE:
        assert await _titles(runtime, ben, "lantern for the drowned") == []
        return
    assert await _titles(runtime, ben, "lantern for the drowned") == ["The ferryman"]
    async with working(runtime):  # the import that was queued in those days
        await wait_until(lambda: _documents(runtime, 2), "it is done", 60)
    assert "Bell" in await _titles(runtime, ben, "who mended the bell of the lighthouse")


async def _world_goes_on(runtime: Runtime) -> None:
    """What was decided is kept, what nobody decided in time has expired, and what is asked for now is applied."""
    pool, world = runtime.stores.pool, runtime.services.world
    mara = world.get("mara")
    assert mara is not None
    assert (mara.version, mara.data["place"]) == (2, "alley")
    asked = Proposal(entity_id="mara", op="move", payload={"to": "morgue"}, key="back", expect_version=2)
    async with arbitrating(runtime):
        (taken,) = await submit(
            pool,
            [asked],
            origin=Origin(chain=("service:game",), session="tests"),
            requester="service:game",
            rank=1,
            open_changes_max=9,
        )
        standing = await wait(pool, world, taken.change_id, "service:game", timeout_s=30)
    assert standing.state == "applied"
    states = await pool.fetch("SELECT key, state FROM world_change ORDER BY seq")
    assert [(row["key"], row["state"]) for row in states] == [
        ("move", "applied"),
        ("say", "applied"),
        ("late", "conflict"),
        ("bell", "rejected"),
        ("waiting", "expired"),
        ("back", "applied"),
    ]


async def _money_of_the_dead_is_booked(pool: Pool) -> bool:
    """What a process reserved that is gone counts as spent once its time is over, which it was long ago or is by now."""
    await pool.execute("UPDATE spend_reservation SET expires_at = clock_timestamp()")
    await pool.execute("SELECT spend_sweep(100)")
    spent = "SELECT spent FROM spend_day WHERE day = '2026-11-22' AND tier = 'cloud' AND asker = '*'"
    return await pool.fetchval(spent) == 23_450_000


async def _wait_for_people(pool: Pool) -> None:
    """As it stood a moment after it was asked for: its time is not over, and its work is there."""
    await pool.execute("UPDATE approval SET expires_at = now() + interval '10 minutes' WHERE id = $1", WAITING)
    origin = Origin(chain=("person:root",), session="tests")
    await queue.enqueue(
        pool, WORK_KIND, {"approval": WAITING}, origin=origin, work_id=WAITING, waiting=True, expires_in_s=600
    )


async def _still_stands(desk: Desk, approval: Approval) -> bool:
    try:
        await desk.still_stands(approval)
    except Void:
        return False
    return True


async def _titles(runtime: Runtime, caller: Caller, query: str) -> list[str]:
    asked = Request(name="search_lore", kind="tool", arguments={"query": query}, caller=caller)
    answer = await runtime.gate.run(asked)
    return [item["title"] for item in answer.result.model_dump()["items"]]


async def _documents(runtime: Runtime, count: int) -> bool:
    found = await runtime.stores.pool.fetchval("SELECT count(*) FROM lore_document WHERE rev IS NOT NULL")
    return found == count


async def _state_is(pool: Pool, job: str, state: str) -> bool:
    return await pool.fetchval("SELECT state FROM work WHERE id = $1", job) == state
