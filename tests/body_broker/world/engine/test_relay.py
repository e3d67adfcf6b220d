"""The relay: an engine outside arbitrates, what fits is the record, and what does not is refused with a reason."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import orjson
import pytest

from body_broker.background import running
from body_broker.errors import Conflict
from body_broker.storage.postgres import Pool
from body_broker.storage.redis import Redis
from body_broker.world import queue, reading
from body_broker.world.engine.messages import MESSAGE_BYTES_MAX, Ended, Lease, Recorded, Refusal, Snapshot, Taken
from body_broker.world.model import Effect
from tests.body_broker.world.engine.hand import Hand, applied, effect
from tests.body_broker.world.engine.scene import ask, decided, is_sound, load, own_engine, relay_of, state_of
from tests.waiting import wait_until


@pytest.fixture(autouse=True)
async def relay(pool: Pool, redis: Redis, database_url: str) -> AsyncIterator[None]:
    """A world, and a relay on it; whatever a test does, the record is sound afterwards."""
    await load(pool)
    async with running(relay_of(pool, redis, database_url).run(), name="relay"):
        yield
    await is_sound(pool)


async def test_a_queued_change_is_decided_by_the_engine_outside_and_recorded(pool: Pool, redis: Redis) -> None:
    async with own_engine(redis) as (_, arbiter):
        (hurt,) = await ask(pool, ("ada", "hurt", {"by": 5}))
        (dead,) = await ask(pool, ("ben", "hurt", {"by": 5}))
        (stale,) = await ask(pool, ("ada", "move", {"to": "cellar"}), expect_version=9)

        assert await decided(pool, hurt) == ("applied", None)
        assert await decided(pool, dead) == ("rejected", "dead_actor")
        assert await decided(pool, stale) == ("conflict", None)
        ada, _ = await reading.entity(pool, "ada")
        assert (ada.version, ada.data["health"]) == (2, 75)
        assert arbiter.entities["ada"].version == 2
        mirrored = await wait_until(lambda: redis.get("npc:ada"), "the mirror has it")
        assert orjson.loads(mirrored or b"")["version"] == 2


async def test_a_batch_is_one_message_and_is_recorded_whole(pool: Pool, redis: Redis) -> None:
    async with own_engine(redis):
        whole = await ask(pool, ("ada", "hurt", {"by": 5}), ("seal", "add", {"field": "value", "by": 1}), atomic=True)
        none = await ask(pool, ("ada", "hurt", {"by": 5}), ("ben", "hurt", {"by": 5}), atomic=True)

        assert [await decided(pool, each) for each in whole] == [("applied", None)] * 2
        assert [await decided(pool, each) for each in none] == [("rejected", "batch"), ("rejected", "dead_actor")]


async def test_what_the_engine_saw_by_itself_is_recorded_once_under_its_key(pool: Pool, redis: Redis) -> None:
    async with own_engine(redis) as (client, arbiter):
        step = arbiter.happen(Effect(entity_id="ada", type="moved", patch={"place": "cellar"}))
        first = await client.observe("step-1", [step])
        again = await client.observe("step-1", [step])
        assert (first, again) != (None, None)
        await wait_until(lambda: client.recorded >= (again or 0), "both are recorded")

        events = await reading.history(pool, "ada", from_version=2)
        assert [(e.type, e.patch["place"]) for e in events] == [("moved", "cellar")]


async def test_a_change_of_its_own_cause_is_rejected_before_an_engine_sees_it(pool: Pool, redis: Redis) -> None:
    async with own_engine(redis):
        (cause,) = await ask(pool, ("ada", "hurt", {"by": 5}))
        await decided(pool, cause)
        (looped,) = await ask(pool, ("ada", "hurt", {"by": 5}), causation=cause)

        assert await decided(pool, looped) == ("rejected", "same_cause")


async def test_a_second_engine_is_told_to_wait_until_the_first_says_bye(redis: Redis) -> None:
    first, second = Hand(redis, "a"), Hand(redis, "b")
    begun = await first.join()

    taken = await second.greet(Taken)
    assert 0 < taken.retry_ms <= begun.lease_ms + 1
    await Hand(redis, "a", instance="2").greet(Taken)

    await first.count(type="bye")
    assert (await second.join()).epoch == begun.epoch + 1
    await first.hear(Ended, epoch=begun.epoch, reason="bye")


async def test_the_same_instance_begins_anew_by_saying_hello(redis: Redis) -> None:
    hand = Hand(redis)
    begun = await hand.join()

    assert (await hand.join()).epoch == begun.epoch + 1
    await hand.hear(Ended, epoch=begun.epoch, reason="replaced")


async def test_a_heartbeat_is_answered_and_a_number_that_was_heard_is_passed_over(pool: Pool, redis: Redis) -> None:
    hand = Hand(redis)
    await hand.join()

    for _ in range(2):
        await hand.say(type="heartbeat", epoch=hand.epoch, n=1, tick=200)
    hand.n = 1
    (change,) = await ask(pool, ("ada", "hurt", {"by": 10}))
    await hand.change(change)
    await hand.outcome(applied(change, effect("ada", 2)))

    await hand.hear(Recorded, upto=2)
    assert len([order for order in hand.heard if isinstance(order, Lease)]) == 1


async def test_an_entity_made_by_a_change_is_in_the_next_snapshot(pool: Pool, redis: Redis) -> None:
    hand = Hand(redis)
    await hand.join()
    (change,) = await ask(pool, ("cleo", "spawn", {"kind": "npc", "data": {"name": "Cleo"}, "region": "morgue"}))
    await hand.change(change)
    made = effect("cleo", 1, type="spawned", kind="npc", region="morgue", patch={"name": "Cleo\u202e", "health": 50.0})
    await hand.outcome(applied(change, made))
    assert await decided(pool, change) == ("applied", None)

    place = len(hand.heard)
    await hand.join()
    world = await hand.hear(Snapshot, after=place)
    (cleo,) = [entity for entity in world.entities if entity.id == "cleo"]
    assert (cleo.version, cleo.region, cleo.data) == (1, "morgue", {"name": "Cleo", "health": 50})


MISFITS: dict[str, dict[str, Any]] = {
    "a version is skipped": {"effects": [effect("ada", 3)]},
    "a version is had": {"effects": [effect("ada", 1)]},
    "no effect": {},
    "a field that the kind has not": {"effects": [effect("ada", 2, patch={"wings": 2})]},
    "health beyond its bounds": {"effects": [effect("ada", 2, patch={"health": 1000})]},
    "a place that is not there": {"effects": [effect("ada", 2, patch={"place": "nowhere"})]},
    "a region that is a place": {"effects": [effect("ada", 2, region="hall")]},
    "another kind": {"effects": [effect("ada", 2, kind="item")]},
    "a new one without its kind": {"effects": [effect("eve", 1, patch={"name": "Eve"})]},
    "a rejection without a rule": {"state": "rejected"},
    "a rejection with effects": {"state": "rejected", "rule": "mood", "effects": [effect("ada", 2)]},
    "a conflict with the present version": {"state": "conflict", "current_version": 7},
}


@pytest.mark.parametrize("said", MISFITS.values(), ids=MISFITS.keys())
async def test_an_outcome_that_does_not_fit_is_refused_and_a_new_epoch_begins(
    said: dict[str, Any], pool: Pool, redis: Redis
) -> None:
    hand = Hand(redis)
    await hand.join()
    (change,) = await ask(pool, ("ada", "hurt", {"by": 10}))
    await hand.change(change)

    entry = await hand.outcome({"change_id": change, "state": "applied", **said})

    refusal = await hand.hear(Refusal, of=entry)
    assert (refusal.code, refusal.message.endswith(".")) == ("unfit", True)
    await hand.hear(Ended, epoch=hand.epoch, reason="out_of_step")
    assert await state_of(pool, change) == ("rejected", "bad_outcome")
    assert (await reading.entity(pool, "ada"))[0].version == 1
    await hand.join()


async def test_half_a_batch_and_a_change_that_is_none_do_not_fit(pool: Pool, redis: Redis) -> None:
    hand = Hand(redis)
    await hand.join()
    first, second = await ask(pool, ("ada", "hurt", {"by": 1}), ("ada", "heal", {"by": 1}), atomic=True)
    await hand.change(first)

    entry = await hand.outcome(applied(first, effect("ada", 2)))

    assert "batch" in (await hand.hear(Refusal, of=entry)).message
    assert [await state_of(pool, each) for each in (first, second)] == [
        ("rejected", "bad_outcome"),
        ("rejected", "batch"),
    ]
    await hand.join()
    entry = await hand.outcome(applied("sch_nothing", effect("ada", 2)))
    assert (await hand.hear(Refusal, of=entry)).code == "unfit"


NONSENSE: dict[str, tuple[bytes, str]] = {
    "not JSON": (b"{", "bad_json"),
    "nothing": (b"", "bad_json"),
    "not UTF-8": (b'{"v":1,"type":"\xff"}', "bad_json"),
    "NaN": (b'{"v":1,"type":"heartbeat","epoch":%d,"n":1,"tick":NaN}', "bad_json"),
    "infinite": (b'{"v":1,"type":"heartbeat","epoch":%d,"n":1,"tick":1e999}', "bad_json"),
    "a list": (b"[1]", "bad_message"),
    "no type": (b'{"v":1}', "unknown_type"),
    "an unknown type": (b'{"v":1,"type":"sing","epoch":%d,"n":1}', "unknown_type"),
    "another version": (b'{"v":2,"type":"heartbeat","epoch":%d,"n":1,"tick":1}', "bad_message"),
    "true for a number": (b'{"v":1,"type":"heartbeat","epoch":%d,"n":1,"tick":true}', "bad_message"),
    "a field too many": (b'{"v":1,"type":"heartbeat","epoch":%d,"n":1,"tick":1,"sing":1}', "bad_message"),
    "NUL": (b'{"v":1,"type":"heartbeat","epoch":%d,"n":1,"tick":"\\u0000"}', "bad_message"),
    "too deep": (b'{"v":1,"type":"heartbeat","epoch":%d,"n":1,"tick":' + b"[" * 30 + b"]" * 30 + b"}", "bad_message"),
    "far too deep": (b"[" * 5_000, "bad_json"),
    "too large": (b" " * (MESSAGE_BYTES_MAX + 1), "too_large"),
    "of an old epoch": (b'{"v":1,"type":"heartbeat","epoch":1,"n":1,"tick":1}', "old_epoch"),
    "of a coming epoch": (b'{"v":1,"type":"heartbeat","epoch":999,"n":1,"tick":1}', "old_epoch"),
}


@pytest.mark.parametrize(("raw", "code"), NONSENSE.values(), ids=NONSENSE.keys())
async def test_a_message_that_is_none_is_refused_with_its_reason_and_harms_nobody(
    raw: bytes, code: str, pool: Pool, redis: Redis
) -> None:
    hand = Hand(redis)
    await hand.join()

    entry = await hand.say(raw % hand.epoch if b"%d" in raw else raw)

    refusal = await hand.hear(Refusal, of=entry)
    assert refusal.code == code
    hand.n = 1 if b'"n":1' in raw and code in {"bad_message", "unknown_type"} else 0
    (change,) = await ask(pool, ("ada", "hurt", {"by": 10}))
    await hand.change(change)
    await hand.outcome(applied(change, effect("ada", 2)))
    assert await decided(pool, change) == ("applied", None)


async def test_an_unreadable_outcome_ends_the_epoch_because_its_effects_will_never_be_known(redis: Redis) -> None:
    hand = Hand(redis)
    await hand.join()

    await hand.count(type="outcome", tick=1, outcomes=[])

    await hand.hear(Refusal, code="bad_message", epoch=hand.epoch)
    await hand.hear(Ended, epoch=hand.epoch, reason="out_of_step")


async def test_a_world_that_is_loaded_ends_the_epoch_and_the_engine_plays_on_in_it(pool: Pool, redis: Redis) -> None:
    async with own_engine(redis) as (client, arbiter):
        epoch = client.epoch
        await load(pool, Effect(entity_id="dora", type="loaded", kind="npc", region="morgue", patch={"name": "Dora"}))
        (change,) = await ask(pool, ("dora", "hurt", {"by": 5}))

        assert await decided(pool, change) == ("applied", None)
        assert client.epoch is not None
        assert epoch is not None
        assert client.epoch > epoch
        assert arbiter.entities["dora"].version == 2


async def test_what_an_engine_was_sent_cannot_be_taken_back_until_its_epoch_is_over(pool: Pool, redis: Redis) -> None:
    hand = Hand(redis)
    await hand.join()
    (change,) = await ask(pool, ("ada", "hurt", {"by": 10}))
    await hand.change(change)

    with pytest.raises(Conflict, match="has this change"):
        await queue.cancel(pool, change, "service:game")
    await hand.count(type="bye")
    await hand.hear(Ended, reason="bye")

    async def cancelled() -> bool:
        try:
            return (await queue.cancel(pool, change, "service:game")).state == "cancelled"
        except Conflict:
            return False

    await wait_until(cancelled, "it can be taken back")


async def test_of_outcomes_that_come_together_those_before_the_misfit_are_recorded(pool: Pool, redis: Redis) -> None:
    hand = Hand(redis)
    await hand.join()
    good, bad, after = [(await ask(pool, ("ada", "hurt", {"by": 1})))[0] for _ in range(3)]
    await hand.change(after)

    for change, version in ((good, 2), (bad, 9), (after, 3)):
        await hand.outcome(applied(change, effect("ada", version)))

    await hand.hear(Ended, epoch=hand.epoch, reason="out_of_step")
    assert await decided(pool, good) == ("applied", None)
    assert await decided(pool, bad) == ("rejected", "bad_outcome")
    await hand.hear(Refusal, code="old_epoch", epoch=hand.epoch)
    assert await state_of(pool, after) == ("queued", None)
