"""Owns the proof of intents: kept for their moment, refused where the world has moved on."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from body_broker.errors import BadInput, Conflict, NotFound, TooLarge
from body_broker.storage.redis import Redis
from body_broker.world import intents
from tests.body_broker.world.scene import entities


def wanted(**fields: Any) -> intents.Intent:
    return intents.check({"kind": "approach", "target": "anna", "version": 1, **fields})


async def test_an_intent_is_fresh_for_its_time_then_expired_then_gone(
    redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1_000_000]
    monkeypatch.setattr("body_broker.world.intents._now_ms", lambda: now[0])
    assert await intents.get(redis, "mara") is None
    await intents.submit(redis, entities()["mara"], wanted(params={"speed": 2}, confidence=0.5))

    for age_ms, state in ((0, "fresh"), (1_999, "fresh"), (2_000, "expired")):
        now[0] = 1_000_000 + age_ms
        held = await intents.get(redis, "mara")
        assert held is not None
        assert (held.state, held.age_ms) == (state, age_ms)
        assert held.intent == wanted(params={"speed": 2}, confidence=0.5)
    assert 0 < await redis.pttl("intent:mara") <= intents.TTL_MS + intents.KEPT_AFTER_MS


async def test_an_intent_of_an_npc_that_has_changed_since_is_refused(redis: Redis) -> None:
    mara = replace(entities()["mara"], version=5)
    with pytest.raises(Conflict) as caught:
        await intents.submit(redis, mara, wanted(version=4))
    assert caught.value.details["current_version"] == 5

    await intents.submit(redis, mara, wanted(version=5))
    with pytest.raises(Conflict):  # by a process whose map is behind
        await intents.submit(redis, replace(mara, version=4), wanted(version=4))
    held = await intents.get(redis, "mara")
    assert held is not None
    assert held.intent.version == 5


async def test_only_living_npcs_have_intents(redis: Redis) -> None:
    for entity in (None, entities()["anna"], replace(entities()["mara"], removed=True)):
        with pytest.raises(NotFound):
            await intents.submit(redis, entity, wanted())
    with pytest.raises(Conflict, match="dead"):
        await intents.submit(redis, entities()["olga"], wanted())


@pytest.mark.parametrize(
    "fields",
    [
        {"kind": "Approach!"},
        {"confidence": float("nan")},
        {"confidence": 1.5},
        {"ttl_ms": 0},
        {"ttl_ms": 10**6},
        {"version": -1},
        {"orders": "none"},
        {"params": {"x": "\ud800"}},
    ],
)
def test_what_is_no_intent_is_told_why(fields: dict[str, Any]) -> None:
    with pytest.raises(BadInput):
        wanted(**fields)


def test_params_are_small() -> None:
    with pytest.raises(TooLarge):
        wanted(params={"text": "x" * 2_000})
