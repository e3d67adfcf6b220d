"""What clients of OpenAI's API are told when something is wrong: in their own form and words, and to ask again only where that helps."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import httpx2
import openai
import orjson
import pytest
from openai import AsyncOpenAI

from body_broker.storage.redis import Redis
from tests.counterparts.faultwall.wall import KEY, MODEL, FaultWall, Reply, Tool, fault_wall
from tests.mcp_servers.hub.conftest import Hub, OpenHub
from tests.mcp_servers.hub.test_completions_api import (
    ASKS,
    MOOD,
    WEATHER,
    another_engine,
    ask,
    client,
    client_of,
    post,
    served,
    wall,
)

__all__ = ["client", "served", "wall"]  # the fixtures that this file borrows
PICTURE = {"type": "image_url", "image_url": {"url": "x"}}


@pytest.mark.parametrize(
    ("given", "param"),
    [
        ({"n": []}, "n"),
        ({"n": {}}, "n"),
        ({"logit_bias": {"1": 2}}, "logit_bias"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"modalities": ["audio"]}, "modalities"),
        ({"messages": [{"role": "user", "content": [PICTURE]}]}, "messages.0.content.0.type"),
        ({"messages": [*ASKS, {"role": "tool", "content": "Fog."}]}, "messages.1"),
        ({"messages": [{"role": "user", "content": "x", "tool_call_id": "c1"}]}, "messages.0"),
        ({"messages": ["hello"]}, "messages.0"),
        ({"tool_choice": {"type": "custom"}}, "tool_choice"),
        ({"response_format": "json"}, "response_format"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "none"}}}},
            "response_format.json_schema.schema",
        ),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools.0.name"),
        ({"stop": ["a"] * 5}, "stop"),
        ({"max_completion_tokens": -1}, "max_completion_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_completion_tokens": 10**6, "max_tokens": 5}, "max_completion_tokens"),
        ({"temperature": 3.5}, "temperature"),
        ({"body_broker": {"latency_budget_ms": -1}}, "latency_budget_ms"),
        ({"model": "gpt-2"}, "model"),
    ],
    ids=lambda value: str(value)[:60],
)
async def test_what_does_not_fit_is_named_in_the_client_s_own_words(
    served: Hub, wall: FaultWall, given: dict[str, Any], param: str
) -> None:
    refused = await post(served, {"model": "silver", "messages": ASKS} | given)
    error = refused.json()["error"]
    status = 404 if param == "model" else 400
    assert (refused.status_code, error["type"], error["param"]) == (status, "invalid_request_error", param)
    for ours in (" _", "_Part", "response_schema", "own_tools", "input schema", "Value error", "generate"):
        assert ours not in refused.text
    assert wall.seen == []


async def test_an_unknown_model_is_told_with_those_that_are_listed(served: Hub) -> None:
    refused = (await post(served, {"model": "gpt-2", "messages": ASKS})).json()["error"]
    async with httpx2.AsyncClient(timeout=60) as http:
        headers = {"authorization": f"Bearer {await served.token('service:chat')}"}
        listed = (await http.get(f"{served.base}/v1/models", headers=headers)).json()["data"]
    assert refused["code"] == "model_not_found"
    assert f"Use one of: {', '.join(model['id'] for model in listed)}." in refused["message"]


async def test_what_changes_nothing_is_listed_unless_it_is_harmless(client: AsyncOpenAI, wall: FaultWall) -> None:
    harmless = {"n": 1, "logprobs": False, "function_call": "auto", "modalities": ["text"]}
    found = await ask(client, seed=-1, user="somebody", store=False, extra_body=harmless)
    assert found.model_extra["body_broker"]["ignored"] == ["store", "user"]
    assert wall.asked("vllm")[0].body["seed"] == 2**32 - 1


async def test_a_wrong_method_names_the_right_one(served: Hub) -> None:
    async with httpx2.AsyncClient(
        headers={"authorization": f"Bearer {await served.token('service:chat')}"}, timeout=60
    ) as http:
        for path, verb, right in (
            ("/v1/chat/completions", "GET", "POST"),
            ("/v1/models", "POST", "GET"),
            ("/npcs/x/talk", "GET", "POST"),
        ):
            wrong = await http.request(verb, f"{served.base}{path}")
            assert (wrong.status_code, wrong.headers["allow"]) == (405, right)
            assert wrong.json()["error"]["next_step"] == f"Send it as {right}."


async def test_what_the_front_refuses_has_openai_s_form_there_and_the_hub_s_elsewhere(
    open_hub: OpenHub, wall: FaultWall, redis: Redis
) -> None:
    _ = redis
    async with (
        open_hub(silver_url=wall.url["vllm"], request_bytes_max=2_000) as hub,
        httpx2.AsyncClient(timeout=60) as http,
    ):
        nobody = await http.post(f"{hub.base}/v1/chat/completions", json={})
        assert nobody.status_code == 401
        assert "www-authenticate" in nobody.headers
        assert (nobody.json()["error"]["type"], nobody.json()["error"]["param"]) == ("authentication_error", None)
        large = await post(hub, {"model": "silver", "messages": ASKS, "user": "x" * 3_000})
        assert (large.status_code, large.json()["error"]["type"]) == (413, "invalid_request_error")
        mine = {"authorization": f"Bearer {await hub.token('service:chat')}"}
        for path in ("completions", "embeddings", "models/", "models/a/b", "modelsx", "responses"):
            missing = await http.post(f"{hub.base}/v1/{path}", json={}, headers=mine)
            error = missing.json()["error"]
            assert (missing.status_code, error["type"]) == (404, "invalid_request_error"), path
            assert "only chat completions and models are here" in error["message"]
        elsewhere = await http.get(f"{hub.base}/elsewhere", headers=mine)
        assert (elsewhere.status_code, "type" in elsewhere.json()["error"]) == (404, False)


async def test_only_what_may_go_better_later_is_to_be_asked_again(
    open_hub: OpenHub, wall: FaultWall, redis: Redis
) -> None:
    _ = redis
    async with open_hub() as hub, client_of(hub) as client:
        with pytest.raises(openai.InternalServerError, match="hub://models"):
            await ask(client)
    async with open_hub(silver_url=wall.url["vllm"]) as hub, client_of(hub) as client:
        wall.say("vllm", Reply(fault="failed"))
        with pytest.raises(openai.InternalServerError, match="Ask again later; `body-broker validate`") as failed:
            await ask(client)
        assert "x-should-retry" not in failed.value.response.headers
    async with open_hub(silver_url=wall.url["vllm"], silver_model="no-such-model") as hub, client_of(hub) as client:
        for tools in ({}, {"tools": [WEATHER]}):
            with pytest.raises(openai.BadRequestError, match="silver: it does not take the request") as refused:
                await ask(client, **tools)
            assert refused.value.response.headers["x-should-retry"] == "false"


async def test_whose_engine_rests_is_told_for_how_long(
    open_hub: OpenHub, wall: FaultWall, redis: Redis, tmp_path: Path
) -> None:
    _ = redis
    models = tmp_path / "models.toml"
    models.write_text("[engines.silver]\nfailure_threshold = 1\nbreaker_s = 600\n")
    async with open_hub(silver_url=wall.url["vllm"], models=models) as hub, client_of(hub) as client:
        wall.say("vllm", Reply(fault="failed"))
        for more, last in (({}, "none"), ({}, "rests"), ({"response_format": MOOD}, "rests")):
            with pytest.raises(openai.InternalServerError) as failed:
                await ask(client, **more)
            after = failed.value.response.headers.get("retry-after")
            assert (after is None) if last == "none" else (after is not None and 60 < int(after) <= 600)
    assert len(wall.asked("vllm")) == 1


async def test_an_answer_that_max_tokens_cut_short_of_its_schema_is_not_to_be_asked_again(
    open_hub: OpenHub, wall: FaultWall, redis: Redis
) -> None:
    _ = redis
    async with open_hub(silver_url=wall.url["vllm"]) as hub, client_of(hub) as client:
        wall.say("vllm", Reply(text='{"mood": "ca', finish="length", usage=(10, 8, 0)))
        with pytest.raises(openai.BadRequestError, match="max_tokens is too small") as refused:
            await ask(client, max_tokens=8, response_format=MOOD)
        assert refused.value.param == "max_tokens"
        assert refused.value.response.headers["x-should-retry"] == "false"


async def test_money_that_is_used_up_is_told_as_that(open_hub: OpenHub, redis: Redis, tmp_path: Path) -> None:
    _ = redis
    models = tmp_path / "models.toml"
    models.write_text(
        f'[engines.openai]\nmodel = "{MODEL}"\n[engines.openai.price]\nprompt = "1"\ncompletion = "2"\n'
        '[caps.askers]\n"service:poor" = "0"\n"service:chat" = "0.001"\n'
    )
    async with (
        fault_wall("openai") as paid,
        open_hub(openai_url=paid.url["openai"], openai_api_key=KEY, models=models) as hub,
    ):
        async with client_of(hub, "service:poor") as poor:
            with pytest.raises(openai.PermissionDeniedError) as spent:
                await ask(poor, model="cloud")
        assert "service:poor may spend nothing in the cloud tier." in spent.value.message
        assert "model=silver" in spent.value.message
        async with client_of(hub) as client:
            for more in ({}, {"tools": [WEATHER]}):
                with pytest.raises(openai.PermissionDeniedError, match="more than may be spent") as dear:
                    await ask(client, model="cloud", max_tokens=2_000, **more)
                assert cast("dict[str, Any]", dear.value.body)["retryable"] is False
                assert "fewer max_tokens" in dear.value.message
                assert "service:chat has spent or set aside $0.00 of $0.0010 a day" in dear.value.message
            assert (await ask(client, model="cloud", max_tokens=8)).choices[0].message.content
    assert len(paid.seen) == 1


async def test_an_answer_that_breaks_the_schema_is_not_streamed_before_one_that_holds(
    open_hub: OpenHub, wall: FaultWall, redis: Redis, tmp_path: Path
) -> None:
    _ = redis
    models = another_engine(tmp_path, wall)
    async with open_hub(silver_url=wall.url["vllm"], models=models) as hub, client_of(hub) as client:
        for more in ({}, {"tools": [WEATHER]}, {"extra_body": {"body_broker": {"tools": ["whoami"]}}}):
            wall.say("vllm", Reply(fault="wrong_schema"), Reply(text='{"mood": "calm"}'))
            chunks = [c async for c in await ask(client, stream=True, response_format=MOOD, **more)]
            said = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
            assert orjson.loads(said) == {"mood": "calm"}
            told = chunks[-1].model_extra["body_broker"]
            assert (told["engine"], told["fallbacks"][-1]) == ("silver-other", {"engine": "silver", "reason": "schema"})
        wall.say("vllm", Reply(calls=(Tool("weather", {"place": "the quay"}),)))
        chunks = [c async for c in await ask(client, stream=True, response_format=MOOD, tools=[WEATHER])]
        assert chunks[-1].choices[0].finish_reason == "tool_calls"
