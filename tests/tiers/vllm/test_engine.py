"""Our engine against a real vLLM process: its dialect, its grammars, its queue. The model is one of our own that knows nothing:
what it proves is protocol, grammar and scheduling, never that an answer is a good one."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import jsonschema
import orjson
import pytest

from body_broker.calls import Json
from tests.vllm.server import CALLS, SLOTS, gauge
from tests.waiting import wait_until
from tiers.counts import Counts
from tiers.deadline import Deadline
from tiers.engine import Engine
from tiers.faults import EngineFault
from tiers.model import Message, ToolCall, ToolOffer
from tiers.wire.base import Ask, Completion, Piece

pytestmark = [pytest.mark.anyio, pytest.mark.requires("vllm"), pytest.mark.timeout(400)]

QUESTION = (Message(role="user", content="Who keeps a lantern for the drowned?"),)
INTENT: dict[str, Json] = {
    "type": "object",
    "properties": {
        "act": {"enum": ["hide", "talk", "flee"]},
        "urgency": {"type": "integer", "minimum": 0, "maximum": 9},
        "why": {"type": "string", "maxLength": 20},
    },
    "required": ["act", "urgency", "why"],
    "additionalProperties": False,
}
LORE = ToolOffer(
    "retrieve_lore",
    "What is known of a topic.",
    {
        "type": "object",
        "properties": {"topic": {"type": "string", "maxLength": 40}},
        "required": ["topic"],
        "additionalProperties": False,
    },
)
STATE = ToolOffer(
    "get_world_state",
    "How a region is.",
    {
        "type": "object",
        "properties": {"region": {"type": "string", "maxLength": 40}, "fresh": {"type": "boolean"}},
        "required": ["region"],
        "additionalProperties": False,
    },
)
LONG, LONG_TOKENS_MIN = "[a-z ]{3000,3100}", 3_000 // len(" lantern")


def ask(**changes: Any) -> Ask:  # fields of Ask
    """A question, with what a test changes of it."""
    plain = Ask(model="tiny", messages=QUESTION, max_tokens=64, temperature=0.7)
    return dataclasses.replace(plain, **changes)


async def answer(engine: Engine, **changes: Any) -> Completion:  # fields of Ask
    return await engine.run(ask(**changes), Deadline.after(60))


async def test_it_serves_the_model_that_we_made(engine: Engine) -> None:
    assert await engine.model() == "tiny"
    assert (await engine.probe()).up


async def test_the_text_comes_in_pieces_and_is_whole(engine: Engine) -> None:
    heard: list[Piece] = []

    async def hear(piece: Piece) -> None:
        heard.append(piece)

    found = await engine.run(ask(regex="[a-z ]{100,120}", max_tokens=400), Deadline.after(60), hear)
    assert found.finish == "stop"
    assert "".join(piece.text for piece in heard) == found.text
    assert len(heard) > 10
    assert found.ttft_s > 0


async def test_an_answer_obeys_its_schema(engine: Engine) -> None:
    for seed in range(5):
        found = await answer(engine, schema=INTENT, max_tokens=200, seed=seed)
        assert found.finish == "stop"
        jsonschema.validate(orjson.loads(found.text), INTENT)


async def test_an_answer_is_one_of_the_choices(engine: Engine) -> None:
    said = {(await answer(engine, choices=("hide", "talk", "flee"), max_tokens=8, seed=n)).text for n in range(8)}
    assert said <= {"hide", "talk", "flee"}


async def test_an_answer_that_reached_its_tokens_says_so(engine: Engine) -> None:
    found = await answer(engine, regex=LONG, max_tokens=5)
    assert (found.finish, found.usage.completion) == ("length", 5)


async def test_an_answer_that_is_enough_ends_there(engine: Engine, vllm_url: str) -> None:
    found = await engine.run(ask(regex=LONG, max_tokens=3_000), Deadline.after(60), enough=lambda text: len(text) > 30)
    assert found.finish == "grammar"
    assert len(found.text) < 300
    await idle(vllm_url)


async def test_tools_that_may_be_called_are_parsed_from_the_text(engine: Engine) -> None:
    found = await answer(engine, offers=(LORE, STATE))
    assert found.finish == "tools"
    assert [(call.name, orjson.loads(call.arguments)) for call in found.calls] == [
        (call.name, dict(call.arguments)) for call in CALLS
    ]
    assert not found.text.strip()


async def test_a_required_tool_is_called_with_arguments_that_fit(engine: Engine) -> None:
    for seed in range(3):
        found = await answer(engine, offers=(STATE,), tool_choice="required", seed=seed, max_tokens=300)
        assert found.finish == "tools"
        for call in found.calls:
            assert call.name == STATE.name
            jsonschema.validate(orjson.loads(call.arguments), dict(STATE.schema))
        assert found.calls


async def test_a_named_tool_is_called_and_no_other(engine: Engine) -> None:
    found = await answer(engine, offers=(LORE, STATE), tool_choice=STATE.name, max_tokens=300)
    assert found.finish == "tools"
    assert [call.name for call in found.calls] == [STATE.name]
    jsonschema.validate(orjson.loads(found.calls[0].arguments), dict(STATE.schema))


async def test_after_a_tools_result_it_talks(engine: Engine) -> None:
    called = ToolCall("call_1", STATE.name, '{"region": "ashmere_quay"}')
    messages = (
        *QUESTION,
        Message(role="assistant", tool_calls=(called,)),
        Message(role="tool", content="at the steps", tool_call_id="call_1"),
    )
    found = await answer(engine, messages=messages, offers=(LORE, STATE))
    assert (found.calls, bool(found.text)) == ((), True)


async def test_no_tool_is_called_where_none_may_be(engine: Engine) -> None:
    found = await answer(engine, offers=(LORE, STATE), tool_choice="none")
    assert found.calls == ()
    assert "<tool_call>" not in found.text


async def test_tokens_are_counted_as_the_engine_counts_them(engine: Engine, vllm_url: str) -> None:
    names = ("vllm:prompt_tokens_total", "vllm:generation_tokens_total")
    before = [await gauge(vllm_url, name) for name in names]
    found = await answer(engine, regex="[a-z ]{40}")
    assert found.counted

    async def counted() -> bool:
        after = [await gauge(vllm_url, name) for name in names]
        return [b - a for a, b in zip(before, after, strict=True)] == [found.usage.prompt, found.usage.completion]

    await wait_until(counted, "vLLM's metrics say what its answer said")


async def test_prefixes_are_shared_only_under_the_same_salt(engine: Engine) -> None:
    long = (Message(role="user", content="What is written of the crypt under the hill? " * 12),)
    cached = [
        (await answer(engine, messages=long, cache_salt=salt, max_tokens=1)).usage.cached
        for salt in ("osric_vane", "osric_vane", "wren_vane", "osric_vane")
    ]
    assert [bool(count) for count in cached] == [False, True, False, True]


async def test_a_prompt_past_the_context_is_too_long(engine: Engine) -> None:
    with pytest.raises(EngineFault, match="too_long"):
        await answer(engine, messages=(Message(role="user", content="x" * 40_000),))


async def test_a_model_that_it_does_not_serve_is_rejected(engine: Engine) -> None:
    with pytest.raises(EngineFault, match="rejected"):
        await answer(engine, model="no-such-model")


async def test_a_request_that_is_cancelled_frees_its_slot(engine: Engine, vllm_url: str) -> None:
    before = await gauge(vllm_url, "vllm:generation_tokens_total")
    async with running(engine, SLOTS) as tasks:
        for task in tasks:
            task.cancel()
        await idle(vllm_url)
    written = await gauge(vllm_url, "vllm:generation_tokens_total") - before
    assert written < SLOTS * LONG_TOKENS_MIN, "they were written to their ends, for nobody"
    assert (await answer(engine)).text


async def test_what_is_urgent_overtakes_what_may_wait(engine: Engine, vllm_url: str) -> None:
    wide = Engine(dataclasses.replace(engine.spec, background=32), Counts())
    ended: list[str] = []

    async def run(name: str, urgency: float, regex: str) -> None:
        await wide.run(ask(regex=regex, urgency=urgency, max_tokens=400), Deadline.after(120))
        ended.append(name)

    waiting = 2 * SLOTS
    try:
        async with asyncio.TaskGroup() as group:
            for number in range(SLOTS + waiting):
                group.create_task(run(f"background {number}", 0.0, "[a-z ]{300,320}"))

            async def queued() -> bool:
                return await gauge(vllm_url, "vllm:num_requests_waiting") >= SLOTS

            await wait_until(queued, "vLLM has more to do than it can at once")
            group.create_task(run("urgent", 1.0, "[a-z ]{4}"))
    finally:
        await wide.close()
    assert len(ended) - ended.index("urgent") > SLOTS, ended


@asynccontextmanager
async def running(engine: Engine, count: int) -> AsyncGenerator[list[asyncio.Task[Completion]]]:
    """So many long answers that have begun."""
    begun = 0

    async def hear(piece: Piece) -> None:
        nonlocal begun
        begun += 1 if piece.text else 0

    tasks = [
        asyncio.create_task(engine.run(ask(regex=LONG, max_tokens=3_000), Deadline.after(120), hear))
        for _ in range(count)
    ]
    await wait_until(lambda: begun >= count, "answers have begun", 60)
    yield tasks
    await asyncio.gather(*tasks, return_exceptions=True)


async def idle(url: str) -> None:
    """Wait until vLLM works on nothing."""

    async def nothing() -> bool:
        return await gauge(url, "vllm:num_requests_running") == 0

    await wait_until(nothing, "vLLM works on nothing", 60)
