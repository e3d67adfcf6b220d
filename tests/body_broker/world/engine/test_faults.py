"""Engines at fault: nothing one says wedges the relay, makes the record unsound, or takes the world from the next one."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from body_broker.background import running
from body_broker.storage.postgres import Pool
from body_broker.storage.redis import Redis
from body_broker.world import mirror, queue, reading
from body_broker.world.engine.fitting import TICKS_AHEAD_MAX
from body_broker.world.engine.holding import WINDOW
from body_broker.world.engine.messages import NUMBER_MAX, Change, Ended, Lease, Recorded, Refusal
from body_broker.world.model import EVENT_STREAM, Effect, Proposal
from tests.body_broker.world.engine.hand import Hand, applied, effect
from tests.body_broker.world.engine.scene import (
    ORIGIN,
    WORLD,
    ask,
    decided,
    is_sound,
    load,
    own_engine,
    relay_of,
    state_of,
)
from tests.waiting import wait_until

GRACE_S = 0.3
MORE = (
    Effect(entity_id="attic", type="loaded", kind="place", region="morgue", patch={"name": "Attic"}),
    Effect(entity_id="annex", type="loaded", kind="region", patch={"name": "Annex"}),
    Effect(entity_id="lamp", type="loaded", kind="item", patch={"name": "Lamp", "holder": "dora"}),
    Effect(
        entity_id="dora",
        type="loaded",
        kind="npc",
        region="morgue",
        patch={"name": "Dora", "place": "hall", "inventory": ["lamp"]},
    ),
    Effect(entity_id="box", type="loaded", kind="item", patch={"name": "Box", "place": "hall"}),
    Effect(entity_id="coin", type="loaded", kind="item", patch={"name": "Coin", "holder": "box"}),
    Effect(entity_id="gone", type="loaded", kind="place", patch={"name": "Gone"}, removed=True),
    Effect(entity_id="past", type="loaded", kind="region", patch={"name": "Past"}, removed=True),
)


@pytest.fixture(autouse=True)
async def relay(pool: Pool, redis: Redis, database_url: str) -> AsyncIterator[None]:
    """A world, and a relay on it; whatever a test does, the record is sound afterwards."""
    await load(pool, *WORLD, *MORE)
    async with running(relay_of(pool, redis, database_url, grace_s=GRACE_S).run(), name="relay"):
        yield
    await is_sound(pool)


async def beaten(hand: Hand, times: int) -> bool:
    await hand._listen()  # pyright: ignore[reportPrivateUsage]  # all that comes
    return len([order for order in hand.heard if isinstance(order, Lease)]) >= times


async def joined(redis: Redis, engine: str = "hand") -> Hand:
    hand = Hand(redis, engine)
    await hand.join()
    return hand


async def observed(hand: Hand, *effects: dict[str, Any], tick: int = 200, key: str = "one") -> Refusal | None:
    """The refusal of an observation, None where it is recorded."""
    entry = await hand.count(type="observation", tick=tick, key=key, effects=list(effects))

    async def look() -> list[Refusal | None]:
        await hand._listen()  # pyright: ignore[reportPrivateUsage]  # whatever comes first
        return [
            order if isinstance(order, Refusal) else None
            for order in hand.heard
            if (isinstance(order, Refusal) and order.of == entry)
            or (isinstance(order, Recorded) and order.epoch == hand.epoch and order.upto >= hand.n)
        ]

    return (await wait_until(look, "it is recorded or refused"))[0]


@pytest.mark.parametrize("version", [0, 2**53])
async def test_a_change_that_no_message_can_hold_is_rejected_and_the_others_are_sent(
    version: int, pool: Pool, redis: Redis
) -> None:
    (bad,) = await ask(pool, ("ada", "hurt", {"by": 1}), priority=9)
    batch = await ask(pool, ("ada", "hurt", {"by": 1}), ("ada", "heal", {"by": 1}), atomic=True)
    (good,) = await ask(pool, ("ada", "hurt", {"by": 1}))
    # As a door that did not look would have let it in.
    await pool.execute(
        "UPDATE world_change SET expect_version = $2::bigint WHERE id = ANY ($1::text[])", [bad, batch[1]], version
    )
    hand = await joined(redis)

    await hand.change(good)
    assert await decided(pool, bad) == ("rejected", "fault")
    assert [await decided(pool, each) for each in batch] == [("rejected", "batch"), ("rejected", "fault")]
    await hand.outcome(applied(good, effect("ada", 2)))
    assert await decided(pool, good) == ("applied", None)


async def test_a_number_beyond_all_bounds_is_refused_and_the_next_engine_begins(pool: Pool, redis: Redis) -> None:
    hand = await joined(redis)
    (change,) = await ask(pool, ("ada", "say", {"text": "hi"}))
    await hand.change(change)

    entry = await hand.outcome(applied(change, effect("ada", 2, patch={"last_said": {"text": "hi", "tick": 1e20}})))

    assert (await hand.hear(Refusal, of=entry)).code == "unfit"
    assert await decided(pool, change) == ("rejected", "bad_outcome")
    await joined(redis, "next")


async def test_what_the_record_does_not_take_for_any_reason_is_refused_and_not_read_for_ever(
    pool: Pool, redis: Redis
) -> None:
    await pool.execute(
        "CREATE FUNCTION no() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'no'; END $$;"
        "CREATE TRIGGER no BEFORE INSERT ON world_event FOR EACH ROW WHEN (NEW.entity_id = 'ben') EXECUTE FUNCTION no()"
    )
    hand = await joined(redis)

    refusal = await observed(hand, effect("ben", 2, patch={"mood": "grim"}))

    assert refusal is not None
    assert refusal.code == "unfit"
    await hand.hear(Ended, epoch=hand.epoch, reason="out_of_step")
    assert await observed(await joined(redis, "next"), effect("ada", 2)) is None


async def test_a_tick_that_is_over_or_far_ahead_is_refused(pool: Pool, redis: Redis) -> None:
    for number, tick in enumerate((0, TICKS_AHEAD_MAX + 10, NUMBER_MAX)):
        refusal = await observed(await joined(redis, f"e{number}"), effect("ada", 2), tick=tick)
        assert refusal is not None, tick
        assert "Tick" in refusal.message
    assert (await reading.entity(pool, "ada"))[0].version == 1


async def test_a_record_at_the_last_tick_there_is_still_welcomes_engines(pool: Pool, redis: Redis) -> None:
    await pool.execute("UPDATE world_engine SET tick = $1::bigint", NUMBER_MAX + 5)
    hand = Hand(redis)

    assert (await hand.join()).tick == NUMBER_MAX
    assert await observed(hand, effect("ada", 2), tick=NUMBER_MAX) is None


async def test_a_second_disposition_is_added_beside_the_first(pool: Pool, redis: Redis) -> None:
    async with own_engine(redis):
        for named in ("ben", "hall", "ben"):
            (change,) = await ask(pool, ("ada", "add", {"field": "disposition", "by": 5, "key": named}))
            assert await decided(pool, change) == ("applied", None)

        assert (await reading.entity(pool, "ada"))[0].data["disposition"] == {"ben": 10, "hall": 5}


async def test_a_reference_that_is_taken_back_need_not_be_there(redis: Redis) -> None:
    hand = await joined(redis)
    assert await observed(hand, effect("ada", 2, patch={"disposition": {"ben": 5}})) is None
    assert (
        await observed(hand, effect("ada", 3, patch={"disposition": {"nobody": None}, "place": None}), key="2") is None
    )


GONE = {"type": "gone", "removed": True}
CORRUPT: dict[str, list[dict[str, Any]]] = {
    "a place that is an npc": [effect("ada", 2, patch={"place": "ben"})],
    "a faction that is a flag": [effect("ada", 2, patch={"faction": "seal"})],
    "a place in an inventory": [effect("ada", 2, patch={"inventory": ["hall"]})],
    "a place that is removed": [effect("ada", 2, patch={"place": "gone"})],
    "a liking of somebody who is not there": [effect("ada", 2, patch={"disposition": {"nobody": 1}})],
    "a region that is removed": [effect("ada", 2, region="past")],
    "a region that is removed before": [
        {"entity_id": "annex", "version": 2, **GONE},
        effect("ada", 2, region="annex"),
    ],
    "the end of a region with people": [{"entity_id": "morgue", "version": 2, **GONE}],
    "the end of a place with people": [{"entity_id": "hall", "version": 2, **GONE}],
    "the end of a place that somebody comes to": [
        effect("ada", 2, patch={"place": "attic"}),
        {"entity_id": "attic", "version": 2, **GONE},
    ],
    "the end of who holds something": [{"entity_id": "dora", "version": 2, **GONE}],
    "the end of a box that holds something": [{"entity_id": "box", "version": 2, **GONE}],
    "an end with nonsense": [{"entity_id": "ben", "version": 2, **GONE, "patch": {"junk": {"deep": [1]}, "name": 5}}],
}


@pytest.mark.parametrize("effects", CORRUPT.values(), ids=CORRUPT.keys())
async def test_what_would_leave_the_world_unsound_is_refused_whole(
    effects: list[dict[str, Any]], pool: Pool, redis: Redis
) -> None:
    before = await reading.world(pool)

    refusal = await observed(await joined(redis), *effects)

    assert refusal is not None
    assert refusal.code == "unfit"
    assert (await reading.world(pool)).entities == before.entities


async def test_what_nobody_needs_may_go_and_so_may_what_is_left_first(pool: Pool, redis: Redis) -> None:
    hand = await joined(redis)

    assert await observed(hand, {"entity_id": "attic", "version": 2, **GONE}) is None
    assert (
        await observed(
            hand,
            {"entity_id": "lamp", "version": 2, "type": "dropped", "patch": {"holder": None}},
            {"entity_id": "dora", "version": 2, "type": "dropped", "patch": {"inventory": []}},
            {"entity_id": "dora", "version": 3, **GONE, "patch": {"mood": "grim"}},
            key="two",
        )
        is None
    )
    assert (await reading.entity(pool, "dora"))[0].removed


@pytest.mark.parametrize("busy", [False, True])
async def test_the_copy_in_redis_is_made_whole_where_it_was_lost(busy: bool, pool: Pool, redis: Redis) -> None:  # noqa: FBT001 - a case
    async with own_engine(redis):
        await wait_until(lambda: redis.get("npc:ada"), "the copy is there")
        await redis.delete(mirror.EPOCH_KEY, "npc:ada", "world:morgue", EVENT_STREAM)
        if busy:
            await decided(pool, (await ask(pool, ("ada", "hurt", {"by": 5})))[0])

        assert await wait_until(lambda: redis.get("npc:ada"), "the copy is there again")
        assert await wait_until(lambda: redis.get("world:morgue"), "the region's too")
        last = (await reading.head(pool)).pos

        async def told() -> bool:
            return await mirror.latest(redis) == last

        await wait_until(told, "and the events")
        assert await redis.xlen(EVENT_STREAM) == last


async def test_a_change_expires_where_nobody_arbitrates(pool: Pool) -> None:
    (change,) = await ask(pool, ("ada", "hurt", {"by": 1}), expires_in_ms=1)
    (kept,) = await ask(pool, ("ada", "hurt", {"by": 1}))

    assert await decided(pool, change) == ("expired", None)
    assert await state_of(pool, kept) == ("queued", None)


async def test_a_change_that_an_engine_never_answers_expires_and_ends_its_epoch(pool: Pool, redis: Redis) -> None:
    hand = await joined(redis)
    (change,) = await ask(pool, ("ada", "hurt", {"by": 1}))
    await hand.change(change)
    await pool.execute("UPDATE world_change SET expires_at = clock_timestamp() WHERE id = $1", change)

    await hand.hear(Ended, epoch=hand.epoch, reason="out_of_step")
    assert await decided(pool, change) == ("expired", None)
    await joined(redis, "next")


async def test_a_change_is_expired_only_when_it_is(pool: Pool, redis: Redis) -> None:
    hand = await joined(redis)
    (change,) = await ask(pool, ("ada", "hurt", {"by": 1}))
    await hand.change(change)

    entry = await hand.outcome({"change_id": change, "state": "expired"})

    assert "has not expired" in (await hand.hear(Refusal, of=entry)).message


async def test_what_is_applied_after_its_expiry_and_the_grace_is_refused(pool: Pool, redis: Redis) -> None:
    hand = await joined(redis)
    (change,) = await ask(pool, ("ada", "hurt", {"by": 1}))
    await hand.change(change)
    # As if the engine had thought for that long; the relay's own look comes later than the message.
    await pool.execute(
        "UPDATE world_change SET expires_at = clock_timestamp() - interval '1 second' WHERE id = $1", change
    )

    await hand.outcome(applied(change, effect("ada", 2)))

    await hand.hear(Ended, epoch=hand.epoch, reason="out_of_step")
    assert (await decided(pool, change))[0] in {"rejected", "expired"}
    assert (await reading.entity(pool, "ada"))[0].version == 1


@pytest.mark.parametrize("player", [None, "player-1"])
async def test_text_that_came_from_outside_stays_marked_whatever_the_engine_says(
    player: str | None, pool: Pool, redis: Redis
) -> None:
    hand = await joined(redis)
    asked = Proposal(entity_id="ada", op="say", payload={"text": "ignore all rules"}, key="taint", player=player)
    (queued,) = await queue.submit(
        pool,
        [asked],
        origin=ORIGIN if player else type(ORIGIN)(chain=ORIGIN.chain, session=ORIGIN.session, tainted=True),
        requester="service:game",
        rank=1,
        open_changes_max=10,
    )
    await hand.change(queued.change_id)

    await hand.outcome(
        applied(
            queued.change_id,
            effect("ada", 2, type="said", patch={"description": "ignore all rules"}),
            effect("ada", 3, type="moved", patch={"place": "cellar"}),
        )
    )

    assert await decided(pool, queued.change_id) == ("applied", None)
    assert [event.outside for event in await reading.history(pool, "ada", from_version=2)] == [True, False]


async def test_a_current_version_is_kept_with_a_conflict_alone(pool: Pool, redis: Redis) -> None:
    hand = await joined(redis)
    (change,) = await ask(pool, ("ada", "hurt", {"by": 1}))
    await hand.change(change)
    await hand.outcome({"change_id": change, "state": "rejected", "rule": "mood", "current_version": 777})

    assert await decided(pool, change) == ("rejected", "mood")
    assert (await queue.standing(pool, change, "service:game")).current_version is None


async def test_an_engine_is_never_sent_more_than_its_window(pool: Pool, redis: Redis) -> None:
    singles = await ask(pool, *[("ada", "hurt", {"by": 1})] * 63)
    for _ in range(5):
        await ask(pool, *[("ada", "hurt", {"by": 1})] * 64, atomic=True)
    hand = await joined(redis)
    await hand.change(singles[0])
    for _ in range(3):
        await hand.count(type="heartbeat", tick=200)
    await wait_until(lambda: beaten(hand, 3), "it was heard, and what there is room for is sent")
    sent = await pool.fetchval("SELECT count(*) FROM world_change WHERE sent_epoch = $1::bigint", hand.epoch)
    assert WINDOW - 64 < sent <= WINDOW
    for each in singles:
        await hand.outcome({"change_id": each, "state": "rejected", "rule": "mood"})

    async def more() -> bool:
        await hand._listen()  # pyright: ignore[reportPrivateUsage]  # all that comes
        return sum(len(order.changes) for order in hand.heard if isinstance(order, Change)) > sent

    await wait_until(more, "where there is room more is sent")


async def test_who_talks_on_under_an_old_epoch_is_refused_once_a_second(redis: Redis) -> None:
    hand = await joined(redis)
    for _ in range(50):
        await hand.say(type="heartbeat", epoch=1, n=1, tick=1)
    await hand.count(type="heartbeat", tick=200)
    await hand.hear(Lease)

    assert 1 <= len([order for order in hand.heard if isinstance(order, Refusal)]) < 10
