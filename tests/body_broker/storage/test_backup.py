"""A backup taken from a serving hub becomes a data dir that goes on where it was: lore, jobs, audit; and trusts nothing it cannot know."""

from __future__ import annotations

import asyncio
import json
import re
import stat
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
from mcp import Client
from mcp.client.streamable_http import streamable_http_client

from body_broker.errors import Unauthenticated
from body_broker.settings import Settings
from mcp_servers.hub.runtime import Runtime, open_runtime
from mcp_servers.hub.serve import Address, listening
from tests.body_broker.storage.commands import backed_up, command, names_in, restored, table_held
from tests.waiting import wait_until

STORY = "Osric Vane ferried the drowned across the Mourning Water, and kept a lantern for each of them."
_QUEUED = "SELECT id FROM work WHERE state = 'queued' AND kind LIKE 'lore%'"


async def test_a_backup_of_a_serving_hub_goes_on_in_an_empty_data_dir(own_dir: Path, tmp_path: Path) -> None:
    file = tmp_path / "hub.backup"
    async with _hub(own_dir) as (runtime, url):
        token = (await runtime.tokens.issue("person:anna", roles=["admin"], ttl_s=600)).token
        await _import(runtime, tmp_path, STORY)
        async with _client(url, token) as anna:
            enough = asyncio.Event()
            asking = asyncio.create_task(_ask_until(enough, anna))
            said = await backed_up(own_dir, file)
            assert not asking.done()
            enough.set()
            await asking  # the client fails to close where an answer still comes
    assert "It is a secret" in said
    assert stat.S_IMODE(file.stat().st_mode) == 0o600

    home = tmp_path / "new" / "data"
    said = await restored(file, home)

    assert "intact" in said
    assert "Every token has ended" in said
    assert "intact" in await command("audit", "verify", "--data-dir", home)
    assert {"backup", "restore"} <= set((await command("audit", "tail", "--data-dir", home)).split())
    async with _hub(home) as (runtime, url):
        with pytest.raises(Unauthenticated, match="not signed by this hub"):
            await runtime.identities.authenticate(token)
        issued = await runtime.tokens.issue("person:anna", ttl_s=600)
        assert issued.roles == {"admin"}
        async with _client(url, issued.token) as anna:
            assert await _found(anna, "lantern for the drowned", STORY)
    assert stat.S_IMODE(home.stat().st_mode) == 0o700
    assert stat.S_IMODE((home / "secrets" / "root.key").stat().st_mode) == 0o600


async def test_a_job_that_was_queued_goes_on_where_the_backup_is_restored(own_dir: Path, tmp_path: Path) -> None:
    async with open_runtime(_settings(own_dir)) as runtime:  # no worker runs, so it waits
        importing = asyncio.create_task(_import(runtime, tmp_path, STORY))
        job = await wait_until(lambda: runtime.stores.pool.fetchval(_QUEUED), "the import is queued")
        importing.cancel()
        await asyncio.wait([importing])
        await runtime.stores.pool.execute("INSERT INTO lore_copy (generation, state) VALUES ('lore-ours', 'serving')")
        await backed_up(own_dir, tmp_path / "hub.backup")

    await restored(tmp_path / "hub.backup", tmp_path / "data")

    async with _hub(tmp_path / "data") as (runtime, url):
        # It is the other hub's copy in OpenSearch, and knows revs that are given out anew here.
        assert await runtime.stores.pool.fetchval("SELECT count(*) FROM lore_copy") == 0
        await wait_until(lambda: _is_done(runtime, job), "the queued import goes on", 60)
        token = (await runtime.tokens.issue("person:anna", roles=["designer"], ttl_s=600)).token
        async with _client(url, token) as anna:
            assert await _found(anna, "lantern for the drowned", STORY)


async def test_no_session_of_a_restored_data_dir_is_clean_and_none_keeps_its_token(
    own_dir: Path, tmp_path: Path
) -> None:
    file = tmp_path / "hub.backup"
    async with _hub(own_dir) as (runtime, _):
        # Ben's login is there, but he has never called: what he reads after the backup leaves no trace in it.
        anna, ben = [(await runtime.tokens.issue(f"person:{name}", ttl_s=600)).token for name in ("anna", "ben")]
        assert not await _tainted(runtime, anna)
        await backed_up(own_dir, file)
        assert not await _tainted(runtime, ben)
        later = (await runtime.tokens.issue("person:carl", ttl_s=600)).token

    home = tmp_path / "data"
    await restored(file, home)

    async with _hub(home) as (runtime, _):
        for token in (anna, ben, later):
            with pytest.raises(Unauthenticated):
                await runtime.identities.authenticate(token)
        for name, tainted in (("anna", True), ("ben", True), ("carl", False)):  # carl's is another session than it was
            token = (await runtime.tokens.issue(f"person:{name}", ttl_s=600)).token
            assert await _tainted(runtime, token) is tainted


async def test_tokens_hold_after_a_move_and_their_sessions_are_tainted_all_the_same(
    own_dir: Path, tmp_path: Path
) -> None:
    async with _hub(own_dir) as (runtime, _):
        anna = (await runtime.tokens.issue("person:anna", ttl_s=600)).token
        assert not await _tainted(runtime, anna)
    await backed_up(own_dir, tmp_path / "hub.backup")

    said = await restored(tmp_path / "hub.backup", tmp_path / "data", "--keep-tokens")

    assert "revoke them again" in said
    async with _hub(tmp_path / "data") as (runtime, _):
        assert await _tainted(runtime, anna)


async def test_the_audit_holds_although_its_anchor_went_on_while_the_backup_was_taken(
    own_dir: Path, tmp_path: Path
) -> None:
    file, home = tmp_path / "hub.backup", tmp_path / "data"
    await command("audit", "anchor", "--data-dir", own_dir)
    async with table_held(own_dir) as connection:
        taking = asyncio.create_task(backed_up(own_dir, file))
        waiting = "SELECT count(*) > 0 FROM pg_locks WHERE NOT granted"
        await wait_until(lambda: connection.fetchval(waiting), "the dump has its picture and waits", 60)
        await command("token", "issue", "--person", "anna", "--data-dir", own_dir)
        await command("audit", "anchor", "--data-dir", own_dir)  # which the picture does not have
    await taking
    home.mkdir()  # empty is as good as not there

    said = await restored(file, home)

    assert re.search(r"intact: .* an anchor of 1 checkpoints", said)
    assert "BREACH" not in said
    await command("audit", "anchor", "--data-dir", home)  # and it goes on from there
    assert "BREACH" not in await command("audit", "verify", "--data-dir", home)


async def test_an_anchor_elsewhere_is_never_touched(own_dir: Path, tmp_path: Path) -> None:
    file, elsewhere = tmp_path / "hub.backup", tmp_path / "anchor.jsonl"
    env = {"BODY_BROKER_AUDIT_ANCHOR": str(elsewhere)}
    await command("audit", "anchor", "--data-dir", own_dir, env=env)
    kept = elsewhere.read_bytes()
    await backed_up(own_dir, file, env=env)

    refused = await restored(file, tmp_path / "data", fails=True, env=env)

    assert "Move it aside and keep it" in refused
    assert not (tmp_path / "data").exists()
    elsewhere.rename(tmp_path / "aside")
    assert "intact" in await restored(file, tmp_path / "data", env=env)
    assert elsewhere.read_bytes() == kept
    assert not (tmp_path / "data" / "audit-anchor.jsonl").exists()


async def test_a_root_key_that_is_a_setting_stays_out_and_must_be_the_same(own_dir: Path, tmp_path: Path) -> None:
    file, home = tmp_path / "hub.backup", tmp_path / "data"
    env = {"BODY_BROKER_SECRET_KEY": "k" * 40}
    await command("status", "--data-dir", own_dir, env=env)

    said = await backed_up(own_dir, file, env=env)

    assert "BODY_BROKER_SECRET_KEY is not in it" in said
    assert b"k" * 40 not in file.read_bytes()
    assert "Set BODY_BROKER_SECRET_KEY" in await restored(file, home, fails=True)
    other = {"BODY_BROKER_SECRET_KEY": "o" * 40}
    assert "is not the key of this backup" in await restored(file, home, fails=True, env=other)
    assert not home.exists()
    assert "intact" in await restored(file, home, env=env)
    assert not (home / "secrets").exists()


async def test_a_backup_replaces_no_file_unless_it_is_forced(own_dir: Path, tmp_path: Path) -> None:
    file = tmp_path / "hub.backup"
    file.write_text("somebody's")
    await command("status", "--data-dir", own_dir)

    assert "--force" in await backed_up(own_dir, file, fails=True)
    assert file.read_text() == "somebody's"
    assert "secret" in await backed_up(own_dir, file, "--force")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert names_in(tmp_path) == ["hub.backup"]


async def test_stores_that_are_not_embedded_are_refused_with_what_to_use_instead(tmp_path: Path) -> None:
    env = {"BODY_BROKER_DATABASE_URL": "postgresql://nowhere/x", "BODY_BROKER_SECRET_KEY": "k" * 40}
    (tmp_path / "file").write_bytes(b"")

    assert "pg_dump" in await backed_up(tmp_path / "data", tmp_path / "new", fails=True, env=env)
    assert "pg_restore" in await restored(tmp_path / "file", tmp_path / "data", fails=True, env=env)
    assert names_in(tmp_path) == ["file"]


async def test_there_is_nothing_to_back_up_where_nothing_was_ever_kept(tmp_path: Path) -> None:
    said = await backed_up(tmp_path / "typo", tmp_path / "file", fails=True)

    assert "nothing to back up" in said
    assert names_in(tmp_path) == []


def _settings(data_dir: Path) -> Settings:
    return Settings.model_validate({"data_dir": data_dir})


@asynccontextmanager
async def _hub(data_dir: Path) -> AsyncGenerator[tuple[Runtime, str]]:
    async with (
        open_runtime(_settings(data_dir)) as runtime,
        listening(runtime, Address("127.0.0.1", 0)) as served,
    ):
        yield runtime, served.url


@asynccontextmanager
async def _client(url: str, token: str) -> AsyncGenerator[Client]:
    headers = {"authorization": f"Bearer {token}"}
    async with (
        httpx2.AsyncClient(headers=headers, timeout=60) as http,
        Client(streamable_http_client(url, http_client=http)) as client,
    ):
        yield client


async def _import(runtime: Runtime, folder: Path, text: str) -> None:
    await asyncio.to_thread((folder / "story.txt").write_text, text)
    await runtime.services.rag.import_paths([folder / "story.txt"], index="shared", by="operator:tests")


async def _is_done(runtime: Runtime, job: str) -> bool:
    state = await runtime.stores.pool.fetchval("SELECT state FROM work WHERE id = $1", job)
    return state == "succeeded"


async def _found(client: Client, query: str, text: str) -> bool:
    answer = await client.call_tool("search_lore", {"query": query})
    content: Any = answer.structured_content
    assert not answer.is_error, content
    return bool(content["items"]) and content["items"][0]["content"].strip() == text


async def _ask_until(enough: asyncio.Event, client: Client) -> None:
    while not enough.is_set():
        answer = await client.call_tool("whoami", {})
        assert not answer.is_error, json.dumps(answer.structured_content)


async def _tainted(runtime: Runtime, token: str) -> bool:
    caller = await runtime.identities.authenticate(token)
    return (await runtime.sessions.enter(caller, fresh=True)).tainted
