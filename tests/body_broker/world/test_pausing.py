"""Owns the proof of the pause: nothing is decided meanwhile, by our engine or another one, and nothing that waits is lost."""

from __future__ import annotations

import pytest

from body_broker.background import running
from body_broker.errors import Conflict
from body_broker.storage.postgres import Pool
from body_broker.storage.redis import Redis
from body_broker.world import epochs, pausing, queue, reading
from body_broker.world.engine.messages import Ended, Refusal, Taken
from body_broker.world.map import WorldMap
from body_broker.world.model import Effect
from body_broker.world.recorder import append, claim, record
from tests.body_broker.world.conftest import Bench, Engine
from tests.body_broker.world.engine.hand import Hand, applied, effect
from tests.body_broker.world.engine.scene import ask, decided, is_sound, load, own_engine, relay_of, state_of
from tests.body_broker.world.scene import proposal
from tests.waiting import wait_until


async def pause(pool: Pool, by: str = "person:anna") -> epochs.EngineStatus:
    async with pool.acquire() as connection, connection.transaction():
        return await pausing.pause(connection, by=by)


async def resume(pool: Pool) -> epochs.EngineStatus:
    async with pool.acquire() as connection, connection.transaction():
        return await pausing.resume(connection)


async def test_a_paused_engine_decides_nothing_and_goes_on_in_order(bench: Bench, engine: Engine) -> None:
    async with engine(lease_s=0.6) as ours:
        await wait_until(lambda: ours.epoch, "it arbitrates")
        paused = await pause(bench.pool)
        assert (paused.paused_by, paused.live, paused.engine) == ("person:anna", False, None)
        taken = await bench.submit(
            proposal("mara", "set", {"fields": {"mood": "afraid"}}, expect_version=1),
            proposal("mara", "set", {"fields": {"mood": "calm"}}, expect_version=2),
        )
        await wait_until(lambda: ours.epoch is None, "it has heard that its epoch is over")
        assert await bench.states(taken) == ["queued", "queued"]

        await resume(bench.pool)
        await bench.decided()
        assert await bench.states(taken) == ["applied", "applied"], "the second one on what the first one left"
        assert (await epochs.status(bench.pool)).paused_at is None
    await bench.require_whole()


async def test_nobody_gets_an_epoch_and_no_decision_of_before_is_recorded(bench: Bench) -> None:
    held = await epochs.acquire(bench.pool, name="before", lease_s=60)
    assert held is not None
    await bench.submit(proposal("mara", "set", {"fields": {"mood": "afraid"}}, expect_version=1))
    await pause(bench.pool)

    assert await epochs.acquire(bench.pool, name="other", lease_s=60) is None
    assert await epochs.free_in_s(bench.pool) >= 1, "who asks again does so after a while"
    async with bench.pool.acquire() as connection, connection.transaction():
        claimed = await claim(connection)
        with pytest.raises(epochs.Superseded):
            await record(connection, epoch=held.number, tick=9, changes=claimed.changes, verdicts=[], entities={})
    with pytest.raises(epochs.Superseded):
        await epochs.renew(bench.pool, held.number, 60)
    await resume(bench.pool)
    assert await epochs.acquire(bench.pool, name="other", lease_s=60) is not None


async def test_what_expires_during_a_pause_ends_as_it_would(bench: Bench, engine: Engine) -> None:
    await pause(bench.pool)
    async with engine(lease_s=0.3):
        taken = await bench.submit(
            proposal("mara", "set", {"fields": {"mood": "afraid"}}, expect_version=1, expires_in_ms=1)
        )
        await bench.decided()
        assert await bench.states(taken) == ["expired"]
    assert await bench.version("mara") == 1


async def test_what_waits_during_a_pause_can_be_taken_back(bench: Bench) -> None:
    (taken,) = await bench.submit(proposal("mara", "set", {"fields": {"mood": "afraid"}}, expect_version=1))
    await bench.pool.execute("UPDATE world_change SET sent_epoch = 7")  # an engine outside was told of it
    with pytest.raises(Conflict, match="has this change already"):
        await queue.cancel(bench.pool, taken.change_id, "service:game")
    await pause(bench.pool)
    assert (await queue.cancel(bench.pool, taken.change_id, "service:game")).state == "cancelled"


async def test_an_operator_writes_the_world_of_a_paused_engine(bench: Bench) -> None:
    await pause(bench.pool)
    before, _ = await reading.entity(bench.pool, "mara")
    async with bench.pool.acquire() as connection, connection.transaction():
        held = await epochs.begin_anew(connection)
        await append(
            connection, [Effect(entity_id="mara", type="loaded", patch={"mood": "wry"})], {"mara": before}, held
        )
    assert await bench.version("mara") == 2
    assert (await epochs.status(bench.pool)).paused_by == "person:anna"


async def test_a_pause_of_what_is_paused_and_a_resumption_of_what_is_not_are_conflicts(bench: Bench) -> None:
    with pytest.raises(Conflict, match="not paused"):
        await resume(bench.pool)
    await pause(bench.pool)
    with pytest.raises(Conflict, match=r"paused already, since .* by person:anna"):
        await pause(bench.pool, by="person:ben")
    assert (await epochs.status(bench.pool)).paused_by == "person:anna"


async def test_readers_say_since_when_it_is_paused_and_by_whom(bench: Bench, world: WorldMap) -> None:
    assert world.reading().paused_at is None
    paused = await pause(bench.pool)
    await wait_until(lambda: world.reading().paused_at, "the map has heard")
    assert (world.reading().paused_at, world.reading().paused_by) == (paused.paused_at, "person:anna")
    assert (await reading.head(bench.pool)).paused_by == "person:anna"
    await resume(bench.pool)
    await wait_until(lambda: world.reading().paused_at is None, "the map has heard that it goes on")


async def test_an_engine_outside_hears_that_its_epoch_is_over_and_its_late_outcome_is_not_recorded(
    pool: Pool, redis: Redis, database_url: str
) -> None:
    await load(pool)
    async with running(relay_of(pool, redis, database_url).run(), name="relay"):
        hand = Hand(redis)
        first = await hand.join()
        (before,) = await ask(pool, ("ada", "hurt", {"by": 5}))
        await hand.change(before)
        await pause(pool)
        (meanwhile,) = await ask(pool, ("ada", "hurt", {"by": 7}))
        assert (await hand.hear(Ended)).reason == "reload"

        late = await hand.outcome(applied(before, effect("ada", 2)))
        refused = await hand.hear(Refusal)
        assert (refused.of, refused.code) == (late, "old_epoch")
        assert (await hand.greet(Taken)).retry_ms >= 1_000, "it is not asked to say hello again and again"
        assert [await state_of(pool, each) for each in (before, meanwhile)] == [("queued", None)] * 2

        await resume(pool)
        begun = await hand.join()
        assert begun.epoch > first.epoch
        older, newer = await hand.change(before), await hand.change(meanwhile)
        assert older.n < newer.n, "in the order in which they were asked for"
    await is_sound(pool)


async def test_an_engine_outside_goes_on_by_itself_after_a_pause(pool: Pool, redis: Redis, database_url: str) -> None:
    await load(pool)
    async with running(relay_of(pool, redis, database_url).run(), name="relay"), own_engine(redis):
        await pause(pool)
        changes = await ask(pool, ("ada", "hurt", {"by": 5}), ("ada", "hurt", {"by": 6}))
        await resume(pool)
        assert [await decided(pool, each) for each in changes] == [("applied", None)] * 2
        ada, _ = await reading.entity(pool, "ada")
        assert ada.data["health"] == 69
    await is_sound(pool)
