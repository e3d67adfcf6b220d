"""The official openai and anthropic libraries against the FaultWall: it speaks their dialects, and its faults are what they know as such."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, cast

import anthropic
import httpx2
import openai
import pytest
from anthropic.types.message_create_params import MessageCreateParamsBase
from openai.types.chat.completion_create_params import CompletionCreateParamsBase

from tests.counterparts.faultwall.replies import DIALECTS, TEXT
from tests.counterparts.faultwall.strict import ANTHROPIC_FIELDS, CHAT_PATHS, OPENAI_FIELDS
from tests.counterparts.faultwall.wall import KEY, MODEL, DialectName, Fault, FaultWall, Reply, Tool, fault_wall

CHATS: tuple[DialectName, ...] = ("vllm", "trtllm", "openai", "azure")
STATUS: dict[Fault, int] = {
    "rate_limited": 429,
    "rate_limited_for": 429,
    "failed": 500,
    "unavailable": 503,
    "unauthorised": 401,
    "too_long": 400,
}
BREAKS: tuple[Fault, ...] = ("reset", "cut", "malformed", "error_inside")
BROKEN = [(d, f) for d in CHATS for f in BREAKS if (d, f) != ("trtllm", "error_inside")]
LORE: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "search_lore",
        "description": "Search.",
        "parameters": {
            "type": "object",
            "properties": {"query": {"type": "string"}},
            "required": ["query"],
            "additionalProperties": False,
        },
    },
}
MOOD: dict[str, Any] = {
    "type": "object",
    "properties": {"mood": {"enum": ["calm", "angry"]}, "age": {"type": "integer", "minimum": 3}},
    "required": ["mood", "age"],
    "additionalProperties": False,
}


@pytest.fixture
async def wall() -> AsyncIterator[FaultWall]:
    async with fault_wall() as found:
        yield found


def chat(wall: FaultWall, dialect: DialectName, key: str = KEY) -> Any:  # the library's own overloads are not at stake
    base = wall.url[dialect] + CHAT_PATHS[dialect].removesuffix("/chat/completions")
    headers = {"api-key": key} if dialect == "azure" else {}
    return openai.AsyncOpenAI(base_url=base, api_key=key, max_retries=0, timeout=20, default_headers=headers)


def claude(wall: FaultWall, key: str = KEY) -> Any:
    return anthropic.AsyncAnthropic(base_url=wall.url["anthropic"], api_key=key, max_retries=0, timeout=20)


ASK: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": "When does it leave?"}]}


async def test_the_fields_that_the_wall_takes_are_those_of_the_libraries() -> None:
    assert set(CompletionCreateParamsBase.__annotations__) | {"stream"} == OPENAI_FIELDS
    # The workspace is a header, not a field of the body.
    assert (set(MessageCreateParamsBase.__annotations__) | {"stream"}) - {"workspace_id"} == ANTHROPIC_FIELDS


@pytest.mark.parametrize("dialect", CHATS)
async def test_openai_reads_answers_whole_and_in_pieces(wall: FaultWall, dialect: DialectName) -> None:
    async with chat(wall, dialect) as client:
        whole = await client.chat.completions.create(**ASK)
        stream = await client.chat.completions.create(**ASK, stream=True, stream_options={"include_usage": True})
        pieces = [chunk async for chunk in stream]
        models = [model.id async for model in client.models.list()]

    assert whole.choices[0].message.content == TEXT
    assert whole.choices[0].finish_reason == "stop"
    said = "".join(c.delta.content or "" for chunk in pieces for c in chunk.choices)
    assert said == TEXT
    assert pieces[-1].usage.completion_tokens == whole.usage.completion_tokens > 10
    assert models == [MODEL]
    assert not wall.refused


@pytest.mark.parametrize("dialect", CHATS)
async def test_openai_reads_tool_calls_and_structured_output(wall: FaultWall, dialect: DialectName) -> None:
    wall.say(dialect, Reply(calls=(Tool("search_lore", {"query": "ferry ⛴"}), Tool("search_lore", {"query": "coin"}))))
    kind: dict[str, Any] = {"type": "json_schema", "json_schema": {"name": "mood", "schema": MOOD, "strict": True}}
    async with chat(wall, dialect) as client:
        async with client.chat.completions.stream(**ASK, tools=[LORE]) as stream:
            asked = (await stream.get_final_completion()).choices[0]
        formed = await client.chat.completions.create(**ASK, response_format=kind)

    assert [call.function.arguments for call in asked.message.tool_calls] == [
        '{"query": "ferry \\u26f4"}',
        '{"query": "coin"}',
    ]
    assert asked.finish_reason == "tool_calls"
    assert formed.choices[0].message.content == '{"mood": "calm", "age": 3}'


@pytest.mark.parametrize("dialect", CHATS)
@pytest.mark.parametrize("fault", sorted(STATUS))
async def test_openai_knows_the_refusals(wall: FaultWall, dialect: DialectName, fault: Fault) -> None:
    wall.fault(dialect, fault)
    async with chat(wall, dialect) as client:
        with pytest.raises(openai.APIStatusError) as told:
            await client.chat.completions.create(**ASK, stream=True)

    assert told.value.status_code == STATUS[fault]
    assert told.value.response.headers.get("retry-after") == ("30" if fault == "rate_limited_for" else None)


@pytest.mark.parametrize("dialect", CHATS)
async def test_openai_meets_an_empty_purse(wall: FaultWall, dialect: DialectName) -> None:
    wall.fault(dialect, "budget")
    async with chat(wall, dialect) as client:
        with pytest.raises(openai.APIStatusError) as told:
            await client.chat.completions.create(**ASK)

    assert told.value.status_code == (429 if dialect in {"openai", "azure"} else 402)
    if dialect in {"openai", "azure"}:
        assert told.value.code == "insufficient_quota"


@pytest.mark.parametrize(("dialect", "fault"), BROKEN)
async def test_openai_stumbles_over_broken_streams(wall: FaultWall, dialect: DialectName, fault: Fault) -> None:
    wall.fault(dialect, fault)
    async with chat(wall, dialect) as client:
        with pytest.raises((openai.APIError, httpx2.HTTPError, ValueError)):
            async for _ in await client.chat.completions.create(**ASK, stream=True):
                pass


async def test_openai_takes_the_flat_error_of_trtllm_for_the_end_of_an_answer(wall: FaultWall) -> None:
    # Why this dialect has its own reader with us: half an answer is told as a whole one.
    wall.fault("trtllm", "error_inside")
    async with chat(wall, "trtllm") as client:
        stream = await client.chat.completions.create(**ASK, stream=True)
        said = "".join([c.delta.content or "" async for chunk in stream for c in chunk.choices or ()])

    assert said
    assert said != TEXT
    assert TEXT.startswith(said)


async def test_openai_and_azure_refuse_what_they_do_not_know_and_trtllm_does_in_its_own_form(wall: FaultWall) -> None:
    for dialect in CHATS[1:]:
        async with chat(wall, dialect) as client:
            with pytest.raises(openai.BadRequestError) as told:
                await client.chat.completions.create(**ASK, extra_body={"structured_outputs": {"choice": ["a"]}})
        assert told.value.code == (None if dialect == "trtllm" else "unknown_parameter")
    async with chat(wall, "vllm") as client:
        await client.chat.completions.create(**ASK, extra_body={"lora_request": {}})

    assert wall.asked("vllm")[0].ignored == {"lora_request"}


async def test_a_wrong_key_and_an_unknown_model_are_refused(wall: FaultWall) -> None:
    for dialect in ("openai", "azure"):
        async with chat(wall, dialect, "wrong") as client:
            with pytest.raises(openai.AuthenticationError):
                await client.chat.completions.create(**ASK)
        async with chat(wall, dialect) as client:
            with pytest.raises(openai.NotFoundError):
                await client.chat.completions.create(**ASK | {"model": "nobody"})
    async with claude(wall, "wrong") as client:
        with pytest.raises(anthropic.AuthenticationError):
            await client.messages.create(**ASK, max_tokens=10)
    async with claude(wall) as client:
        with pytest.raises(anthropic.NotFoundError):
            await client.messages.create(**ASK | {"model": "nobody"}, max_tokens=10)


async def test_anthropic_reads_answers_whole_and_in_pieces(wall: FaultWall) -> None:
    async with claude(wall) as client:
        whole = await client.messages.create(**ASK, max_tokens=50)
        async with client.messages.stream(**ASK, max_tokens=50) as stream:
            streamed = await stream.get_final_message()
        models = [model.id async for model in client.models.list()]

    assert whole.content[0].text == streamed.content[0].text == TEXT
    assert whole.stop_reason == streamed.stop_reason == "end_turn"
    assert streamed.usage.output_tokens == whole.usage.output_tokens > 10
    assert models == [MODEL]


async def test_anthropic_reads_tool_calls_and_structured_output(wall: FaultWall) -> None:
    tool = {"name": "search_lore", "description": "Search.", "input_schema": LORE["function"]["parameters"]}
    wall.say("anthropic", Reply(text="Let me see.", calls=(Tool("search_lore", {"query": "ferry"}),)))
    async with claude(wall) as client:
        async with client.messages.stream(**ASK, max_tokens=50, tools=[tool]) as stream:
            asked = await stream.get_final_message()
        results = [
            *ASK["messages"],
            {
                "role": "assistant",
                "content": [
                    block.model_dump(include={"type", "text", "id", "name", "input"}) for block in asked.content
                ],
            },
            {
                "role": "user",
                "content": [{"type": "tool_result", "tool_use_id": asked.content[1].id, "content": "dusk"}],
            },
        ]
        answered = await client.messages.create(model=MODEL, messages=results, max_tokens=50, tools=[tool])
        config = {"format": {"type": "json_schema", "schema": MOOD}}
        formed = await client.messages.create(**ASK, max_tokens=50, output_config=config)

    assert (asked.content[0].text, asked.content[1].input, asked.stop_reason) == (
        "Let me see.",
        {"query": "ferry"},
        "tool_use",
    )
    assert answered.content[0].text == TEXT
    assert formed.content[0].text == '{"mood": "calm", "age": 3}'


@pytest.mark.parametrize("fault", [*sorted(STATUS), "budget"])
async def test_anthropic_knows_the_refusals(wall: FaultWall, fault: Fault) -> None:
    wall.fault("anthropic", fault)
    async with claude(wall) as client:
        with pytest.raises(anthropic.APIStatusError) as told:
            await client.messages.create(**ASK, max_tokens=50)

    expected = STATUS | {"unavailable": 529, "budget": 400}
    assert told.value.status_code == expected[fault]
    body = cast("dict[str, Any]", told.value.body)
    assert body["type"] == "error"


@pytest.mark.parametrize("fault", ["reset", "cut", "malformed", "error_inside"])
async def test_anthropic_stumbles_over_broken_streams(wall: FaultWall, fault: Fault) -> None:
    wall.fault("anthropic", fault)
    async with claude(wall) as client:
        with pytest.raises((anthropic.APIError, httpx2.HTTPError, ValueError)):
            async with client.messages.stream(**ASK, max_tokens=50) as stream:
                await stream.get_final_message()


async def test_anthropic_takes_no_temperature_since_its_newer_version(wall: FaultWall) -> None:
    async with claude(wall) as client:
        with pytest.raises(anthropic.BadRequestError, match="temperature: Extra inputs are not permitted"):
            await client.messages.create(**ASK, max_tokens=50, extra_body={"temperature": 1.0})
        older = {"anthropic-version": "2023-06-01"}
        await client.messages.create(**ASK, max_tokens=50, extra_body={"temperature": 1.0}, extra_headers=older)


@pytest.mark.parametrize("dialect", DIALECTS)
async def test_a_fault_may_be_named_by_the_model_for_one_request(wall: FaultWall, dialect: DialectName) -> None:
    if dialect == "anthropic":
        async with claude(wall) as client:
            with pytest.raises(anthropic.RateLimitError):
                await client.messages.create(**ASK | {"model": "wall-rate-limited"}, max_tokens=5)
            return
    async with chat(wall, dialect) as client:
        with pytest.raises(openai.RateLimitError):
            await client.chat.completions.create(**ASK | {"model": "wall-rate-limited"})
        assert (await client.chat.completions.create(**ASK)).choices[0].message.content == TEXT
