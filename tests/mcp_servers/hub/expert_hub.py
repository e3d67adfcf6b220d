"""A served hub with a worker whose experts' engine is the FaultWall's, for tests of jobs from the call to what came of it."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import orjson
from mcp import Client

from mcp_servers.hub.worker import working
from tests.counterparts.faultwall.wall import KEY, MODEL, FaultWall, Reply
from tests.mcp_servers.hub.conftest import Hub, OpenHub
from tests.waiting import wait_until


@asynccontextmanager
async def expert_hub(open_hub: OpenHub, wall: FaultWall, **settings: Any) -> AsyncGenerator[Hub]:
    """The hub; `wall` says what the expert answers."""
    bronze = {"bronze_url": wall.url["vllm"], "bronze_model": MODEL, "bronze_api_key": KEY}
    async with open_hub(tools="all", **bronze | settings) as hub, working(hub.runtime):
        yield hub


def says(answer: Any) -> Reply:
    """An answer that is this JSON."""
    return Reply(text=orjson.dumps(answer).decode())


async def ended(client: Client, job_id: str) -> dict[str, Any]:
    """The job once nothing more will come of it, as get_job tells its owner."""

    async def look() -> dict[str, Any] | None:
        found = (await client.call_tool("get_job", {"id": job_id})).structured_content
        assert found is not None
        return found if found["state"] in {"succeeded", "failed", "cancelled", "expired"} else None

    found = await wait_until(look, f"{job_id} ends")
    assert found is not None
    return found
