"""Owns the proof that the herald tells what is recorded while it makes the copy in Redis whole, and keeps no more than it needs."""

from __future__ import annotations

from collections.abc import Sequence

from body_broker.background import running
from body_broker.storage.redis import Redis
from body_broker.world import epochs, mirror, reading, recorder
from body_broker.world.herald import Herald
from body_broker.world.model import Effect, Event
from body_broker.world.patching import after
from tests.body_broker.world.conftest import Bench
from tests.waiting import wait_until


class Recording:
    """An engine that records something whenever its herald proves its epoch: traffic that is never over."""

    def __init__(self, bench: Bench, redis: Redis) -> None:
        self._bench = bench
        self.herald = Herald(bench.pool, redis, prove=self._prove, proof_s=60)
        self.proofs = 0
        self.said: list[str] = []

    async def begin(self) -> None:
        """Hold an epoch, and have the herald speak for it."""
        made = await epochs.acquire(self._bench.pool, name="tests", lease_s=60)
        assert made is not None
        self._epoch = made.number
        found = await reading.world(self._bench.pool)
        self._entities = found.entities
        self.herald.begin(made.number, self._entities, found.pos)

    async def write(self, effects: Sequence[Effect]) -> list[Event]:
        """Record effects, and have them told."""
        async with self._bench.pool.acquire() as connection, connection.transaction():
            held = await epochs.fenced(connection, self._epoch)
            events = await recorder.append(connection, effects, self._entities, held)
        for event in events:
            self._entities[event.entity_id] = after(self._entities.get(event.entity_id), event)
        self.said.append(f"sch_{len(self.said)}")
        self.herald.tell(events, self.said[-1:])
        return events

    async def _prove(self, _epoch: int) -> None:
        self.proofs += 1
        await self.write([Effect(entity_id="mara", type="hurt", patch={"health": self.proofs})])


async def test_what_is_recorded_while_the_copy_is_made_whole_is_told_after_it(bench: Bench, redis: Redis) -> None:
    engine = Recording(bench, redis)
    await engine.begin()
    async with running(engine.herald.run(), name="herald"):

        async def told() -> bool:
            return await redis.xlen(mirror.DECIDED_STREAM) == len(engine.said) > 0

        await wait_until(told, "what was decided is told")
        assert engine.proofs == 1, "the copy is made whole once, whatever is recorded meanwhile"
        await wait_until(lambda: _told(redis, bench), "so is what was recorded")
        assert '"health":1' in str(await redis.get("npc:mara"))


async def test_what_is_too_much_to_keep_is_read_from_the_record(bench: Bench, redis: Redis) -> None:
    engine = Recording(bench, redis)
    await engine.begin()
    most = mirror.EVENTS_KEPT
    many = [Effect(entity_id="ben", type="hurt", patch={"health": n % 100}) for n in range(most // 2 + 1)]
    await engine.write(many)
    await engine.write(many)
    engine.herald.tell([], [f"sch_x{n}" for n in range(mirror.DECIDED_KEPT + 5)])
    assert engine.herald.kept == (0, mirror.DECIDED_KEPT)

    async with running(engine.herald.run(), name="herald"):
        await wait_until(lambda: _told(redis, bench), "Redis has what it lacked")


async def _told(redis: Redis, bench: Bench) -> bool:
    return await mirror.latest(redis) == (await reading.head(bench.pool)).pos
