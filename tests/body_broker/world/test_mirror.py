"""Owns the proof of the copy in Redis: whole, in order, and never written by an engine whose epoch is over."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import orjson
import pytest

from body_broker.storage.redis import Redis
from body_broker.world import mirror
from body_broker.world.epochs import Superseded
from body_broker.world.forms import event_of
from body_broker.world.model import EVENT_STREAM, Effect, Entity, Event
from body_broker.world.recorder import play
from tests.body_broker.world.scene import entities


def written(*effects: Effect, after_pos: int = 0, epoch: int = 1) -> tuple[list[Event], dict[str, Entity]]:
    """Events and the world they leave."""
    events, left = play([(effect, None) for effect in effects], entities(), after_pos=after_pos, epoch=epoch, tick=3)
    return events, {**entities(), **left}


async def holds() -> None:
    """The epoch holds."""


async def is_over() -> None:
    """The epoch is over."""
    raise Superseded("Another engine arbitrates.")


async def make_whole(redis: Redis, events: Sequence[Event] = (), *, epoch: int = 1, proof_s: float = 5.0) -> bool:
    last_pos = events[-1].pos if events else 0
    return await mirror.rewrite(redis, entities(), events, epoch=epoch, last_pos=last_pos, prove=holds, proof_s=proof_s)


async def entries(redis: Redis, stream: str) -> list[tuple[bytes, dict[bytes, bytes]]]:
    found: Any = await redis.xrange(stream)
    return found


MOOD = Effect(entity_id="mara", type="set", patch={"mood": "afraid"})
DEATH = Effect(entity_id="ben", type="removed", removed=True)


async def test_the_keys_of_the_source_documents_hold_the_npc_and_the_region_as_json(redis: Redis) -> None:
    await redis.set("npc:ghost", "of another world")
    assert await make_whole(redis)

    assert orjson.loads(await redis.get("npc:mara") or b"")["data"]["name"] == "Mara"
    assert orjson.loads(await redis.get("world:harbour") or b"")["data"]["weather"] == "fog"
    assert not await redis.exists("npc:ghost", "npc:anna", "npc:scalpel", "world:morgue")

    events, world = written(MOOD, DEATH)
    assert await mirror.publish(redis, events, world, epoch=1, decided=["sch_1"])
    found = orjson.loads(await redis.get("npc:mara") or b"")
    assert (found["version"], found["tick"], found["data"]["mood"]) == (2, 3, "afraid")
    assert not await redis.exists("npc:ben")
    assert [fields for _, fields in await entries(redis, mirror.DECIDED_STREAM)] == [{b"change": b"sch_1"}]


async def test_each_event_is_in_the_stream_once_and_under_its_position(redis: Redis) -> None:
    await make_whole(redis)
    events, world = written(MOOD, DEATH)
    for some in (events[:1], events, events[:1]):
        assert await mirror.publish(redis, some, world, epoch=1)

    found = await entries(redis, EVENT_STREAM)
    assert [entry_id for entry_id, _ in found] == [b"1-0", b"2-0"]
    assert [event_of(fields[b"event"]) for _, fields in found] == events
    assert await mirror.latest(redis) == 2


async def test_a_copy_that_was_lost_takes_nothing_until_it_is_made_whole(redis: Redis) -> None:
    events, world = written(MOOD)

    assert not await mirror.publish(redis, events, world, epoch=1)
    assert not await mirror.is_kept(redis, 1)
    assert await make_whole(redis, events)
    assert await mirror.is_kept(redis, 1)
    assert await mirror.latest(redis) == 1


async def test_an_engine_whose_epoch_is_over_changes_nothing(redis: Redis) -> None:
    await make_whole(redis, epoch=1)
    await make_whole(redis, epoch=2)
    events, world = written(MOOD)

    assert not await mirror.publish(redis, events, world, epoch=1)
    with pytest.raises(Superseded):
        await mirror.rewrite(redis, world, events, epoch=1, last_pos=1, prove=is_over, proof_s=5.0)
    # One that proved its epoch, was paused, and wakes when the proof is worth nothing any more:
    assert not await make_whole(redis, events, epoch=1, proof_s=0.0)

    assert await mirror.is_kept(redis, 2)
    assert orjson.loads(await redis.get("npc:mara") or b"")["version"] == 1
    assert await mirror.latest(redis) == 0


async def test_a_database_that_went_back_is_believed_and_redis_is_not(redis: Redis) -> None:
    later, world = written(MOOD, after_pos=40, epoch=9)
    await make_whole(redis, epoch=9)
    await mirror.publish(redis, later, world, epoch=9)

    before, _ = written(MOOD)
    assert await make_whole(redis, before, epoch=4)

    assert await mirror.is_kept(redis, 4)
    assert [entry_id for entry_id, _ in await entries(redis, EVENT_STREAM)] == [b"1-0"]
