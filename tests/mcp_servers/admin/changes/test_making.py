"""What holds for changes of every kind: made once under a key, from the basis that was approved, and never half."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

from body_broker.errors import BadInput, Conflict, NotConfigured, NotFound
from body_broker.world import epochs
from mcp_servers.admin.changes.store import DRAFTS_MAX, Requested
from mcp_servers.admin.changes.table import KINDS
from tests.mcp_servers.admin.changes.conftest import ANNA, Studio, new_key
from tests.waiting import wait_until

DOCUMENT = {"title": "The ferry", "text": "It runs at dusk."}


@dataclass
class Case:
    """A change of one kind, and how somebody else changes the same thing before it is made."""

    kind: str
    target: str
    params: dict[str, Any] = field(default_factory=dict[str, Any])


async def case_of(studio: Studio, kind: str) -> Case:
    """A change of this kind that could be made now."""
    match kind:
        case "config":
            await studio.reach.tuning.set("spawn.rate", 1, by="operator:ann")
            return Case(kind, "spawn.rate", {"value": 2})
        case "ingest":
            await studio.bring("The ferry", "It runs at dawn.", canon=True)
            return Case(kind, "shared", {"documents": [DOCUMENT]})
        case "world_patch":
            return Case(kind, "mara", {"fields": {"mood": "afraid"}})
        case "world_remove":
            return Case(kind, "shards", {"remove": True})
        case "delete_lore":
            return Case(kind, await studio.bring("The ferry", "It runs at dawn.", canon=False))
        case "resume":
            await studio.approved("pause", "engine")
        case _:
            pass
    return Case(kind, "engine")


async def somebody_else(studio: Studio, case: Case) -> None:
    """What is foreseen of this case is no longer so."""
    match case.kind:
        case "config":
            await studio.reach.tuning.set("spawn.rate", 5, by="operator:ann")
        case "ingest":
            await studio.bring("The ferry", "It never runs.", canon=True)
        case "world_patch":
            await studio.approved("world_patch", "mara", fields={"mood": "wry"})
        case "world_remove":
            await studio.approved("world_patch", "shards", fields={"name": "More shards"})
        case "delete_lore":
            await studio.bring("The ferry", "It never runs.", canon=False)
        case "pause":
            await studio.approved("pause", "engine")
        case _:
            await studio.approved("resume", "engine")


@pytest.mark.parametrize("kind", KINDS)
async def test_what_was_approved_is_made_once_under_its_key_and_read_back(studio: Studio, kind: str) -> None:
    case, key = await case_of(studio, kind), new_key()
    before = len(await studio.rows())
    foreseen = await studio.foresee(kind, case.target, **case.params)
    async with studio.working(kind):
        first = await studio.make(kind, case.target, key=key, basis=foreseen.basis, **case.params)
        again = await studio.make(kind, case.target, key=key, basis=foreseen.basis, **case.params)

    assert (first[1].state, first[0]) == ("done", again[0])
    assert again[1] == first[1], "what is so is read back both times"
    assert len(await studio.rows()) == before + 1
    row = await studio.reach.pool.fetchrow("SELECT * FROM admin_change WHERE key = $1", key)
    assert row is not None
    assert (row["id"], row["state"], row["requester"]) == (first[0], "done", "person:anna>tier:bronze")
    assert (row["diff"], row["basis"], row["receipt_sequence"]) == (foreseen.diff, foreseen.basis, 7)


@pytest.mark.parametrize("kind", KINDS)
async def test_what_was_changed_between_the_ask_and_the_yes_is_not_made(studio: Studio, kind: str) -> None:
    case = await case_of(studio, kind)
    foreseen = await studio.foresee(kind, case.target, **case.params)
    await somebody_else(studio, case)
    before = await studio.rows()

    with pytest.raises(Conflict):
        await studio.make(kind, case.target, key=new_key(), basis=foreseen.basis, **case.params)
    assert await studio.rows() == before


@pytest.mark.parametrize("kind", KINDS)
async def test_without_the_basis_that_people_saw_nothing_is_made(studio: Studio, kind: str) -> None:
    case = await case_of(studio, kind)
    before = await studio.rows()
    with pytest.raises(Conflict, match="no longer what was shown"):
        await studio.make(kind, case.target, key=new_key(), basis=None, **case.params)
    assert await studio.rows() == before


@asynccontextmanager
async def noting_what_was_read_back(studio: Studio, happens: str) -> AsyncGenerator[None]:
    """PostgreSQL does this whenever somebody notes what reading a change back found, which is after its effect is committed."""
    async with studio.reach.pool.acquire() as connection:
        await connection.execute(
            f"CREATE FUNCTION noting() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {happens}; RETURN NEW; END $$;"
            "CREATE TRIGGER noting BEFORE UPDATE ON admin_change FOR EACH ROW WHEN (NEW.outcome ? 'found')"
            " EXECUTE FUNCTION noting()"
        )
        try:
            yield
        finally:
            await connection.execute("DROP TRIGGER noting ON admin_change; DROP FUNCTION noting()")


@pytest.mark.parametrize("kind", KINDS)
async def test_who_dies_after_the_commit_finds_it_made(studio: Studio, kind: str) -> None:
    case, key = await case_of(studio, kind), new_key()
    foreseen = await studio.foresee(kind, case.target, **case.params)

    async def stuck() -> bool:
        waiting = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objid = 4711 AND NOT granted"
        return bool(await studio.reach.pool.fetchval(waiting))

    async with (
        studio.working(kind),
        noting_what_was_read_back(studio, "PERFORM pg_advisory_xact_lock(4711)"),
        studio.reach.pool.acquire() as held,
        held.transaction(),
    ):
        await held.execute("SELECT pg_advisory_xact_lock(4711)")
        dying = asyncio.create_task(studio.make(kind, case.target, key=key, basis=foreseen.basis, **case.params))
        await wait_until(stuck, "it is made and read back")
        dying.cancel()
        with pytest.raises(asyncio.CancelledError):
            await dying
    before = await studio.rows()
    async with studio.working(kind):
        _, found = await studio.make(kind, case.target, key=key, basis=foreseen.basis, **case.params)
    assert found.state == "done"
    assert len(await studio.rows()) == len(before), "nothing was made again"


@pytest.mark.parametrize("kind", KINDS)
async def test_two_that_make_it_at_the_same_moment_make_it_once(studio: Studio, kind: str) -> None:
    case, key = await case_of(studio, kind), new_key()
    foreseen = await studio.foresee(kind, case.target, **case.params)
    before = len(await studio.rows())
    async with studio.working(kind):
        both = await asyncio.gather(
            *(studio.make(kind, case.target, key=key, basis=foreseen.basis, **case.params) for _ in range(2))
        )
    assert both[0] == both[1]
    assert len(await studio.rows()) == before + 1


async def test_a_change_that_cannot_be_read_back_is_not_told_as_a_failure(studio: Studio) -> None:
    case = await case_of(studio, "config")
    foreseen = await studio.foresee(case.kind, case.target, **case.params)
    async with noting_what_was_read_back(studio, "RAISE disk_full"):
        _, found = await studio.make(case.kind, case.target, key=new_key(), basis=foreseen.basis, **case.params)
    assert found.state == "done"
    assert "read it yourself" in found.text
    assert (await studio.reach.tuning.get("spawn.rate")).value == 2


@pytest.mark.parametrize("kind", ["deploy", "redeploy"])
async def test_a_kind_without_a_backend_says_so_before_anybody_is_asked(studio: Studio, kind: str) -> None:
    with pytest.raises(NotConfigured, match="deploys nothing") as refused:
        await studio.foresee(kind, "hub")
    assert refused.value.details == {"kind": kind}


WRONG: list[tuple[str, str, dict[str, Any], str]] = [
    ("config", "spawn.rate", {}, "params.value: Field required"),
    ("config", "spawn.rate", {"value": 1, "force": True}, "params.force: Extra inputs"),
    ("ingest", "shared", {"documents": []}, "params.documents: List should have at least 1"),
    ("ingest", "shared", {"documents": [{"title": "A"}]}, "params.documents.0.text: Field required"),
    ("ingest", "shared", {}, "params.documents"),
    ("ingest", "doc_1", {"documents": [DOCUMENT]}, "params.documents"),
    ("world_patch", "mara", {"field": {}}, "params.field: Extra inputs"),
    ("world_patch", "mara", {"also": [{"entity_id": "Not An Id"}]}, "params.also.0.entity_id"),
    ("world_patch", "mara", {"also": [{"entity_id": "mara"}]}, "params.also"),
    ("world_patch", "No Id", {"fields": {}}, "target"),
    ("delete_lore", "doc_1", {"rev": 3}, "params.rev: Extra inputs"),
    ("pause", "engine", {"minutes": 5}, "params.minutes: Extra inputs"),
    ("pause", "hub", {}, "target: must be engine"),
    ("resume", "everything", {}, "target: must be engine"),
]


@pytest.mark.parametrize(("kind", "target", "params", "problem"), WRONG)
async def test_wrong_params_are_named_and_nobody_is_asked(
    studio: Studio, kind: str, target: str, params: dict[str, Any], problem: str
) -> None:
    with pytest.raises(BadInput) as refused:
        await studio.foresee(kind, target, **params)
    problems = refused.value.details["problems"]
    assert isinstance(problems, list)
    assert any(each.startswith(problem) for each in problems), problems


async def test_an_unknown_kind_names_those_that_there_are(studio: Studio) -> None:
    with pytest.raises(BadInput) as refused:
        await studio.foresee("format_disk", "sda")
    assert "config, ingest, world_patch, world_remove, delete_lore, pause, resume" in refused.value.next_step


async def test_nobody_is_asked_for_what_could_only_fail(studio: Studio) -> None:
    await studio.reach.tuning.set("spawn.rate", 2, by="operator:ann")
    canon = await studio.bring("The ferry", "It runs at dusk.", canon=True)
    impossible: list[tuple[str, str, dict[str, Any], type[Exception], str]] = [
        ("config", "spawn.rate", {"value": 2}, Conflict, "has this value already"),
        ("config", "hub.secret", {"value": 2}, BadInput, "own settings"),
        ("ingest", "shared", {"documents": [DOCUMENT]}, Conflict, "has these documents already"),
        ("ingest", canon, {}, Conflict, "is canon already"),
        ("ingest", "doc_none", {}, NotFound, "no document"),
        ("delete_lore", "doc_none", {}, NotFound, "no document"),
        ("world_patch", "nobody", {"fields": {"mood": "calm"}}, NotFound, "no entity"),
        ("world_patch", "mara", {"fields": {"mood": "calm"}}, Conflict, "so already"),
        ("resume", "engine", {}, Conflict, "not paused"),
    ]
    for kind, target, params, error, words in impossible:
        with pytest.raises(error, match=words):
            await studio.foresee(kind, target, **params)


async def test_a_draft_has_no_effect_and_is_forgotten_after_a_day(studio: Studio) -> None:
    epoch = (await epochs.status(studio.reach.pool)).epoch
    drafted = await studio.changes.draft(Requested("world_patch", "mara", {"fields": {"mood": "afraid"}}), ANNA)
    assert drafted.id.startswith("chg_")
    assert '+ mood: "afraid"' in drafted.foreseen.diff
    assert (await studio.entity("mara")).version == 1
    assert (await epochs.status(studio.reach.pool)).epoch == epoch
    assert await studio.rows() == [("world_patch", "draft")]

    await studio.reach.pool.execute("UPDATE admin_change SET expires_at = now() - interval '1 second'")
    await studio.changes.draft(Requested("pause", "engine", {}), ANNA)
    assert await studio.rows() == [("pause", "draft")]


async def test_an_asker_keeps_the_latest_fifty_drafts(studio: Studio) -> None:
    for number in range(DRAFTS_MAX + 2):
        await studio.changes.draft(Requested("config", f"spawn.rate{number}", {"value": 1}), ANNA)
    targets = {row["target"] for row in await studio.reach.pool.fetch("SELECT target FROM admin_change")}
    assert len(targets) == DRAFTS_MAX
    assert "spawn.rate0" not in targets
    assert f"spawn.rate{DRAFTS_MAX + 1}" in targets
