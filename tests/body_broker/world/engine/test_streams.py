"""Streams: a quiet one is read as empty, however long its reader would wait."""

from __future__ import annotations

from body_broker.storage.redis import open_redis
from body_broker.text import new_id
from body_broker.world.engine.streams import FIRST, Stream

LONG_MS = 60_000
"""Longer than a client waits for one answer: so does an engine with a lease of minutes."""


async def test_a_quiet_stream_is_no_lost_redis_however_long_its_reader_would_wait(redis_url: str) -> None:
    async with open_redis(redis_url) as redis:
        assert await Stream(redis, new_id("quiet")).read(FIRST, block_ms=LONG_MS) == []
