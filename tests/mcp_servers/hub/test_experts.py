"""An expert's job over a real hub: asked for over MCP, run by a worker as asker>tier:bronze, parked while people decide, found again."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import orjson
import pytest
from mcp import Client

from body_broker.settings import Settings
from mcp_servers.hub.runtime import Runtime
from mcp_servers.hub.worker import working
from tests.counterparts.faultwall.wall import KEY, MODEL, FaultWall, Reply, Tool, fault_wall
from tests.mcp_servers.hub.conftest import Hub, error_of
from tests.mcp_servers.hub.deeds import APPROVERS, Deeds, Studio, say
from tests.mcp_servers.hub.expert_hub import ended
from tests.mcp_servers.hub.test_gate import audited
from tests.waiting import wait_until

ANNA = ("person:anna", "designer")
SAID = "The flood takes the quay on the third day."


@pytest.fixture
async def wall() -> AsyncGenerator[FaultWall]:
    async with fault_wall("vllm", "openai") as found:
        yield found


@pytest.fixture
def studio(settings_for: Callable[..., Settings], tmp_path: Path, wall: FaultWall, redis: object) -> Studio:
    """A studio with an engine of experts and a room of deeds that people are asked for."""
    _ = redis  # flushed before the test
    approvers = tmp_path / "approvers.toml"
    approvers.write_text(APPROVERS, encoding="utf-8")

    def settings(**overrides: Any) -> Settings:
        bronze = {"bronze_url": wall.url["vllm"], "bronze_model": MODEL, "bronze_api_key": KEY, "tools": "all"}
        return settings_for(**bronze | overrides)

    return Studio(settings, approvers, Deeds())


@pytest.fixture
async def hub(studio: Studio) -> AsyncGenerator[Hub]:
    """A hub that serves; what works is for the test."""
    async with studio.hub(works=False) as found:
        yield found


async def submit(client: Client, **given: Any) -> str:
    """The id of a job that was asked for."""
    found = (await client.call_tool("submit_job", {"prompt": "Draft the flood."} | given)).structured_content
    assert found is not None
    return str(found["job_id"])


async def job_of(client: Client, job_id: str) -> dict[str, Any]:
    found = (await client.call_tool("get_job", {"id": job_id})).structured_content
    assert found is not None
    return found


async def parked(client: Client, job_id: str) -> dict[str, Any]:
    """The job once it waits and holds no worker."""

    async def look() -> dict[str, Any] | None:
        found = await job_of(client, job_id)
        return found if found["state"] == "waiting" else None

    found = await wait_until(look, f"{job_id} waits")
    assert found is not None
    return found


async def test_a_job_is_run_by_a_worker_as_its_asker_and_bronze(hub: Hub, studio: Studio, wall: FaultWall) -> None:
    wall.say("vllm", Reply(calls=(Tool("whoami"), Tool("deed_free", {"name": "lamp"}))), Reply(text=SAID))
    async with hub.client(*ANNA) as client:
        job_id = await submit(client, tools=["whoami", "deed_free"])
        assert (await job_of(client, job_id))["queue_position"] == 0
        async with working(hub.runtime):
            job = await ended(client, job_id)
    assert job["state"] == "succeeded", job
    assert job["result"]["content"] == SAID
    made = job["result"]["made"]
    assert [(tool["name"], tool["outcome"]) for tool in made["tools"]] == [("whoami", "ok"), ("deed_free", "ok")]
    assert made["engines"] == ["bronze"]
    read = orjson.dumps(wall.asked("vllm")[1].body["messages"]).decode()
    assert "person:anna" in read
    assert "tier:bronze" in read
    records = await audited(hub, "deed_free")
    assert [record["chain"] for record in records if record["kind"] == "decision"] == [["person:anna", "tier:bronze"]]
    assert [done[1] for done in studio.deeds.done] == ["lamp"]


async def test_a_gated_write_parks_the_job_until_a_person_approves_it(hub: Hub, studio: Studio, wall: FaultWall) -> None:
    wall.say("vllm", Reply(calls=(Tool("deed_once", {"name": "lamp"}),)), Reply(text=SAID))
    async with hub.client("person:anna", "sre") as client, working(hub.runtime):
        job_id = await submit(client, tools=["deed_once"])
        waiting = await parked(client, job_id)
        assert "deed_once" in waiting["waits_for"]
        assert studio.deeds.done == []
        await say(hub.runtime.approvals.desk, await asked_for(hub.runtime))
        job = await ended(client, job_id)
    assert job["state"] == "succeeded", job
    assert [done[1] for done in studio.deeds.done] == ["lamp"]
    assert '"did": "lamp"' in said_last(wall) or "lamp" in said_last(wall)


async def asked_for(runtime: Runtime) -> str:
    """The approval that people are asked for."""
    row = await runtime.stores.pool.fetchrow("SELECT id FROM approval WHERE state = 'pending' ORDER BY ordinal DESC LIMIT 1")
    assert row is not None
    return row["id"]


def said_last(wall: FaultWall) -> str:
    """What the expert was told last."""
    return orjson.dumps(wall.asked("vllm")[-1].body["messages"][-1]).decode()
