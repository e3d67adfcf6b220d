"""What is sent to a SageMaker container is answered by a real vLLM, which has the same POST /invocations."""

from __future__ import annotations

import json

import aiohttp
import pytest

from tests.tiers.asking import LORE, MOOD
from tiers.bronze.sagemaker.messages import completion_of, question_of
from tiers.model import Message
from tiers.wire.base import Ask, Completion

pytestmark = [pytest.mark.anyio, pytest.mark.requires("vllm"), pytest.mark.timeout(400)]
SAID = (Message(role="user", content="How does Kaya feel?"),)


async def invoked(url: str, ask: Ask) -> Completion:
    async with (
        aiohttp.ClientSession() as session,
        session.post(
            f"{url}/invocations", data=question_of(ask), headers={"content-type": "application/json"}
        ) as answer,
    ):
        body = await answer.read()
        assert answer.status == 200, body
    return completion_of(body, ask, 1.0)


async def test_an_answer_comes_whole_with_its_tokens_and_obeys_its_schema(vllm_url: str) -> None:
    found = await invoked(vllm_url, Ask(model="", messages=SAID, max_tokens=60, schema=MOOD, temperature=0.0))
    assert json.loads(found.text)["mood"] in {"calm", "angry"}
    assert found.counted
    assert found.usage.prompt > 0


async def test_a_call_that_is_required_is_read_as_a_call(vllm_url: str) -> None:
    ask = Ask(model="", messages=SAID, max_tokens=120, offers=(LORE,), tool_choice="search_lore", temperature=0.0)
    found = await invoked(vllm_url, ask)
    assert [call.name for call in found.calls] == ["search_lore"]
    assert isinstance(json.loads(found.calls[0].arguments)["query"], str)
