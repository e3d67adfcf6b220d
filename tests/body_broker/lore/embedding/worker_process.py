"""Owns a worker process that makes vectors on this machine, so that a test can kill it."""

from __future__ import annotations

import asyncio
import sys

from body_broker.lore.embedding import open_embedding
from body_broker.settings import Settings
from body_broker.storage.postgres import open_pool
from body_broker.work.worker import Worker


async def main(url: str) -> None:
    async with open_pool(url) as pool, open_embedding(pool, Settings.model_validate({}), replace=False) as embedding:
        worker = Worker(pool, embedding.handlers(), database_url=url, lease_s=1.0, poll_s=0.2)
        await worker.run()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
