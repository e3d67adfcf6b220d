"""The command `world` as an operator meets it: load, export, check and show, alone and beside a hub, and killed in the middle."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from body_broker.storage.postgres import Pool
from mcp_servers.hub.engine import arbitrating
from tests.mcp_servers.hub.conftest import SECRET, Hub
from tests.mcp_servers.hub.test_clients import HUB, run
from tests.waiting import wait_until

ENTITIES, FACTS, LORE = 117, 161, 92

World = Callable[..., Any]


@pytest.fixture
def environment(database_url: str, redis_url: str, tmp_path: Path) -> dict[str, str]:
    """What a command needs to stand on the test's own stores."""
    return {
        "BODY_BROKER_DATABASE_URL": database_url,
        "BODY_BROKER_REDIS_URL": redis_url,
        "BODY_BROKER_SECRET_KEY": SECRET,
        "BODY_BROKER_DATA_DIR": str(tmp_path / "data"),
        "BODY_BROKER_EMBEDDINGS": "off",
    }


@pytest.fixture
def world(environment: dict[str, str]) -> World:
    async def command(*arguments: str | Path, code: int = 0) -> tuple[str, str]:
        ended, out, err = await run(HUB, "world", *map(str, arguments), **environment)
        assert ended == code, (out, err)
        return out, err

    return command


async def counts(pool: Pool) -> tuple[int, int, int]:
    """Entities, events, facts."""
    row = await pool.fetchrow(
        "SELECT (SELECT count(*) FROM world_entity) AS entities, (SELECT count(*) FROM world_event) AS events,"
        " (SELECT count(*) FROM fact WHERE retired_at IS NULL) AS facts"
    )
    assert row is not None
    return row["entities"], row["events"], row["facts"]


async def test_the_starter_world_is_loaded_once_shown_and_written_out_whole(
    world: World, pool: Pool, tmp_path: Path
) -> None:
    out, err = await world("load")
    assert out == (
        f"Entities: {ENTITIES} created, 0 changed, 0 unchanged; whoever arbitrates begins anew (epoch 1).\n"
        f"Canon: 29 predicates, {FACTS} facts and 3 plots written.\n"
        f"Lore: {LORE} documents imported, 97 passages, 0 were there already.\n"
    )
    assert err == ""
    assert await counts(pool) == (ENTITIES, ENTITIES, FACTS)

    shown, _ = await world("show")
    assert "region      ashmere_quay: 8 places, 10 npcs, 8 items" in shown
    assert f"lore        {LORE} documents of canon" in shown
    assert "engine      nobody yet, epoch 1, no lease holds" in shown

    file = tmp_path / "export.json"
    out, err = await world("export", file)
    assert (out.startswith("export.json: 5 regions, 25 places"), err) == (True, "")
    out, _ = await world("load", file, "--prune")
    assert out == (
        f"Entities: 0 created, 0 changed, {ENTITIES} unchanged.\nCanon: 0 predicates, 0 facts and 0 plots written.\n"
        f"Lore: 0 documents imported, 0 passages, {LORE} were there already.\n"
    )
    records = await pool.fetchval("SELECT count(*) FROM audit_record")
    assert records >= 3, "each command is on the audit"


async def test_lore_of_a_file_is_pruned_with_it_and_other_lore_is_exported_too(
    world: World, environment: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "song.md").write_text("# A song\n\nRow, row.\n")
    assert (await run(HUB, "lore", "import", str(tmp_path / "song.md"), "--meta", "region=atlantis", **environment))[
        0
    ] == 0
    entries = [
        {"id": "a", "title": "A", "text": "One."},
        {"id": "a", "title": "A", "text": "Two.", "index": "persona:hob"},
    ]
    file = tmp_path / "world.json"
    file.write_text(json.dumps({"format": "body-broker/world/1", "lore": entries}))

    await world("load", file)
    await world("export", tmp_path / "out.json")

    assert {(e["id"], e["text"], e.get("index"), e.get("region")) for e in json.loads((tmp_path / "out.json").read_text())["lore"]} == {
        ("a", "One.", None, None),
        ("a", "Two.", "persona:hob", None),
        ("imported/song.md", "# A song\n\nRow, row.\n", None, None),
    }  # fmt: skip
    assert '"region": "atlantis"' in (tmp_path / "out.json").read_text(), (
        "a name of no entity is kept as it was brought"
    )
    file.write_text(json.dumps({"format": "body-broker/world/1", "lore": entries[:1]}))
    out, _ = await world("load", file, "--prune")
    assert "1 were there already, 1 deleted." in out


async def test_a_bad_file_is_told_whole_and_touches_nothing(world: World, pool: Pool, tmp_path: Path) -> None:
    file = tmp_path / "world.json"
    npcs = [{"id": "hob", "name": "Hob", "place": "nowhere", "faction": "nobody"}]
    file.write_text(json.dumps({"format": "body-broker/world/1", "entities": {"npcs": npcs}}))
    problems = "  entities.npcs[0].faction: there is no faction 'nobody'\n  entities.npcs[0].place: there is no place 'nowhere'\n"

    out, err = await world("check", file, code=1)
    assert (out, err.startswith(problems + "2 places are wrong.\n")) == ("", True)
    out, err = await world("load", file, code=1)

    assert out == ""
    assert err.startswith(problems + "The world file cannot be used: entities.npcs[0].faction")
    assert await counts(pool) == (0, 0, 0)
    _, err = await world("load", tmp_path / "none.json", code=1)
    assert err == "There is no file or folder none.json.\nCheck the path.\n"


async def test_a_hub_that_serves_sees_the_world_that_a_command_loads(world: World, hub: Hub, tmp_path: Path) -> None:
    file = tmp_path / "world.json"
    region = {"id": "marsh", "name": "The marsh"}

    async with arbitrating(hub.runtime):
        await world("load")
        found = await wait_until(lambda: hub.runtime.services.world.get("osric_vane"), "the map follows")
        assert found is not None
        assert found.data["name"] == "Osric Vane"
        async with hub.client("tier:silver") as silver:
            said = await silver.call_tool("get_npc_state", {"npc_id": "osric_vane"})
            assert not said.is_error, said
            assert json.dumps(said.structured_content).count("Osric Vane") >= 1
        file.write_text(json.dumps({"format": "body-broker/world/1", "entities": {"regions": [region]}}))
        await world("load", file)
        await wait_until(lambda: hub.runtime.services.world.get("marsh"), "the map follows the second load")

        async def live() -> bool:
            return bool(await hub.runtime.stores.pool.fetchval("SELECT lease_until > now() FROM world_engine"))

        await wait_until(live, "the engine arbitrates again")


@asynccontextmanager
async def begun(environment: dict[str, str], *arguments: str) -> AsyncGenerator[asyncio.subprocess.Process]:
    """A command that runs, killed at the end if nothing else ended it."""
    process = await asyncio.create_subprocess_exec(
        *(HUB, *arguments),
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
        env={**os.environ, **environment},  # noqa: TID251 - a child's environment
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGKILL)
        await process.wait()


async def killed_while_it_waits_for(pool: Pool, lock: str, environment: dict[str, str]) -> None:
    """Load the starter world, and kill the command where it waits for a lock that we hold."""
    async with pool.acquire() as connection, connection.transaction():
        await connection.execute(lock)
        async with begun(environment, "world", "load") as process:

            async def waits() -> bool:
                return bool(
                    await pool.fetchval(
                        "SELECT true FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
                        " AND pid <> pg_backend_pid() LIMIT 1"
                    )
                )

            await wait_until(waits, "the load waits in the middle", timeout_s=90)
            process.send_signal(signal.SIGKILL)
            await process.wait()


async def test_a_load_killed_before_its_end_leaves_the_old_world_and_killed_after_it_the_new(
    world: World, pool: Pool, environment: dict[str, str]
) -> None:
    # It has written every entity and event, and waits to write the facts.
    await killed_while_it_waits_for(pool, "SELECT FROM canon FOR UPDATE", environment)
    await wait_until(lambda: settled(pool), "the killed command's transaction is over")
    assert await counts(pool) == (0, 0, 0)
    assert await pool.fetchval("SELECT epoch FROM world_engine") == 0

    # It has committed the world, and waits to bring in the lore.
    await killed_while_it_waits_for(pool, "LOCK TABLE lore_index", environment)
    await wait_until(lambda: settled(pool), "the killed command's transaction is over")
    assert await counts(pool) == (ENTITIES, ENTITIES, FACTS)

    out, _ = await world("load")
    assert f"0 created, 0 changed, {ENTITIES} unchanged" in out
    assert f"{LORE} documents imported" in out


async def settled(pool: Pool) -> bool:
    """Whether nobody else has a transaction open."""
    return not await pool.fetchval(
        "SELECT true FROM pg_stat_activity WHERE datname = current_database() AND xact_start IS NOT NULL"
        " AND pid <> pg_backend_pid() LIMIT 1"
    )
