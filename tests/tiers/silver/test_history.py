"""What was said in a conversation: its last ten turns, and nobody else's."""

from __future__ import annotations

from typing import Any

import pytest

from body_broker.storage.redis import Redis
from tiers.prompting import Turn
from tiers.silver.history import KEPT_S, TURNS_MAX, Dialogue

pytestmark = pytest.mark.anyio


async def test_the_last_ten_turns_are_remembered_oldest_first(redis: Redis) -> None:
    dialogue = Dialogue(redis)
    for n in range(TURNS_MAX + 3):
        await dialogue.add("cnv_a", Turn(f"question {n}", f"answer {n}"))
    found = await dialogue.read("cnv_a")
    assert [turn.player for turn in found] == [f"question {n}" for n in range(3, TURNS_MAX + 3)]
    assert found[-1].answer == f"answer {TURNS_MAX + 2}"


async def test_a_conversation_knows_nothing_of_another(redis: Redis) -> None:
    dialogue = Dialogue(redis)
    await dialogue.add("cnv_a", Turn("a secret", "kept"))
    assert await dialogue.read("cnv_b") == ()


async def test_two_hubs_share_what_was_said(redis: Redis) -> None:
    await Dialogue(redis).add("cnv_a", Turn("hello", "aye"))
    assert await Dialogue(redis).read("cnv_a") == (Turn("hello", "aye"),)


async def test_a_conversation_is_forgotten_after_a_day_of_silence(redis: Redis) -> None:
    await Dialogue(redis).add("cnv_a", Turn("hello", "aye"))
    left: Any = await redis.ttl("dialogue:cnv_a")
    assert 0 < left <= KEPT_S
