"""Every call of DESIGN.md §7's table exactly as the source documents write it, through the official client, over the starter world."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from body_broker.calls import Json
from body_broker.world.files.checking import STARTER, open_world
from mcp_servers.cybersecurity import store
from mcp_servers.cybersecurity.paths import Repository
from mcp_servers.hub.cli.context import record
from mcp_servers.hub.cli.world import load_world
from mcp_servers.hub.engine import arbitrating
from mcp_servers.hub.worker import working
from tests.counterparts.faultwall.wall import KEY, MODEL, fault_wall
from tests.mcp_servers.hub.conftest import Hub, OpenHub, error_of
from tests.waiting import wait_until


class SeedCall(NamedTuple):
    """One line of the table: who may make it, what it answers at least, or the code it answers until its backend is there."""

    tool: str
    arguments: dict[str, Json]
    who: tuple[str, ...]
    least: frozenset[str] = frozenset()
    code: str | None = None
    setting: str | None = None


def begins(tool: str, arguments: dict[str, Json], *who: str) -> SeedCall:
    """A call that is answered with the id of a job."""
    return SeedCall(tool, arguments, who, frozenset({"job_id", "status"}))


def waits_for(setting: str, tool: str, arguments: dict[str, Json], *who: str) -> SeedCall:
    """A call whose backend no setting of this version brings, or none here does."""
    return SeedCall(tool, arguments, who, code="not_configured", setting=f"BODY_BROKER_{setting}")


NPC, REGION = "osric_vane", "ashmere_quay"
CALLS = (
    SeedCall(
        "retrieve_lore", {"topic": "the ferry", "context": {}}, ("tier:silver",), frozenset({"passages", "citations"})
    ),
    begins("generate_narrative", {"prompt": "A night on the quay"}, "tier:bronze"),
    SeedCall(
        "check_consistency",
        {"narrative": "Osric Vane lit the lanterns.", "existing_lore": {}},
        ("tier:silver",),
        frozenset({"consistent", "verdict", "violations", "coverage"}),
    ),
    begins("generate_story_arc", {"theme": "debt", "length": 3}, "tier:bronze"),
    SeedCall("get_story_arc", {"job_id": "job_0123456789"}, ("tier:silver",), code="not_found"),  # which is nobody's
    SeedCall(
        "scan_codebase", {"repo_path": "game"}, ("person:sam", "security"), frozenset({"verdict", "groups", "summary"})
    ),
    begins("audit_with_ai", {"findings": {"items": [{"rule": "shell", "severity": "high"}]}}, "tier:bronze"),
    waits_for("AWS_ROLES", "query_aws_resource", {"service": "ec2", "resource": "instances"}, "person:sasha", "sre"),
    begins("generate_admin_report", {"metrics": {}}, "tier:bronze"),
    # People are asked; what it answers after their yes: tests/mcp_servers/admin/changes/test_through_the_door.py.
    SeedCall(
        "approve_change",
        {"change_request": {"kind": "config", "target": "spawn.rate", "params": {"value": 2}}},
        ("person:ada", "admin"),
        code="approval_pending",
    ),
    SeedCall(
        "get_npc_state", {"npc_id": NPC}, ("tier:silver",), frozenset({"version", "as_of_tick", "age_ms", "source"})
    ),
    SeedCall(
        "get_world_state",
        {"region": REGION},
        ("tier:silver",),
        frozenset({"version", "as_of_tick", "age_ms", "source"}),
    ),
    SeedCall(
        "queue_state_change",
        {"change": {"entity_id": NPC, "op": "append_memory", "payload": {"text": "The tide was late."}}},
        ("service:game",),
        frozenset({"change_id", "status"}),
    ),
    SeedCall("search_lore", {"query": "the ferry", "persona": None}, ("tier:silver",), frozenset({"items"})),
    SeedCall(
        "retrieve_context", {"topic": "the ferry", "limit": 5}, ("tier:silver",), frozenset({"passages", "citations"})
    ),
)


@pytest.fixture(scope="module")
def fault(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with one fault."""
    root = tmp_path_factory.mktemp("game")
    root.joinpath("run.py").write_text("import subprocess\n\n\ndef go(name):\n    subprocess.call(name, shell=True)\n")
    return root


@pytest.fixture
async def studio(open_hub: OpenHub, redis: object, fault: Path) -> AsyncGenerator[Hub]:
    """A hub with the starter world, an engine, a worker, a repository and an expert who says what it must."""
    _ = redis  # flushed before the test
    async with (
        fault_wall("vllm") as wall,
        open_hub(approval_wait_s=0.2, bronze_url=wall.url["vllm"], bronze_model=MODEL, bronze_api_key=KEY) as hub,
        working(hub.runtime),
        arbitrating(hub.runtime),
    ):
        receipt = await record(hub.runtime, "world load")
        world = await asyncio.to_thread(open_world, STARTER)
        await load_world(hub.runtime, world, by="operator:ann", receipt=receipt)
        await store.add_repository(hub.runtime.stores.pool, Repository("game", fault, ()), by="operator:ann")
        await wait_until(lambda: hub.runtime.services.world.get(NPC) is not None, "the hub's map follows")
        yield hub


async def test_every_call_of_the_source_documents_works_as_it_is_written_there(studio: Hub) -> None:
    for call in CALLS:
        async with studio.client(*call.who) as client:
            result = await client.call_tool(call.tool, call.arguments)
        if call.code is None:
            assert not result.is_error, (call.tool, result.content)
            content: Any = result.structured_content
            assert call.least <= content.keys(), call.tool
        else:
            error = error_of(result)
            assert (error["code"], error.get("setting")) == (call.code, call.setting), (call.tool, error)


async def test_a_queued_change_of_the_source_documents_is_applied_by_the_engine(studio: Hub) -> None:
    async with studio.client("service:game") as game, studio.client("tier:gold") as gold:
        change = {"entity_id": NPC, "op": "append_memory", "payload": {"text": "The tide was late."}}
        queued: Any = (await game.call_tool("queue_state_change", {"change": change})).structured_content

        async def applied() -> bool:
            found: Any = (
                await game.call_tool("get_change_status", {"change_id": queued["change_id"]})
            ).structured_content
            return found["status"] == "applied"

        await wait_until(applied, "the engine applies it")
        seen: Any = (await gold.call_tool("get_npc_state", {"npc_id": NPC, "fresh": False})).structured_content
    assert seen["version"] == 2


async def test_calls_whose_backend_is_not_there_are_shown_to_nobody(studio: Hub) -> None:
    absent = {call.tool for call in CALLS if call.code == "not_configured"}
    for who in (("tier:bronze",), ("person:ada", "admin", "designer", "engineer", "sre", "security")):
        async with studio.client(*who) as client:
            assert absent.isdisjoint({tool.name for tool in (await client.list_tools()).tools})
