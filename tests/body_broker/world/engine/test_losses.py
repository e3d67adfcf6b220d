"""What is lost on the way, an engine, a relay, a stream, a pause: no acknowledged change is lost, none is applied twice."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from body_broker.background import running
from body_broker.storage.postgres import Pool
from body_broker.storage.redis import Redis
from body_broker.world import epochs, reading
from body_broker.world.engine.messages import READ_KEY, TO_ENGINE, Change, Ended, Recorded, Refusal
from tests.body_broker.world.engine.hand import Hand, applied, effect
from tests.body_broker.world.engine.outside import outside
from tests.body_broker.world.engine.scene import ask, decided, is_sound, load, own_engine, relay_of
from tests.waiting import wait_until

LEASE_S = 3.0


@pytest.fixture(autouse=True)
async def world(pool: Pool) -> AsyncIterator[None]:
    """A world; whatever a test does, the record is sound afterwards."""
    await load(pool)
    yield
    await is_sound(pool)


async def hurts(pool: Pool, count: int) -> list[str]:
    """Changes of one entity, each acknowledged."""
    return [(await ask(pool, ("ada", "hurt", {"by": 1})))[0] for _ in range(count)]


async def all_applied_once(pool: Pool, changes: list[str], health: int) -> None:
    assert {each: await decided(pool, each) for each in changes} == dict.fromkeys(changes, ("applied", None))
    ada, _ = await reading.entity(pool, "ada")
    assert ada.data["health"] == health


async def engine_named(pool: Pool, name: str) -> None:
    async def holds() -> bool:
        status = await epochs.status(pool)
        return status.live and status.engine == name

    await wait_until(holds, f"{name} holds the world", timeout_s=90)


async def test_an_engine_of_strangers_arbitrates_and_its_players_walk(
    pool: Pool, redis: Redis, redis_url: str, database_url: str
) -> None:
    async with running(relay_of(pool, redis, database_url).run(), name="relay"), outside(redis_url) as engine:
        await all_applied_once(pool, await hurts(pool, 3), 77)
        await engine.walk("ada", "cellar")

        async def moved() -> bool:
            return (await reading.entity(pool, "ada"))[0].data["place"] == "cellar"

        await wait_until(moved, "the step is recorded")
        (latest,) = await reading.history(pool, "ada", from_version=5)
        assert latest.type == "moved"


async def test_an_engine_that_is_killed_with_changes_in_flight_loses_none(
    pool: Pool, redis: Redis, redis_url: str, database_url: str
) -> None:
    async with running(relay_of(pool, redis, database_url, LEASE_S).run(), name="relay"):
        async with outside(redis_url) as engine:
            await engine_named(pool, "counterpart")
            engine.pause()
            changes = await hurts(pool, 5)
            await engine.kill()
        async with outside(redis_url):
            await all_applied_once(pool, changes, 75)


async def test_a_paused_engine_that_wakes_up_writes_nothing(
    pool: Pool, redis: Redis, redis_url: str, database_url: str
) -> None:
    async with (
        running(relay_of(pool, redis, database_url, LEASE_S).run(), name="relay"),
        outside(redis_url, "sleeper") as sleeper,
    ):
        await engine_named(pool, "sleeper")
        old = (await epochs.status(pool)).epoch
        changes = await hurts(pool, 1)
        await all_applied_once(pool, changes, 79)
        sleeper.pause()
        # What the hub sends now is read when it wakes: it will decide it, too late.
        late = await hurts(pool, 3)
        async with own_engine(redis, "heir"):
            await all_applied_once(pool, late, 76)
            await sleeper.walk("ada", "cellar")
            watching = Hand(redis)
            sleeper.wake()

            refusal = await watching.hear(Refusal, code="old_epoch")
            assert refusal.epoch == old
            events = await reading.history(pool, "ada", from_version=3)
            assert [event.epoch > old for event in events] == [True] * 3
            assert (await epochs.status(pool)).engine == "heir"
            await all_applied_once(pool, await hurts(pool, 1), 75)


async def test_of_two_engines_one_writes(pool: Pool, redis: Redis, database_url: str) -> None:
    async with (
        running(relay_of(pool, redis, database_url).run(), name="relay"),
        own_engine(redis, "first") as (_, first),
    ):
        second = Hand(redis, "second")
        await second.say(type="hello", engine="second", instance="1")
        await all_applied_once(pool, await hurts(pool, 5), 75)
        second.epoch = (await epochs.status(pool)).epoch - 1
        entry = await second.outcome(applied("sch_x", effect("ada", 7)))

        await second.hear(Refusal, of=entry, code="old_epoch")
        assert first.entities["ada"].version == 6


async def test_a_relay_that_ends_is_followed_by_another_under_the_same_epoch(
    pool: Pool, redis: Redis, database_url: str
) -> None:
    hand = Hand(redis)
    async with running(relay_of(pool, redis, database_url).run(), name="relay"):
        await hand.join()
        (change,) = await hurts(pool, 1)
        await hand.change(change)
    place = len(hand.heard)
    async with running(relay_of(pool, redis, database_url).run(), name="relay"):
        again = await hand.hear(
            Change, after=place
        )  # by the other relay, which cannot know whether the first had sent it
        assert (again.epoch, again.changes[0].change_id) == (hand.epoch, change)
        await hand.outcome(applied(change, effect("ada", 2, patch={"health": 79})))
        await hand.outcome(applied(change, effect("ada", 2, patch={"health": 79})))
        await hand.hear(Recorded, upto=2)
        await all_applied_once(pool, [change], 79)
        numbers = [getattr(order, "n", None) for order in hand.heard]
        assert numbers == list(range(1, len(numbers) + 1))


async def test_reports_that_are_read_again_are_recorded_once(pool: Pool, redis: Redis, database_url: str) -> None:
    # As after a kill between the record and the note of how far the reports were read.
    async with running(relay_of(pool, redis, database_url).run(), name="relay"):
        hand = Hand(redis)
        await hand.join()
        await hand.count(type="heartbeat", tick=200)
        noted = await wait_until(lambda: redis.get(READ_KEY), "it notes how far it has read")
        (change,) = await hurts(pool, 1)
        await hand.change(change)
        await hand.outcome(applied(change, effect("ada", 2, patch={"health": 79})))
        await hand.count(type="observation", tick=201, key="one", effects=[effect("ben", 2, patch={"mood": "grim"})])
        await hand.hear(Recorded, upto=3)
    await redis.set(READ_KEY, noted or b"")
    async with running(relay_of(pool, redis, database_url).run(), name="relay"):
        place = len(hand.heard)
        await hand.count(type="heartbeat", tick=202)
        await hand.hear(Recorded, after=place, upto=4)
    await all_applied_once(pool, [change], 79)
    assert (await reading.entity(pool, "ben"))[0].version == 2


@pytest.mark.parametrize("what", ["everything", "the stream to the engine", "a report"])
async def test_streams_that_are_lost_lose_no_change(what: str, pool: Pool, redis: Redis, database_url: str) -> None:
    async with (
        running(relay_of(pool, redis, database_url, LEASE_S).run(), name="relay"),
        own_engine(redis) as (client, _),
    ):
        before = await hurts(pool, 3)
        await all_applied_once(pool, before, 77)
        match what:
            case "everything":
                await redis.flushall()  # pyright: ignore[reportUnknownMemberType]  # redis-py's hints
            case "the stream to the engine":
                await redis.delete(TO_ENGINE)
            case _:
                session = client._session  # pyright: ignore[reportPrivateUsage]  # a message that only it knows of
                assert session is not None
                session.sent += 1
        await all_applied_once(pool, [*before, *await hurts(pool, 3)], 74)


async def test_a_hello_of_long_ago_is_not_answered(pool: Pool, redis: Redis, database_url: str) -> None:
    await redis.xadd("engine-report", {"json": '{"v":1,"type":"hello","engine":"ghost","instance":"1"}'}, id="5-1")
    async with running(relay_of(pool, redis, database_url).run(), name="relay"), own_engine(redis):
        assert (await epochs.status(pool)).engine == "ours"


async def test_changes_wait_where_nobody_arbitrates(pool: Pool, redis: Redis, database_url: str) -> None:
    changes = await hurts(pool, 2)
    async with running(relay_of(pool, redis, database_url, 9.0).run(), name="relay"):  # the next one waits for its end
        hand = Hand(redis)
        await hand.join()
        await hand.change(changes[1])
        await hand.say(type="bye", epoch=hand.epoch, n=5)
        await hand.hear(Ended, reason="lost")
        async with own_engine(redis):
            await all_applied_once(pool, changes, 78)
