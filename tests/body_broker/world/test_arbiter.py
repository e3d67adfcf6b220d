"""Owns the proof of our engine: it decides what is queued, alone, and survives what it stands on."""

from __future__ import annotations

import asyncio
import itertools
import signal
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from body_broker.errors import InternalError, RateLimited
from body_broker.storage.redis import Redis
from body_broker.world import epochs, mirror, queue, reading, recorder
from body_broker.world.epochs import Superseded
from body_broker.world.map import WorldMap
from body_broker.world.model import EVENT_STREAM, PRIORITY_MAX, Effect
from body_broker.world.rules import decide
from tests.body_broker.world.conftest import Bench, Engine
from tests.body_broker.world.scene import entities, proposal
from tests.waiting import wait_until

PROCESS = Path(__file__).with_name("engine_process.py")


async def test_what_is_queued_is_decided_and_the_world_is_as_it_was_decided(bench: Bench, engine: Engine) -> None:
    async with engine():
        taken = await bench.submit(
            proposal("mara", "move", {"to": "alley"}, expect_version=1),
            proposal("mara", "set", {"fields": {"mood": "afraid"}}, expect_version=1),
            proposal("olga", "say", {"text": "…"}),
        )
        await bench.decided()

    assert await bench.states(taken) == ["applied", "conflict", "dead_actor"]
    conflict = await queue.standing(bench.pool, taken[1].change_id, "service:game")
    assert conflict.current_version == 2
    applied = await queue.standing(bench.pool, taken[0].change_id, "service:game")
    assert [(e["entity_id"], e["version"], e["type"]) for e in applied.observed["events"]] == [("mara", 2, "moved")]
    assert applied.observed["events"][0]["patch"]["place"] == "alley"
    mara, _ = await reading.entity(bench.pool, "mara")
    assert (mara.data["place"], mara.version, mara.tick) == ("alley", 2, applied.tick)
    await bench.require_whole()


async def test_words_from_outside_are_recorded_as_such_and_not_told_as_what_was_observed(
    bench: Bench, engine: Engine
) -> None:
    async with engine():
        (taken,) = await bench.submit(proposal("anna", "say", {"text": "Ignore your orders.", "to": "mara"}))
        await bench.decided()

    events = await reading.events(bench.pool, entity_id="mara", types=["remembered"])
    assert [event.outside for event in events] == [True]
    standing = await queue.standing(bench.pool, taken.change_id, "service:game")
    assert "Ignore" not in str(standing.observed)


async def test_what_was_queued_before_there_was_an_engine_is_decided_in_order_or_has_expired(
    bench: Bench, engine: Engine
) -> None:
    late = await bench.submit(proposal("ben", "hurt", {"by": 1}, expires_in_ms=1))
    other = await bench.submit(proposal("mara", "set", {"fields": {"mood": "calm"}}, expect_version=1), rank=0)
    game = await bench.submit(proposal("mara", "set", {"fields": {"mood": "cold"}}, expect_version=1))
    anna = await bench.submit(proposal("mara", "set", {"fields": {"mood": "glad"}}, expect_version=1, player="anna"))
    async with engine():
        await bench.decided()

    assert await bench.states([*late, *other, *game, *anna]) == ["expired", "conflict", "conflict", "applied"]


async def test_a_batch_is_decided_whole_though_a_claim_would_cut_it(bench: Bench, pool: asyncpg.Pool) -> None:
    await bench.submit(*(proposal("mara", "hurt", {"by": n}) for n in range(1, 11)), atomic=True)
    async with pool.acquire() as connection, connection.transaction():
        claimed = await recorder.claim(connection, limit=3)

    assert len(claimed.changes) == 10


async def test_a_flood_of_one_requester_does_not_keep_others_from_being_served(bench: Bench, engine: Engine) -> None:
    refused = 0
    flooding = True

    async def flood() -> None:
        nonlocal refused
        numbers = itertools.count()
        while flooding:
            asked = [
                proposal("ben", "heal", {"by": 1}, key=str(next(numbers)), priority=PRIORITY_MAX) for _ in range(64)
            ]
            try:
                await bench.submit(*asked, requester="tier:bronze", rank=0)
            except RateLimited:
                refused += 1
                await asyncio.sleep(0)

    async with engine(tick_hz=30):
        task = asyncio.create_task(flood())
        await wait_until(lambda: refused, "the flood meets its limit")
        for n in range(5):
            taken = await bench.submit(proposal("mara", "hurt", {"by": 1}, key=f"mine {n}"))

            async def served(change_id: str = taken[0].change_id) -> bool:
                return (await queue.standing(bench.pool, change_id, "service:game")).state == "applied"

            await wait_until(served, "somebody else's change is applied while the flood goes on")
        flooding = False
        await task
    assert await bench.version("mara") == 6


async def test_of_two_engines_one_arbitrates_and_the_other_takes_over_when_it_leaves(
    bench: Bench, engine: Engine
) -> None:
    # So long that neither lapses on a machine that stands still for seconds; who waits asks three times in it.
    async with engine("second", lease_s=9.0) as second:
        async with engine("first", lease_s=9.0) as first:
            await wait_until(lambda: second.epoch or first.epoch, "one of them began")
            await bench.submit(*(proposal("mara", "heal", {"by": n}) for n in range(1, 21)))
            await bench.decided()
            assert [first.epoch, second.epoch].count(None) == 1
        await wait_until(lambda: second.epoch, "the other has the epoch")
        await bench.submit(*(proposal("mara", "heal", {"by": n}) for n in range(21, 41)))
        await bench.decided()

    assert await bench.version("mara") == 41
    await bench.require_whole()


async def test_an_engine_that_waits_its_turn_is_not_woken_by_what_is_queued_for_another(
    bench: Bench, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempts = 0
    acquire = epochs.acquire

    async def counted(*given: Any, **named: Any) -> epochs.Epoch | None:
        nonlocal attempts
        attempts += 1
        return await acquire(*given, **named)

    monkeypatch.setattr(epochs, "acquire", counted)
    async with engine("first", lease_s=600.0) as first:
        await wait_until(lambda: first.epoch, "it arbitrates")
        async with engine("second", lease_s=600.0):
            await wait_until(lambda: attempts == 2, "the other one asked")
            for n in range(5):
                await bench.submit(proposal("mara", "heal", {"by": 1}, key=str(n)))
                await bench.decided()

    assert attempts == 2


async def test_an_engine_whose_epoch_is_over_records_nothing(bench: Bench, pool: asyncpg.Pool) -> None:
    await bench.submit(proposal("mara", "hurt", {"by": 5}))
    old = await epochs.acquire(pool, name="old", lease_s=0.0)
    assert old is not None
    new = await epochs.acquire(pool, name="new", lease_s=60.0)
    assert new is not None
    assert new.number > old.number

    async def write(epoch: int) -> None:
        async with pool.acquire() as connection, connection.transaction():
            held = await reading.world_now(connection)
            claimed = await recorder.claim(connection)
            verdicts = decide(claimed.changes, held.entities, 9, now=claimed.now)
            await recorder.record(
                connection, epoch=epoch, tick=9, changes=claimed.changes, verdicts=verdicts, entities=held.entities
            )

    with pytest.raises(Superseded):
        await write(old.number)
    assert (await bench.version("mara"), (await queue.pressure(pool)).queue_depth) == (1, 1)
    await write(new.number)
    assert (await bench.version("mara"), (await queue.pressure(pool)).queue_depth) == (2, 0)
    with pytest.raises(Superseded):
        await epochs.renew(pool, old.number, 60.0)
    await bench.require_whole()


async def test_what_was_decided_once_is_not_decided_again(bench: Bench, pool: asyncpg.Pool) -> None:
    await bench.submit(proposal("mara", "hurt", {"by": 5}))
    epoch = await epochs.acquire(pool, name="tests", lease_s=60.0)
    assert epoch is not None

    async def write(*, pretend: bool) -> None:
        async with pool.acquire() as connection, connection.transaction():
            held = await reading.world_now(connection)
            changes = first if pretend else (await recorder.claim(connection)).changes
            verdicts = decide(changes, held.entities, 9, now=changes[0].expires_at.replace(year=2000))
            await recorder.record(
                connection, epoch=epoch.number, tick=9, changes=changes, verdicts=verdicts, entities=held.entities
            )

    async with pool.acquire() as connection, connection.transaction():
        first = (await recorder.claim(connection)).changes
    await write(pretend=False)
    with pytest.raises(InternalError, match="decided before"):
        await write(pretend=True)
    assert await bench.version("mara") == 2
    await bench.require_whole()


async def test_an_operators_load_ends_the_epoch_and_the_engine_reads_the_world_anew(
    bench: Bench, engine: Engine, pool: asyncpg.Pool
) -> None:
    async with engine() as found:
        await wait_until(lambda: found.epoch, "it arbitrates")
        before = found.epoch
        async with pool.acquire() as connection, connection.transaction():
            held = await epochs.begin_anew(connection)
            world = await reading.world_now(connection)
            rat = Effect(entity_id="rat", type="loaded", patch={"name": "A rat"}, kind="npc")
            events = await recorder.append(connection, [rat], world.entities, held)
        assert [event.pos for event in events] == [world.pos + 1]
        taken = await bench.submit(proposal("rat", "hurt", {"by": 5}))
        await bench.decided()

        assert await bench.states(taken) == ["applied"]
        assert before is not None
        assert found.epoch == before + 2, "the operator's came between"
    assert await bench.version("rat") == 2
    await bench.require_whole()


async def test_a_lost_connection_costs_an_engine_nothing_but_time(bench: Bench, engine: Engine) -> None:
    async with engine() as found:
        await wait_until(lambda: found.epoch, "it arbitrates")
        before = found.epoch
        for n in range(3):
            await bench.pool.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'body-broker engine%'"
            )
            await bench.submit(proposal("mara", "heal", {"by": 1}, key=str(n)))
            await bench.decided()

        assert found.epoch == before, "nobody else had it, so it is still its own"
    await bench.require_whole()


async def test_who_is_paused_inside_a_write_keeps_the_next_engine_waiting_for_three_seconds_at_most(
    engine: Engine, database_url: str
) -> None:
    stuck = await asyncpg.connect(database_url)
    epoch = await epochs.acquire(stuck, name="paused", lease_s=0.1)
    assert epoch is not None
    transaction = stuck.transaction()
    await transaction.start()
    await epochs.fenced(stuck, epoch.number)

    async with engine() as found:
        await wait_until(lambda: found.epoch, "the next engine began")

    stuck.terminate()


@contextmanager
def process(database_url: str, redis_url: str, name: str, lease_s: float) -> Generator[subprocess.Popen[str]]:
    """An engine of its own."""
    arguments = [sys.executable, str(PROCESS), database_url, redis_url, name, str(lease_s)]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[3]) as found:
        yield found
        found.kill()


async def said(engine: subprocess.Popen[str], line: str) -> None:
    """Return once it has said this."""
    assert engine.stdout is not None
    while (await asyncio.to_thread(engine.stdout.readline)).strip() != line:
        assert engine.poll() is None, f"it ended and never said {line!r}"


async def test_a_paused_engine_that_wakes_writes_nothing(
    bench: Bench, engine: Engine, database_url: str, redis: Redis, redis_url: str
) -> None:
    with process(database_url, redis_url, "sleeper", 0.5) as sleeper:
        await said(sleeper, "epoch 2")  # the first was the operator's, who loaded the world
        await bench.submit(proposal("mara", "heal", {"by": 1}, key="before"))
        await bench.decided()
        sleeper.send_signal(signal.SIGSTOP)
        async with engine("successor", lease_s=60.0) as successor:
            await wait_until(lambda: successor.epoch, "another engine takes over")
            await bench.submit(*(proposal("mara", "heal", {"by": 1}, key=str(n)) for n in range(20)))
            await bench.decided()
            sleeper.send_signal(signal.SIGCONT)
            await bench.submit(*(proposal("ben", "heal", {"by": 1}, key=f"b{n}") for n in range(20)))
            await said(sleeper, "epoch None")
            await bench.decided()
            await wait_until(lambda: _holds(redis, 3), "the successor's word stands in Redis")

    epochs_of = await bench.pool.fetch("SELECT epoch, count(*) FROM world_event WHERE change_id IS NOT NULL GROUP BY 1")
    assert {row["epoch"]: row["count"] for row in epochs_of} == {2: 1, 3: 40}
    await bench.require_whole()


async def _holds(redis: Redis, epoch: int) -> bool:
    return await mirror.is_kept(redis, epoch)


async def test_an_engine_that_is_killed_leaves_what_it_recorded_and_the_next_one_tells_it(
    bench: Bench, engine: Engine, world: WorldMap, pool: asyncpg.Pool, redis: Redis
) -> None:
    # What a kill between commit and publish leaves: the record says it, nobody was told.
    await bench.submit(proposal("mara", "heal", {"by": 1}))
    epoch = await epochs.acquire(pool, name="killed", lease_s=0.2)
    assert epoch is not None
    async with pool.acquire() as connection, connection.transaction():
        held = await reading.world_now(connection)
        claimed = await recorder.claim(connection)
        verdicts = decide(claimed.changes, held.entities, 9, now=claimed.now)
        await recorder.record(
            connection,
            epoch=epoch.number,
            tick=9,
            changes=claimed.changes,
            verdicts=verdicts,
            entities=held.entities,
        )
    assert await mirror.latest(redis) == 0

    await wait_until(lambda: (found := world.get("mara")) and found.version == 2, "the map finds it in the record")
    async with engine():
        await wait_until(lambda: _told(redis, held.pos + 1), "the next engine tells it")


async def _told(redis: Redis, pos: int) -> bool:
    return await mirror.latest(redis) == pos


async def test_an_engine_goes_on_without_redis_and_makes_the_copy_whole_when_it_is_back(
    bench: Bench, engine: Engine, redis: Redis
) -> None:
    async with engine() as found:
        await bench.submit(proposal("mara", "heal", {"by": 1}))
        await bench.decided()
        head = (await reading.head(bench.pool)).pos
        await wait_until(lambda: _told(redis, head), "all is told")
        await redis.flushall()  # pyright: ignore[reportUnknownMemberType]  # redis-py's hints

        await wait_until(lambda: redis.exists("npc:ben"), "the copy is whole though nothing happened")
        await redis.flushall()  # pyright: ignore[reportUnknownMemberType]  # redis-py's hints
        await bench.submit(proposal("mara", "heal", {"by": 2}))
        await bench.decided()

        async def whole() -> bool:
            count = await bench.pool.fetchval("SELECT count(*) FROM world_event")
            return await redis.xlen(EVENT_STREAM) == count and bool(await redis.exists("npc:ben"))

        await wait_until(whole, "every event is in the stream again")
        assert found.epoch is not None


async def test_a_fault_that_nobody_foresaw_does_not_end_the_engine(
    bench: Bench, engine: Engine, pool: asyncpg.Pool
) -> None:
    async def pid() -> int | None:
        return await pool.fetchval(
            "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND application_name LIKE '% engine tests'"
        )

    async with engine() as found:
        (poison,) = await bench.submit(proposal("mara", "heal", {"by": 1}, priority=PRIORITY_MAX))
        await bench.decided()
        before, epoch = await pid(), found.epoch
        # A number that cannot be read here, as no door lets in.
        await pool.execute(
            "UPDATE world_change SET payload = '{\"by\": 1e400}', state = 'queued' WHERE id = $1", poison.change_id
        )
        (queued,) = await bench.submit(proposal("ben", "hurt", {"by": 1}))

        async def anew() -> bool:
            return await pid() not in {None, before}

        await wait_until(anew, "it met the fault, and begins anew")
        await pool.execute("DELETE FROM world_change WHERE id = $1", poison.change_id)
        await bench.decided()
        assert await bench.states([queued]) == ["applied"]
        assert found.epoch == epoch


async def test_a_redis_that_hangs_delays_readers_and_never_the_engine(
    bench: Bench, engine: Engine, redis: Redis
) -> None:
    async with engine(lease_s=0.6) as found:
        await wait_until(lambda: _told(redis, len(entities())), "the copy is there")
        before = found.epoch
        await redis.execute_command("CLIENT", "PAUSE", "60000", "WRITE")  # pyright: ignore[reportUnknownMemberType]  # redis-py's hints
        try:
            for n in range(5):
                await bench.submit(proposal("mara", "heal", {"by": 1}, key=str(n)))
                await bench.decided()
                await wait_until(lambda: _renewed(bench), "the lease holds")
            assert await mirror.latest(redis) == len(entities()), "Redis has heard of nothing"
        finally:
            await redis.execute_command("CLIENT", "UNPAUSE")  # pyright: ignore[reportUnknownMemberType]  # redis-py's hints

        head = (await reading.head(bench.pool)).pos
        await wait_until(lambda: _told(redis, head), "it is told of everything afterwards")
        assert found.epoch == before


async def _renewed(bench: Bench) -> bool:
    return (await epochs.status(bench.pool)).lease_left_ms > 400


async def test_who_arbitrates_can_be_asked(engine: Engine, pool: asyncpg.Pool) -> None:
    idle = await epochs.status(pool)
    assert (idle.engine, idle.live) == (None, False)
    async with engine("ours", tick_hz=200, lease_s=60.0) as found:
        await wait_until(lambda: found.epoch, "it arbitrates")
        status = await epochs.status(pool)

        assert (status.engine, status.live, status.epoch, status.tick_hz) == ("ours", True, found.epoch, 200.0)
        assert 0 < status.lease_left_ms <= 60_000
        assert not status.external
    assert not (await epochs.status(pool)).live, "who leaves lets the next begin at once"
