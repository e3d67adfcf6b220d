"""A change is told as made only where reading it back finds it: PostgreSQL here loses what was written, or keeps something else."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest

from body_broker.lore import make_draft, standing
from body_broker.work import queue
from body_broker.work.model import Origin
from mcp_servers.admin.changes.kind import Found
from tests.mcp_servers.admin.changes.conftest import ANNA, RECEIPT, Studio, new_key
from tests.waiting import wait_until

ANN = Origin(chain=("operator:ann",), session="operator:ann", receipt=RECEIPT)
LOST = "RETURN NULL"
BELL = [{"title": "The bell", "text": "Nobody rings it."}]
WRITTEN = "BEFORE INSERT OR UPDATE"


@asynccontextmanager
async def postgres_doing(studio: Studio, *steps: tuple[str, str, str]) -> AsyncGenerator[None]:
    """Of each (when, table, what): PostgreSQL does that for every row that is written there."""
    async with studio.reach.pool.acquire() as connection, AsyncExitStack() as undone:
        for when, table, what in steps:
            await connection.execute(
                f"CREATE FUNCTION on_{table}() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {what}; END $$;"
                f"CREATE TRIGGER on_{table} {when} ON {table} FOR EACH ROW EXECUTE FUNCTION on_{table}()"
            )
            undone.push_async_callback(
                connection.execute, f"DROP TRIGGER on_{table} ON {table}; DROP FUNCTION on_{table}()"
            )
        yield


async def failed(studio: Studio, found: Found, text: str) -> None:
    """It is told as failed, in these words, and kept as that."""
    assert (found.state, found.text) == ("failed", text)
    kept = await studio.reach.pool.fetchrow("SELECT state, outcome ->> 'found' AS found FROM admin_change")
    assert kept is not None
    assert (kept["state"], kept["found"]) == ("failed", text)


@pytest.mark.parametrize(
    ("what", "version"),
    [(LOST, 1), ("NEW.value = '99'; RETURN NEW", 2), ("NEW.version = 7; RETURN NEW", 7)],
    ids=["nothing", "another value", "another version"],
)
async def test_a_figure_that_is_not_there_as_approved_is_told_as_failed(
    studio: Studio, what: str, version: int
) -> None:
    await studio.reach.tuning.set("spawn.rate", 1, by="operator:ann")
    async with postgres_doing(studio, (WRITTEN, "config", what), (WRITTEN, "config_history", what)):
        found = await studio.approved("config", "spawn.rate", value=2)
    await failed(studio, found, f"spawn.rate has version {version}, which is not what was approved.")


async def test_a_new_figure_that_is_not_there_is_told_as_failed(studio: Studio) -> None:
    async with postgres_doing(studio, (WRITTEN, "config", LOST)):
        found = await studio.approved("config", "spawn.night", value=2)
    await failed(studio, found, "There is no spawn.night, though it was set.")


async def test_a_figure_that_only_its_history_has_is_told_as_failed(studio: Studio) -> None:
    await studio.reach.tuning.set("spawn.rate", 1, by="operator:ann")
    async with postgres_doing(studio, (WRITTEN, "config", LOST)):
        found = await studio.approved("config", "spawn.rate", value=2)
    await failed(studio, found, "spawn.rate has version 1, which is not what was approved.")


PATCHES: list[tuple[str, str, Mapping[str, Any]]] = [
    ("world_patch", "mara", {"fields": {"mood": "afraid"}}),
    ("world_remove", "shards", {"remove": True}),
]


@pytest.mark.parametrize(("kind", "target", "params"), PATCHES)
@pytest.mark.parametrize(
    "what",
    [LOST, """NEW.patch = '{"mood": "wry"}'; RETURN NEW""", "NEW.epoch = NEW.epoch + 1; RETURN NEW"],
    ids=["nothing", "another patch", "another epoch"],
)
async def test_an_entity_that_did_not_become_what_was_approved_is_told_as_failed(
    studio: Studio, kind: str, target: str, params: Mapping[str, Any], what: str
) -> None:
    async with postgres_doing(studio, (WRITTEN, "world_event", what)):
        found = await studio.approved(kind, target, **params)
    await failed(studio, found, f"{target} did not become what was approved.")


@pytest.mark.parametrize(("kind", "target", "params"), PATCHES)
async def test_an_entity_that_only_its_events_have_is_told_as_failed(
    studio: Studio, kind: str, target: str, params: Mapping[str, Any]
) -> None:
    async with postgres_doing(studio, (WRITTEN, "world_entity", LOST)):
        found = await studio.approved(kind, target, **params)
    await failed(studio, found, f"{target} did not become what was approved.")


async def test_a_patch_of_which_one_entity_is_lost_is_told_as_failed(studio: Studio) -> None:
    lost = "IF NEW.entity_id = 'ben' THEN RETURN NULL; END IF; RETURN NEW"
    also = [{"entity_id": "ben", "fields": {"mood": "afraid"}}]
    async with postgres_doing(studio, (WRITTEN, "world_event", lost)):
        found = await studio.approved("world_patch", "mara", fields={"mood": "afraid"}, also=also)
    await failed(studio, found, "ben did not become what was approved.")


async def test_a_document_that_is_still_there_after_its_deletion_is_told_as_failed(studio: Studio) -> None:
    document = await studio.bring("The rumour", "The mayor is a ghost.", canon=False)
    back = "INSERT INTO lore_edition OVERRIDING SYSTEM VALUE SELECT OLD.*; RETURN NULL"
    async with postgres_doing(studio, ("AFTER DELETE", "lore_edition", back), ("BEFORE DELETE", "lore_document", LOST)):
        found = await studio.approved("delete_lore", document)
    await failed(studio, found, f"{document} is still there.")


async def test_a_document_from_outside_that_did_not_become_canon_is_told_as_failed(studio: Studio) -> None:
    document = await studio.bring("The rumour", "The mayor is a ghost.", canon=False)
    async with postgres_doing(studio, ("BEFORE UPDATE", "lore_document", "NEW.canon = false; RETURN NEW")):
        found = await studio.approved("ingest", document)
    await failed(studio, found, f"{document} is not canon.")


async def test_documents_whose_import_was_cancelled_are_told_as_failed(studio: Studio) -> None:
    foreseen = await studio.foresee("ingest", "shared", documents=BELL)
    async with asyncio.TaskGroup() as tasks:
        making = tasks.create_task(studio.make("ingest", "shared", key=new_key(), basis=foreseen.basis, documents=BELL))
        job: str = await wait_until(
            lambda: studio.reach.pool.fetchval("SELECT id FROM work WHERE kind = 'lore_import'"), "the import is queued"
        )
        await queue.cancel(studio.reach.pool, job, owner=ANNA.asker)
    await failed(studio, making.result()[1], f"The import {job} was cancelled.")


async def test_a_document_that_the_canon_had_by_another_name_and_lost_is_told_as_failed(studio: Studio) -> None:
    async with studio.working():
        draft = make_draft("lore/bell.txt", BELL[0]["title"], BELL[0]["text"])
        taken = await studio.reach.lore.importing.take([draft], index="shared", canon=True, origin=ANN)
        document = taken.documents[0].doc_id

        async def there() -> bool:
            return document in await standing.hashes_of_canon(studio.reach.pool, [document])

        await wait_until(there, "it is imported")
    lost = "DELETE FROM lore_document; RETURN NEW"
    async with postgres_doing(studio, ("BEFORE UPDATE", "admin_change", lost)):
        found = await studio.approved("ingest", "shared", documents=BELL)
    text = f"Of {document} the canon has 0 of 1 with the texts that were approved: others were changed since."
    await failed(studio, found, text)


async def test_what_was_told_as_failed_is_failed_again_for_whoever_repeats_it(studio: Studio) -> None:
    await studio.reach.tuning.set("spawn.rate", 1, by="operator:ann")
    foreseen, key = await studio.foresee("config", "spawn.rate", value=2), new_key()
    async with postgres_doing(studio, (WRITTEN, "config", LOST), (WRITTEN, "config_history", LOST)):
        first = await studio.make("config", "spawn.rate", key=key, basis=foreseen.basis, value=2)
    again = await studio.make("config", "spawn.rate", key=key, basis=foreseen.basis, value=2)
    assert again == first
    await failed(studio, again[1], "spawn.rate has version 1, which is not what was approved.")
    assert (await studio.reach.tuning.get("spawn.rate")).value == 1, "it was not made again"
