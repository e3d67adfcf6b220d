"""Owns the telling of what an engine outside decided: published as it is recorded, made whole where Redis has lost it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from body_broker.storage.postgres import Pool
from body_broker.storage.redis import Redis
from body_broker.world import epochs, mirror, reading
from body_broker.world.model import Entity, Event

_WHOLE_EACH_S = 1.0


class Teller:
    """Tells readers for a relay.

    Args:
        pool: The database.
        redis: Where the copy is.
        lease_s: Of the engine.
        clock: Seconds that only grow.
    """

    def __init__(self, pool: Pool, redis: Redis, *, lease_s: float, clock: Callable[[], float]) -> None:
        self._pool, self._redis = pool, redis
        self._lease_s, self._clock = lease_s, clock
        self._stale, self._whole_at = False, 0.0

    @property
    def stale(self) -> bool:
        """Whether Redis did not take what it was told."""
        return self._stale

    async def tell(
        self, epoch: int, world: Mapping[str, Entity], events: Sequence[Event], decided: Sequence[str]
    ) -> None:
        """What was recorded under an epoch; where Redis does not take it, the copy is stale until it is made whole."""
        if events or decided:
            taken = await mirror.publish(self._redis, events, world, epoch=epoch, decided=decided)
            self._stale = self._stale or not taken

    async def tell_decided(self, decided: Sequence[str]) -> None:
        """What was decided by no engine, because it has expired."""
        for change_id in decided:
            await self._redis.xadd(
                mirror.DECIDED_STREAM, {"change": change_id}, maxlen=mirror.DECIDED_KEPT, approximate=True
            )

    async def keep(self, epoch: int) -> None:
        """Make the copy whole where something of it is lost, at most once a second.

        Raises:
            Superseded: The epoch is over.
        """
        if self._clock() - self._whole_at < _WHOLE_EACH_S:
            return
        if self._stale or not await mirror.is_kept(self._redis, epoch):
            await self.make_whole(await reading.world(self._pool), epoch)

    async def make_whole(self, found: reading.World, epoch: int) -> None:
        """Bring the copy up to the record: whoever wrote last may have ended between the two.

        Raises:
            Superseded: The epoch is over.
        """

        async def prove() -> None:
            await epochs.renew(self._pool, epoch, self._lease_s)

        self._whole_at = self._clock()
        lacking: list[Event] = []
        at = max(await mirror.latest(self._redis), found.pos - mirror.EVENTS_KEPT)
        while page := await reading.events(self._pool, after_pos=at, limit=reading.EVENTS_MAX):
            lacking += page
            at = page[-1].pos
        self._stale = not await mirror.rewrite(
            self._redis,
            found.entities,
            lacking,
            epoch=epoch,
            last_pos=found.pos,
            prove=prove,
            proof_s=self._lease_s,
        )
