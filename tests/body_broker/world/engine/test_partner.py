"""What the engine's check says itself: its numbers without gaps, for an engine begins anew at one."""

from __future__ import annotations

import asyncio

from body_broker.storage.redis import Redis
from body_broker.world.engine.coding import read_order
from body_broker.world.engine.messages import TO_ENGINE, Change
from body_broker.world.engine.partner import Partner
from body_broker.world.engine.streams import Stream


async def test_messages_stand_in_the_order_of_their_numbers_whoever_writes_at_the_same_time(redis: Redis) -> None:
    hub = Partner(redis, engine=None, patience_s=60, start_s=60, lease_ms=60_000)
    changes = [hub.change("cleo", "hurt", {"by": 1}) for _ in range(50)]
    await asyncio.gather(*(hub.send(change) for change in changes))
    orders = [read_order(raw) for _, raw in await Stream(redis, TO_ENGINE).read("0")]
    assert [order.n for order in orders if isinstance(order, Change)] == list(range(1, 51))
