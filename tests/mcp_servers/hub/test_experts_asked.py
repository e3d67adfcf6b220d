"""What is for experts becomes a job whoever it is asked by: `generate`, OpenAI's API, silver where nobody answers, the command line."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any

import openai
import pytest

from body_broker.errors import BadInput, BodyBrokerError, Denied, NotFound
from body_broker.storage.redis import Redis
from body_broker.work import queue
from mcp_servers.hub.generating import Generated
from mcp_servers.hub.nested import NestedCalls
from mcp_servers.hub.requests import Request
from mcp_servers.hub.worker import working
from tests.counterparts.faultwall.wall import KEY, MODEL, FaultWall, Reply, fault_wall
from tests.mcp_servers.hub.conftest import Hub, OpenHub
from tests.mcp_servers.hub.conversing import asker_of
from tests.mcp_servers.hub.expert_hub import ended
from tiers.bronze.tier import BronzeTier
from tiers.counts import Counts
from tiers.model import InferenceRequest

ANNA = ("person:anna", "designer")
SAID = "The flood takes the quay on the third day."


@pytest.fixture
async def wall() -> AsyncGenerator[FaultWall]:
    async with fault_wall("vllm", "openai") as found:
        yield found


@pytest.fixture
async def hub(open_hub: OpenHub, wall: FaultWall, redis: Redis) -> AsyncGenerator[Hub]:
    """A hub with an engine of experts and one of silver, which is down."""
    _ = redis  # flushed before the test
    async with open_hub(tools="all", **experts_at(wall), silver_url="http://127.0.0.1:9") as found:
        yield found


def experts_at(wall: FaultWall) -> dict[str, Any]:
    return {"bronze_url": wall.url["vllm"], "bronze_model": MODEL, "bronze_api_key": KEY}


async def generate(hub: Hub, *who: str, **given: Any) -> Generated:
    """One call through the gate."""
    caller = await hub.runtime.identities.authenticate(await hub.token(*(who or ANNA)))
    request = Request(name="generate", kind="tool", arguments={"prompt": "Draft the flood."} | given, caller=caller)
    result = (await hub.runtime.gate.run(request)).result
    assert isinstance(result, Generated)
    return result


async def input_of(hub: Hub, job_id: str | None) -> dict[str, Any]:
    """What a job is to do."""
    return (await queue.get(hub.runtime.stores.pool, job_id or "", owner=None)).input


@pytest.mark.parametrize(
    "given",
    [
        {"sla": "async"},
        {"requires_expert_reasoning": True},
        {"role": "deepseek-v3-storyteller"},
        {"model": "bronze"},
    ],
    ids=["async", "expert", "role", "model"],
)
async def test_what_is_for_experts_is_answered_with_its_job(hub: Hub, wall: FaultWall, given: dict[str, Any]) -> None:
    wall.say("vllm", Reply(text=SAID))
    found = await generate(hub, **given)
    assert (found.source, found.tier, found.engine, found.degraded, found.cost_usd) == ("job", "bronze", None, False, 0)
    assert found.job is not None
    assert found.job in found.text()
    assert "get_job" in found.text()
    wanted = await input_of(hub, found.job)
    assert wanted["max_tokens"] == 2_000
    assert wanted["role"] == given.get("role")
    assert wanted["model"] is None
    async with hub.client(*ANNA) as client, working(hub.runtime):
        job = await ended(client, found.job)
    assert job["result"]["content"] == SAID


async def test_a_request_is_handed_on_whole(hub: Hub) -> None:
    found = await generate(
        hub,
        sla="async",
        persona="plain",
        max_tokens=77,
        tools=["whoami"],
        temperature=0.3,
        seed=7,
        stop=["END"],
        cost_sensitivity="high",
        cost_ceiling=0.25,
        latency_budget_ms=5_000,
        response_schema={"type": "object"},
        background=True,
    )
    wanted = await input_of(hub, found.job)
    assert [message["role"] for message in wanted["messages"]] == ["system", "user"]
    assert (wanted["max_tokens"], wanted["tools"], wanted["temperature"], wanted["seed"]) == (77, ["whoami"], 0.3, 7)
    assert (wanted["stop"], wanted["cost_sensitivity"], wanted["schema"]) == (["END"], "high", {"type": "object"})
    assert (wanted["budget"]["usd"], wanted["budget"]["seconds"]) == (0.25, 24 * 3_600)


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"own_tools": [{"name": "weather"}]}, "own_tools"),
        ({"choices": ["a", "b"]}, "choices"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"persona": "support"}, "persona"),
        ({"npc_id": "osric"}, "npc_id"),
    ],
    ids=["own tools", "choices", "tool choice", "players", "npc"],
)
async def test_what_a_job_has_no_place_for_is_refused_and_not_left_out(
    hub: Hub, given: dict[str, Any], named: str
) -> None:
    with pytest.raises(BadInput) as refused:
        await generate(hub, sla="async", **given)
    assert refused.value.details["problems"] == [f"{named}: not in a job"]


async def test_who_may_not_have_jobs_is_refused_by_the_rule_of_submit_job(hub: Hub) -> None:
    with pytest.raises(Denied, match="long-running") as refused:
        await generate(hub, "service:game", sla="async")
    assert "submit_job" in refused.value.message


async def test_without_an_engine_of_its_chain_it_says_what_to_set(open_hub: OpenHub, redis: Redis) -> None:
    _ = redis
    async with open_hub() as hub:
        with pytest.raises(BodyBrokerError) as refused:
            await generate(hub, sla="async")
    assert refused.value.code == "not_configured"
    assert refused.value.details["setting"] == "BODY_BROKER_BRONZE_URL"


async def test_openai_s_client_is_answered_with_the_job(hub: Hub, wall: FaultWall) -> None:
    wall.say("vllm", Reply(text=SAID))
    async with openai.AsyncOpenAI(base_url=f"{hub.base}/v1", api_key=await hub.token(*ANNA)) as client:
        whole = await client.chat.completions.create(
            model="auto",
            messages=[{"role": "user", "content": "Draft the flood."}],
            extra_body={"body_broker": {"sla": "async"}},
        )
        streamed = await client.chat.completions.create(
            model="bronze", messages=[{"role": "user", "content": "Draft the flood."}], stream=True
        )
        pieces = [chunk async for chunk in streamed]
    facts: Any = whole.model_extra
    job_id = facts["body_broker"]["job"]
    assert job_id in (whole.choices[0].message.content or "")
    assert (whole.choices[0].finish_reason, facts["body_broker"]["source"]) == ("stop", "job")
    assert "get_job" in "".join(chunk.choices[0].delta.content or "" for chunk in pieces if chunk.choices)
    async with hub.client(*ANNA) as client, working(hub.runtime):
        assert (await ended(client, job_id))["state"] == "succeeded"


async def test_where_no_engine_of_silver_s_answers_an_expert_goes_on_with_it(hub: Hub, wall: FaultWall) -> None:
    wall.always["vllm"] = Reply(text=SAID)
    found = await generate(hub)
    assert (found.source, found.degraded) == ("template", True)
    assert found.job is not None
    assert f"get_job(id={found.job})" in (found.note or "")
    assert (await generate(hub)).job == found.job, "the same question is the same job"
    assert (await generate(hub, prompt="Another?")).job != found.job
    async with hub.client(*ANNA) as client, working(hub.runtime):
        assert (await ended(client, found.job))["result"]["content"] == SAID
    again = await generate(hub)
    assert again.job == found.job, "its answer is there by now"


@pytest.mark.parametrize(
    ("who", "given"),
    [
        (("service:game",), {}),
        (ANNA, {"persona": "support"}),
        (ANNA, {"persona": "npc"}),
        (ANNA, {"npc_id": "osric"}),
        (ANNA, {"sla": "real-time"}),
    ],
    ids=["service", "players", "npc", "npc's", "at once"],
)
async def test_nothing_goes_on_for_who_may_have_no_job_for_players_or_npcs_or_what_comes_too_late(
    hub: Hub, who: tuple[str, ...], given: dict[str, Any]
) -> None:
    asked = await generate(hub, *who, **given)
    assert (asked.source, asked.job) == ("template", None)
    assert "Nothing goes on with it." in (asked.note or "")
    assert await hub.runtime.stores.pool.fetchval("SELECT count(*) FROM work WHERE kind = 'expert'") == 0


async def test_nothing_goes_on_where_the_tier_has_no_engine_of_its_own(
    open_hub: OpenHub, wall: FaultWall, redis: Redis
) -> None:
    _ = redis
    wall.fault("openai", "failed")
    async with open_hub(openai_url=wall.url["openai"], openai_api_key=KEY) as hub:
        found = await generate(hub)
    assert (found.source, found.job) == ("template", None)


async def test_the_names_of_the_source_documents_submit_and_find_the_result(hub: Hub, wall: FaultWall) -> None:
    wall.say("vllm", Reply(text=SAID), Reply(text="Tides."))
    runtime = hub.runtime
    bronze = BronzeTier(NestedCalls(runtime.gate, runtime.listings), runtime.inferring.catalogue, Counts())
    asker = await asker_of(runtime, *ANNA)
    job = await bronze.submit_job(
        "deepseek-v3-storyteller", "Generate a 3-part story arc about floods", max_tokens=2_000, asker=asker
    )
    also = await bronze.submit_async(InferenceRequest(prompt="And of tides?", sla="async"), asker=asker)
    assert job.id == job.job_id
    assert await bronze.get_result(job.id, asker=asker) is None
    wanted = await input_of(hub, job.id)
    assert (wanted["role"], wanted["max_tokens"], wanted["tools"]) == ("deepseek-v3-storyteller", 2_000, None)
    async with hub.client(*ANNA) as client, working(runtime):
        for each in (job, also):
            await ended(client, each.job_id)
    found = [await bronze.retrieve_result(each.id, asker=asker) for each in (job, also)]
    assert sorted(str(each and each["content"]) for each in found) == [SAID, "Tides."]
    with pytest.raises(NotFound):
        await bronze.get_result(job.id, asker=await asker_of(runtime, "person:ben", "designer"))
