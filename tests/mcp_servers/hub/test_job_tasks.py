"""Experts' jobs as MCP tasks: begun by submit_job, told as they stand, ended with what the tool said it answers."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from body_broker.errors import Conflict
from body_broker.storage.redis import Redis
from body_broker.work.parking import Park
from tests.mcp_servers.hub.conftest import Hub, OpenHub
from tests.mcp_servers.hub.experts import experts, result
from tests.mcp_servers.hub.test_tasks import Speaker
from tests.waiting import wait_until

ANNA = ("person:anna", "designer")


@pytest.fixture
async def hub(open_hub: OpenHub, redis: Redis) -> AsyncIterator[Hub]:
    _ = redis  # flushed before the test
    async with open_hub(bronze_url="http://127.0.0.1:9") as found:
        yield found


@pytest.fixture
async def anna(hub: Hub) -> Speaker:
    return await Speaker.of(hub, *ANNA)


async def stands(client: Speaker, task_id: str, words: str) -> dict[str, Any]:
    async def find() -> dict[str, Any] | None:
        found = await client.get(task_id)
        return found if words in found["statusMessage"] else None

    found = await wait_until(find, f"the task says: {words}")
    assert found is not None
    return found


async def test_a_job_is_a_task_that_ends_with_what_the_tool_answers(hub: Hub, anna: Speaker) -> None:
    await anna.call("submit_job", prompt="First.")
    task = await anna.call("submit_job", prompt="Write of the flood.")
    assert (task["resultType"], task["status"], task["statusMessage"]) == ("task", "working", "queued, 1 before it")
    assert task["pollIntervalMs"] == 2_000
    async with experts(hub.runtime, result()):
        over = await anna.ended(task["taskId"])
    assert (over["status"], over["statusMessage"]) == ("completed", "expert is done")
    told = over["result"]["structuredContent"]
    assert told == {
        "job_id": task["taskId"],
        "status": "succeeded",
        "queue_position": None,
        "result": result(),
    }
    plain = await Speaker.of(hub, *ANNA, tasks=False)
    answer = await plain.call("submit_job", prompt="Another.")
    assert answer["structuredContent"]["status"] == "queued"


async def test_text_from_outside_in_a_task_s_result_is_marked_and_taints(hub: Hub, anna: Speaker) -> None:
    task = await anna.call("submit_job", prompt="Write of the flood.")
    async with experts(hub.runtime, result(outside=True)):
        over = await anna.ended(task["taskId"])
    assert over["result"]["_meta"] == {"body-broker/outside": True}
    assert (await anna.call("whoami"))["structuredContent"]["tainted"]


async def test_a_task_says_what_its_job_waits_for_and_what_cannot_be_stopped(hub: Hub, anna: Speaker) -> None:
    task = await anna.call("submit_job", prompt="Write of the flood.")
    async with experts(hub.runtime, "endpoint"):
        await stands(anna, task["taskId"], "waiting for the answer of sagemaker")
        await anna.task("cancel", task["taskId"])
    over = await anna.get(task["taskId"])
    assert over["status"] == "cancelled"
    assert over["statusMessage"].startswith("The job was cancelled. sagemaker had been asked. It cannot be stopped")


async def test_a_task_whose_job_failed_ends_with_its_error(hub: Hub, anna: Speaker) -> None:
    task = await anna.call("submit_job", prompt="Write of the flood.")
    async with experts(hub.runtime, Conflict("Its budget of tokens is used up.", next_step="Ask for less.")):
        over = await anna.ended(task["taskId"])
    assert over["status"] == "completed"
    assert over["result"]["isError"]
    assert over["result"]["structuredContent"]["error"]["message"] == "Its budget of tokens is used up."


async def test_a_job_that_waits_where_results_are_kept_says_so(hub: Hub, anna: Speaker) -> None:
    task = await anna.call("submit_job", prompt="Write of the flood.")
    async with experts(hub.runtime, Park("results-store", wake_in_s=600)):
        await stands(anna, task["taskId"], "waiting for the place where results are kept, which takes nothing now")


async def test_a_task_of_somebody_else_s_job_is_none(hub: Hub, anna: Speaker) -> None:
    task = await anna.call("submit_job", prompt="Write of the flood.")
    boris = await Speaker.of(hub, "person:boris", "designer")
    for verb in ("get", "cancel"):
        assert "not_found" in (await boris.task(verb, task["taskId"]))["error"]["message"]
    assert (await anna.get(task["taskId"]))["status"] == "working"
