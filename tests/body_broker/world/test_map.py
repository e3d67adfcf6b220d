"""Owns the proof of the map: as the record is, soon, whatever is lost on the way, and honest about its age."""

from __future__ import annotations

import asyncio

import asyncpg
import pytest

from body_broker.errors import Unavailable
from body_broker.storage.redis import Redis
from body_broker.world import epochs, queue, reading, recorder
from body_broker.world.forms import encode, event_body
from body_broker.world.map import WorldMap
from body_broker.world.mirror import DECIDED_STREAM, publish
from body_broker.world.model import EVENT_STREAM, Effect, Event
from tests.body_broker.world.conftest import Bench, Engine
from tests.body_broker.world.scene import entities, proposal
from tests.waiting import wait_until


async def append(pool: asyncpg.Pool, *effects: Effect) -> list[Event]:
    """What an operator writes, of which nobody is told."""
    known = entities()
    async with pool.acquire() as connection, connection.transaction():
        return await recorder.append(connection, effects, known, await epochs.begin_anew(connection))


async def ignore(_event: Event) -> None:
    """Nobody listens."""


async def test_the_map_holds_the_world_as_it_was_found(world: WorldMap) -> None:
    assert world.ids() == entities().keys()
    assert world.entities["mara"].data["name"] == "Mara"
    assert world.names()["ledger"] == "The ledger"
    assert world.names()["bell-rung"] == "bell-rung", "what has no name is called by its id"
    assert world.get("nobody") is None
    assert [each.id for each in world.in_region("harbour", "npc")] == ["ben", "mara", "olga"]
    assert [each.id for each in world.in_region("hills")] == ["chapel"]
    assert [each.id for each in world.of_kind("region")] == ["harbour", "hills"]


async def test_what_is_near_comes_by_its_distance_within_the_region_alone(world: WorldMap) -> None:
    near = world.near("harbour", [0, 0], 2.5)

    assert [(distance, each.id) for distance, each in near] == [(0.0, "morgue"), (1.0, "mara"), (2.0, "anna")]
    assert [each.id for _, each in world.near("harbour", [0, 0], 100, "npc")] == ["mara", "ben"]
    assert world.near("hills", [0, 0], 1_000) == []


async def test_the_map_follows_the_engine_and_tells_of_each_event_once_in_order(
    bench: Bench, engine: Engine, world: WorldMap, heard: list[Event]
) -> None:
    start = world.reading().pos
    async with engine():
        (taken,) = await bench.submit(proposal("ben", "move", {"to": "chapel"}, expect_version=1))
        await bench.submit(*(proposal("mara", "heal", {"by": n}) for n in range(1, 21)))
        standing = await queue.wait(bench.pool, world, taken.change_id, "service:game", timeout_s=60)
        assert standing.state == "applied"
        assert [each.id for each in world.in_region("hills")] == ["ben", "chapel"], "who waited reads what was done"
        await wait_until(lambda: (mara := world.get("mara")) and mara.version == 21, "the map has it all")

    assert "ben" not in {each.id for each in world.in_region("harbour")}
    assert [event.pos for event in heard] == list(range(start + 1, start + 22))
    assert [event.type for event in heard if event.change_id == taken.change_id] == ["moved"]


async def test_what_is_removed_is_gone_from_every_list_and_still_says_so_itself(
    bench: Bench, engine: Engine, world: WorldMap
) -> None:
    async with engine():
        (taken,) = await bench.submit(proposal("ben", "remove", {}, expect_version=1))
        await queue.wait(bench.pool, world, taken.change_id, "service:game", timeout_s=60)

    ben = world.get("ben")
    assert ben is not None
    assert ben.removed
    assert "ben" not in world.ids() | world.names().keys() | {each.id for each in world.of_kind("npc")}
    assert "ben" not in {each.id for each in world.in_region("harbour")}


async def test_a_change_that_is_refused_wakes_who_waits_for_it(bench: Bench, engine: Engine, world: WorldMap) -> None:
    async with engine():
        (taken,) = await bench.submit(proposal("olga", "say", {"text": "…"}))
        standing = await queue.wait(bench.pool, world, taken.change_id, "service:game", timeout_s=60)
    (other,) = await bench.submit(proposal("olga", "heal", {"by": 1}))  # nobody decides it before it is waited for
    with world.deciding("sch_later") as decided, world.deciding(other.change_id) as told:
        async with engine():
            await wait_until(told.is_set, "the decision is heard of, though there is no event")
        assert not decided.is_set()

    assert (standing.state, standing.rule) == ("rejected", "dead_actor")


async def test_who_waits_for_what_nobody_decides_gets_how_it_stands(bench: Bench, world: WorldMap) -> None:
    (taken,) = await bench.submit(proposal("mara", "hurt", {"by": 1}))

    assert (await queue.wait(bench.pool, world, taken.change_id, "service:game", timeout_s=0.05)).state == "queued"


async def test_events_that_nobody_told_of_are_found_in_the_record(
    bench: Bench, world: WorldMap, heard: list[Event]
) -> None:
    written = await append(bench.pool, Effect(entity_id="mara", type="set", patch={"mood": "afraid"}))

    await wait_until(lambda: heard, "the map looked by itself")
    assert heard == [*written]
    assert world.entities["mara"].data["mood"] == "afraid"


async def test_a_hole_in_the_stream_is_filled_from_the_record(
    bench: Bench, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("body_broker.world.map._CHECK_EVERY_S", 3_600.0)  # so that nobody else looks
    heard: list[Event] = []

    async def note(event: Event) -> None:
        heard.append(event)

    world = WorldMap(bench.pool, redis, note)
    async with world.following():
        events = await append(
            bench.pool,
            Effect(entity_id="mara", type="set", patch={"mood": "afraid"}),
            Effect(entity_id="ben", type="set", patch={"mood": "glad"}),
        )
        await redis.set("world-epoch", events[0].epoch)
        assert await publish(redis, events[1:], {**entities()}, epoch=events[0].epoch)

        await wait_until(lambda: len(heard) == 2, "both are heard of")
    assert [event.pos for event in heard] == [event.pos for event in events]
    assert world.entities["mara"].data["mood"] == "afraid"


async def test_an_entry_that_is_no_event_does_not_stop_the_map(
    bench: Bench, redis: Redis, engine: Engine, world: WorldMap
) -> None:
    await redis.xadd(EVENT_STREAM, {"event": b"{}"}, id="18-1")
    await redis.xadd(EVENT_STREAM, {"other": b"?"}, id="18-2")

    async with engine():
        (taken,) = await bench.submit(proposal("mara", "heal", {"by": 1}))
        await queue.wait(bench.pool, world, taken.change_id, "service:game", timeout_s=60)
        await wait_until(lambda: world.entities["mara"].version == 2, "the map goes on")


async def test_a_record_that_went_back_is_read_anew(bench: Bench, world: WorldMap) -> None:
    await append(bench.pool, Effect(entity_id="mara", type="set", patch={"mood": "afraid"}))
    await wait_until(lambda: world.entities["mara"].version == 2, "the map has it")
    async with bench.pool.acquire() as connection, connection.transaction():  # as a restore from a backup leaves it
        await connection.execute(
            "DELETE FROM world_event WHERE entity_id = 'mara' AND version = 2;"
            "UPDATE world_entity SET version = 1, data = data || '{\"mood\": \"calm\"}' WHERE id = 'mara';"
            "UPDATE world_engine SET last_pos = last_pos - 1"
        )

    await wait_until(lambda: world.entities["mara"].version == 1, "the map is what the record is")


async def test_a_listener_that_fails_does_not_stop_the_map(bench: Bench, redis: Redis) -> None:
    async def fail(_event: Event) -> None:
        raise RuntimeError

    found = WorldMap(bench.pool, redis, fail)
    async with found.following():
        await append(bench.pool, Effect(entity_id="mara", type="set", patch={"mood": "afraid"}))
        await wait_until(lambda: found.entities["mara"].version == 2, "the map has it")


async def test_a_reading_says_how_long_ago_it_was_known_to_be_all(
    bench: Bench, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr("body_broker.world.map.time.monotonic", lambda: now[0])
    found = WorldMap(bench.pool, redis, ignore)
    with pytest.raises(Unavailable):
        found.reading()

    await found.ensure()
    now[0] += 5
    reading = found.reading()
    assert (reading.pos, reading.age_ms, reading.source) == (len(entities()), 5_000, "map")
    await found.ensure()
    assert found.reading().age_ms == 5_000, "it is loaded once"
    await found.check()
    assert found.reading().age_ms == 0


async def test_what_is_read_anew_is_read_to_the_position_that_is_asked_for(bench: Bench, redis: Redis) -> None:
    found = WorldMap(bench.pool, redis, ignore)
    await found.load()
    events = await append(bench.pool, Effect(entity_id="mara", type="set", patch={"mood": "afraid"}))

    await found.reach(events[0].pos)

    assert found.entities["mara"].data["mood"] == "afraid"


async def test_entries_that_are_of_no_event_do_not_stop_the_map(
    bench: Bench, redis: Redis, engine: Engine, world: WorldMap
) -> None:
    (first,) = await reading.events(bench.pool, limit=1)
    await redis.xadd(EVENT_STREAM, {"event": encode({**event_body(first), "pos": "19"})}, id="18-1")
    await redis.xadd(
        EVENT_STREAM, {"event": encode({**event_body(first), "pos": 19, "patch": 5, "version": "x"})}, id="18-2"
    )
    await redis.xadd(DECIDED_STREAM, {"what": b"\xff"})

    async with engine():
        (taken,) = await bench.submit(proposal("mara", "heal", {"by": 1}))
        await queue.wait(bench.pool, world, taken.change_id, "service:game", timeout_s=60)
        await wait_until(lambda: world.entities["mara"].version == 2, "the map goes on")
    # Beyond the record's end: never used, and what comes after is.
    await redis.xadd(EVENT_STREAM, {"event": encode({**event_body(first), "pos": 99, "version": 3})}, id="99-0")
    await append(bench.pool, Effect(entity_id="ben", type="set", patch={"mood": "afraid"}))
    await wait_until(lambda: world.entities["ben"].version == 2, "the map hears the record still")
    assert world.entities[first.entity_id].version == 1
    assert [task for task in asyncio.all_tasks() if task.get_name() == "world-tail"], "it follows the stream still"


async def restored(bench: Bench, to_pos: int) -> None:
    """The database as a restore from a backup of that position leaves it, with mara and her epoch as they were."""
    async with bench.pool.acquire() as connection, connection.transaction():
        await connection.execute("DELETE FROM world_change")
        await connection.execute("DELETE FROM world_event WHERE pos > $1", to_pos)
        await connection.execute(
            "UPDATE world_entity SET version = 1, data = data || '{\"health\": 100}' WHERE id = 'mara'"
        )
        await connection.execute("UPDATE world_engine SET last_pos = $1, epoch = 1, lease_until = NULL", to_pos)


async def test_after_a_restore_nothing_of_the_other_record_comes_back_from_the_stream(
    bench: Bench, engine: Engine, world: WorldMap, heard: list[Event], redis: Redis
) -> None:
    start = world.reading().pos
    async with engine():
        await bench.submit(*(proposal("mara", "hurt", {"by": n}) for n in range(1, 6)))
        await wait_until(lambda: world.entities["mara"].version == 6, "the map has what the stream told")
    await restored(bench, start)

    await wait_until(lambda: world.reading().pos == start, "the map is what the record is")
    for each in ("sch_1", "sch_2"):  # once the second is heard, the stream was looked at from there on
        with world.deciding(each) as decided:
            await redis.xadd(DECIDED_STREAM, {"change": each})
            await wait_until(decided.is_set, "the map follows the stream")
    await append(bench.pool, Effect(entity_id="ben", type="set", patch={"mood": "afraid"}))
    await wait_until(lambda: world.entities["ben"].version == 2, "the map goes on")
    assert world.entities["mara"].version == 1
    assert world.entities["mara"].data["health"] == 100
    assert [each.entity_id for each in heard] == [*["mara"] * 5, "ben"]


async def test_a_map_that_begins_after_a_restore_uses_nothing_of_the_other_record(
    bench: Bench, engine: Engine, redis: Redis
) -> None:
    start = len(entities())
    async with engine():
        await bench.submit(*(proposal("mara", "hurt", {"by": n}) for n in range(1, 6)))
        await bench.decided()
    await restored(bench, start)

    heard: list[str] = []

    async def note(event: Event) -> None:
        heard.append(event.entity_id)

    found = WorldMap(bench.pool, redis, note)
    async with found.following():
        await append(bench.pool, Effect(entity_id="ben", type="set", patch={"mood": "afraid"}))
        await wait_until(lambda: found.entities["ben"].version == 2, "the map goes on")
        assert found.entities["mara"].version == 1
        assert heard == ["ben"]


@pytest.mark.parametrize("more", [4, 5, 6])
async def test_a_restored_record_that_has_gone_on_since_is_read_whole(bench: Bench, redis: Redis, more: int) -> None:
    start = len(entities())
    found = WorldMap(bench.pool, redis, ignore)
    await append(bench.pool, *(Effect(entity_id="mara", type="hurt", patch={"health": n}) for n in range(5)))
    await found.load()
    await restored(bench, start)
    await append(bench.pool, *(Effect(entity_id="ben", type="hurt", patch={"health": n}) for n in range(more)))

    await found.check()

    assert found.reading().pos == start + more
    assert {each: found.entities[each].version for each in ("mara", "ben")} == {"mara": 1, "ben": more + 1}
    assert found.entities["ben"].data["health"] == more - 1
