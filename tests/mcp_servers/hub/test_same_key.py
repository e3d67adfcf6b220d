"""Every tool that people can be asked for: run twice under one approval it has one effect and one answer, and they saw what it would do."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from approvals.executor import Perform
from approvals.model import Approval
from body_broker.errors import Conflict
from body_broker.lore import make_draft
from body_broker.settings import Settings
from body_broker.storage.postgres import Pool
from body_broker.text import new_id
from body_broker.work.model import Origin
from body_broker.world.canon import store as canon
from body_broker.world.canon.model import Fact
from body_broker.world.canon.predicates import STANDARD
from mcp_servers.admin.changes.kind import Maker
from mcp_servers.admin.changes.store import Requested
from mcp_servers.cybersecurity import store as scans
from mcp_servers.cybersecurity.paths import Repository
from mcp_servers.hub.requests import no_progress
from mcp_servers.hub.rooms import ROOMS
from mcp_servers.hub.worker import working
from policies.catalogue import Catalogue
from policies.engine import Policy
from tests.body_broker.world.scene import populate
from tests.mcp_servers.hub.conftest import Hub, error_of
from tests.mcp_servers.hub.deeds import APPROVERS, Deeds, Studio, say
from tests.waiting import wait_until

OPERATOR = Origin(chain=("operator:ann",), session="operator:ann")
SET = {"entity_id": "mara", "op": "set", "payload": {"fields": {"mood": "wry"}}}


@dataclass(frozen=True)
class Case:
    """A call of one tool.

    Attributes:
        counts: What there must be one more of afterwards.
        headline: What people are told it is.
        shown: Words of what they are shown.
    """

    tool: str
    arguments: dict[str, Any]
    counts: str
    headline: str
    shown: str


CASES = {
    case.tool: case
    for case in (
        Case(
            "queue_state_change",
            {"change": SET, "expect_version": 1},
            "world_change",
            "Queue the change set of “mara”",
            'By the rules of our own engine it would be applied now.\n  mara set: {"mood":"wry"}',
        ),
        Case(
            "queue_state_changes",
            {
                "changes": [
                    {**SET, "expect_version": 1},
                    {
                        **SET,
                        "entity_id": "ben",
                        "expect_version": 1,
                    },
                ]
            },
            "world_change",
            "Queue 2 changes of “mara”, “ben”, decided together, all or none",
            "2. “ben”, npc “Ben”, has version 1 now:",
        ),
        Case(
            "cancel_state_change",
            {},
            "(SELECT FROM world_change WHERE state = 'cancelled')",
            "Take back the change set of “mara”",
            "Queued at ",
        ),
        Case(
            "ingest_documents",
            {"documents": [{"title": "The bell", "text": "Nobody rings it."}]},
            "(SELECT FROM work WHERE kind = 'lore_import')",
            "Take the document “The bell” into lore-shared as text from outside",
            "new: “The bell”, 16 characters, text",
        ),
        Case(
            "delete_document",
            {},
            "(SELECT FROM lore_effect WHERE effect = 'deleted')",
            "Delete the document {id} for good",
            "“The quay”, outside in lore-shared, 10 characters, revision 1. It begins:\nA lantern.",
        ),
        Case(
            "reindex",
            {"index": "lore-shared"},
            "(SELECT FROM work WHERE kind = 'lore_reindex')",
            "Index “lore-shared” anew",
            "1 documents, 1 passages",
        ),
        Case(
            "add_fact",
            {"subject": "mara", "predicate": "eye_colour", "object": "green"},
            "canon_change",
            "Let canon say: “mara” eye_colour “green”",
            "Canon says of “mara” and eye_colour nothing yet.",
        ),
        Case(
            "retire_fact", {}, "canon_change", "Let canon no longer say: “ben” eye_colour “brown”", "from “the tests”"
        ),
        Case(
            "scan_codebase",
            {"repo_path": "game", "wait_s": 0},
            "(SELECT FROM work WHERE kind = 'scan')",
            "Scan the repository “game”",
            "It was never scanned",
        ),
    )
}
"""approve_change has tests of its own, for each kind; so has accept_upstream_definition (tests/mcp_servers/upstreams/test_rug_pull.py)."""


@pytest.fixture
async def hub(settings_for: Callable[..., Settings], tmp_path: Path, pool: Pool, redis: object) -> AsyncGenerator[Hub]:
    """A hub that asks and runs nothing by itself, with a world, a document, a fact and a repository."""
    _ = redis  # flushed before the test
    approvers = tmp_path / "approvers.toml"
    approvers.write_text(APPROVERS, encoding="utf-8")
    root = tmp_path / "game"
    root.mkdir()
    await populate(pool)
    async with pool.acquire() as connection, connection.transaction():
        await canon.replace_canon(connection, [STANDARD["eye_colour"]], [], [], "operator:ann")
        fact = Fact(subject="ben", predicate="eye_colour", object="brown", source="the tests")
        await canon.add_fact(connection, fact, canon.Effect("operator:ann", None))
    await scans.add_repository(pool, Repository("game", root, ()), by="operator:ann")
    studio = Studio(settings_for, approvers, Deeds())
    async with studio.hub(works=False, tools="all") as found:
        async with working(found.runtime):
            draft = make_draft("The quay", "The quay", "A lantern.")
            await found.runtime.services.rag.lore.importing.take([draft], index="shared", canon=False, origin=OPERATOR)

            async def there() -> bool:
                return bool(await pool.fetchval("SELECT rev FROM lore_document"))

            await wait_until(there, "the document is imported")
        yield found


async def arguments_of(hub: Hub, case: Case, client: Any) -> dict[str, Any]:
    """The case's arguments, with the id of what is there."""
    pool = hub.runtime.stores.pool
    match case.tool:
        case "delete_document":
            return {"id": await pool.fetchval("SELECT id FROM lore_document")}
        case "retire_fact":
            return {"fact_id": await pool.fetchval("SELECT id FROM fact")}
        case "cancel_state_change":
            queued = await client.call_tool("queue_state_change", {"change": SET, "expect_version": 1})
            return {"change_id": await _approved(hub, queued)}
        case _:
            return case.arguments


async def _approved(hub: Hub, asked: Any) -> str:
    """The change that a first approval has queued."""
    (done, _), _ = await _run_twice(hub, asked)
    change_id: str = done["result"]["change_id"]
    return change_id


async def _run_twice(hub: Hub, asked: Any) -> tuple[tuple[Any, Any], Approval]:
    """What an approved call gives the first time and the second, as by two workers one after the other."""
    runtime = hub.runtime
    desk, approval_id = runtime.approvals.desk, error_of(asked)["approval"]
    await say(desk, approval_id, who="person:vera")
    approval = await desk.get(approval_id)
    caller = await runtime.identities.standing(approval.chain, approval.sessions, approval.created_at)
    first = await (await runtime.gate.authorise(approval, caller, desk.given(approval)))(no_progress)
    second = await (await runtime.gate.resume(approval))(no_progress)
    return (first, second), approval


@pytest.mark.parametrize("tool", CASES)
async def test_the_same_call_under_the_same_approval_is_one_effect(hub: Hub, tool: str) -> None:
    case, pool = CASES[tool], hub.runtime.stores.pool
    who = ("tier:bronze",) if tool == "scan_codebase" else ("person:emil", "designer")
    async with hub.client(*who) as client:
        arguments = await arguments_of(hub, case, client)
        before = await pool.fetchval(f"SELECT count(*) FROM {case.counts} AS counted")  # noqa: S608 - our own
        asked = await client.call_tool(tool, arguments)
        assert error_of(asked)["code"] == "approval_pending", error_of(asked)
        (first, second), approval = await _run_twice(hub, asked)

    assert second == first
    after = await pool.fetchval(f"SELECT count(*) FROM {case.counts} AS counted")  # noqa: S608 - our own
    assert after - before == len(arguments.get("changes", "."))
    assert approval.headline == case.headline.format(id=arguments.get("id"))
    assert approval.preview is not None
    assert case.shown in approval.preview
    assert approval.effect == "repeatable", "so whoever finds it cut off brings it to its end"


async def test_a_document_is_not_deleted_by_an_approval_that_showed_nobody_its_text(hub: Hub) -> None:
    case = CASES["delete_document"]
    async with hub.client("person:emil", "designer") as client:
        asked = await client.call_tool(case.tool, await arguments_of(hub, case, client))
    runtime = hub.runtime
    desk, approval_id = runtime.approvals.desk, error_of(asked)["approval"]
    await say(desk, approval_id, who="person:vera")
    approval = replace(await desk.get(approval_id), basis=None)
    caller = await runtime.identities.standing(approval.chain, approval.sessions, approval.created_at)
    perform = await runtime.gate.authorise(approval, caller, desk.given(approval))
    with pytest.raises(Conflict, match="Nobody saw which text"):
        await perform(no_progress)
    assert await runtime.stores.pool.fetchval(f"SELECT count(*) FROM {case.counts} AS counted") == 0  # noqa: S608 - our own


async def test_a_change_that_was_queued_under_an_approval_is_that_one_whatever_became_of_its_entity(hub: Hub) -> None:
    arguments = {"change": SET, "expect_version": 1}
    async with hub.client("person:emil", "designer") as emil:
        asked = await emil.call_tool("queue_state_change", arguments)
    runtime = hub.runtime
    desk, approval_id = runtime.approvals.desk, error_of(asked)["approval"]
    await say(desk, approval_id, who="person:vera")
    approval = await desk.get(approval_id)
    caller = await runtime.identities.standing(approval.chain, approval.sessions, approval.created_at)
    first = await (await runtime.gate.authorise(approval, caller, desk.given(approval)))(no_progress)
    await runtime.stores.pool.execute("UPDATE world_entity SET removed = true WHERE id = 'mara'")
    again = await (await runtime.gate.authorise(approval, caller, desk.given(approval)))(no_progress)
    assert again["result"]["change_id"] == first["result"]["change_id"]


async def test_a_fact_is_added_of_whom_people_were_shown_or_not_at_all(hub: Hub) -> None:
    approval, perform = await _agreed(hub, "add_fact", subject="Mara", predicate="eye_colour", object="green")
    assert approval.basis == "mara"
    await _rename(hub, "mara", "Tamara")
    await _rename(hub, "olga", "Mara")
    with pytest.raises(Conflict, match="means another one"):
        await perform(no_progress)
    assert await hub.runtime.stores.pool.fetchval("SELECT count(*) FROM fact WHERE predicate = 'eye_colour'") == 1


async def test_a_fact_that_was_added_is_that_one_whatever_its_subject_is_called_since(hub: Hub) -> None:
    approval, perform = await _agreed(hub, "add_fact", subject="Mara", predicate="eye_colour", object="green")
    first = await perform(no_progress)
    await _rename(hub, "olga", "Mara")
    assert await (await hub.runtime.gate.resume(approval))(no_progress) == first


async def test_a_scan_that_was_begun_is_that_one_though_its_repository_is_gone(hub: Hub) -> None:
    approval, perform = await _agreed(hub, "scan_codebase", "tier:bronze", repo_path="game", wait_s=0)
    first = await perform(no_progress)
    await hub.runtime.stores.pool.execute("DELETE FROM repository")
    assert await (await hub.runtime.gate.resume(approval))(no_progress) == first


async def _agreed(hub: Hub, tool: str, *who: str, **arguments: Any) -> tuple[Approval, Perform]:
    """An approved call, and what runs it."""
    async with hub.client(*(who or ("person:emil", "designer"))) as client:
        asked = await client.call_tool(tool, arguments)
    runtime = hub.runtime
    desk, approval_id = runtime.approvals.desk, error_of(asked)["approval"]
    await say(desk, approval_id, who="person:vera")
    approval = await desk.get(approval_id)
    caller = await runtime.identities.standing(approval.chain, approval.sessions, approval.created_at)
    return approval, await runtime.gate.authorise(approval, caller, desk.given(approval))


async def _rename(hub: Hub, entity_id: str, name: str) -> None:
    changes = hub.runtime.services.admin.changes
    wanted = Requested("world_patch", entity_id, {"fields": {"name": name}})
    foreseen = await changes.foresee(wanted)
    maker = Maker(requester="operator:ann", origin=OPERATOR, key=new_id("apr"), receipt=None)
    await changes.make(wanted, maker, foreseen.basis)


@pytest.mark.parametrize(
    ("tool", "arguments", "code"),
    [
        ("queue_state_change", {"change": {**SET, "entity_id": "nobody"}, "expect_version": 1}, "bad_input"),
        ("queue_state_change", {"change": {**SET, "op": "fly"}, "expect_version": 1}, "bad_input"),
        ("queue_state_changes", {"changes": [SET]}, "bad_input"),
        ("cancel_state_change", {"change_id": "sch_none"}, "not_found"),
        ("delete_document", {"id": "doc_none"}, "not_found"),
        ("reindex", {"index": "lore-osric"}, "not_found"),
        ("add_fact", {"subject": "mara", "predicate": "shoe_size", "object": 3}, "bad_input"),
        ("add_fact", {"subject": "ben", "predicate": "eye_colour", "object": "green"}, "conflict"),
        ("retire_fact", {"fact_id": "fact_none"}, "not_found"),
    ],
)
async def test_nobody_is_asked_for_a_call_that_could_only_fail(
    hub: Hub, tool: str, arguments: dict[str, Any], code: str
) -> None:
    async with hub.client("person:emil", "designer") as emil:
        assert error_of(await emil.call_tool(tool, arguments))["code"] == code
    assert await hub.runtime.stores.pool.fetchval("SELECT count(*) FROM approval") == 0


async def test_a_version_that_is_over_is_a_conflict_before_anybody_is_asked(hub: Hub) -> None:
    await hub.runtime.stores.pool.execute("UPDATE world_entity SET version = 3 WHERE id = 'mara'")
    await hub.runtime.services.world.load()
    async with hub.client("person:emil", "designer") as emil:
        refused = error_of(await emil.call_tool("queue_state_change", {"change": SET, "expect_version": 1}))
    assert (refused["code"], refused["version"]) == ("conflict", 3)


def test_every_tool_that_people_can_be_asked_for_is_tried_here() -> None:
    policy = Policy.load(Catalogue.of(ROOMS))
    askable = {tool.name: tool for room in ROOMS for tool in room.tools if policy.askable(tool.name)}
    assert askable.keys() == {*CASES, "approve_change", "accept_upstream_definition"}
    assert all(tool.effect == "repeatable" and tool.foresees is not None for tool in askable.values())
