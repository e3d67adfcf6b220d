"""One of our engines as a process of its own: `python engine_process.py DATABASE_URL REDIS_URL NAME LEASE_S`; it says its epochs."""

from __future__ import annotations

import asyncio
import sys

from body_broker.storage.postgres import open_pool
from body_broker.storage.redis import open_redis
from body_broker.telemetry import configure_logging
from body_broker.world.arbiter import Arbiter


async def main(database_url: str, redis_url: str, name: str, lease_s: str) -> None:
    """Arbitrate until killed."""
    configure_logging("warning")
    async with open_pool(database_url) as pool, open_redis(redis_url) as redis:
        engine = Arbiter(pool, redis, database_url=database_url, name=name, tick_hz=200, lease_s=float(lease_s))
        engine.on_epoch = lambda epoch: print("epoch", epoch, flush=True)
        await engine.run()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
