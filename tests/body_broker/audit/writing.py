"""A process that writes the audit until it is killed, and prints each record that it was promised."""

from __future__ import annotations

import asyncio
import sys

from body_broker.audit.auditor import open_auditor
from body_broker.audit.record import Record
from body_broker.storage.postgres import open_pool


async def write(url: str, key: bytes) -> None:
    async with open_pool(url) as pool, open_auditor(pool, key, details={"process": "to be killed"}) as auditor:
        while True:
            for _ in range(3):
                auditor.add(Record(kind="decision", action="read", verdict="allow"))
            receipt = auditor.add(Record(kind="decision", action="write", verdict="allow"), b'{"effect":true}')
            await auditor.durable(receipt)
            print(receipt.writer, receipt.sequence, flush=True)


if __name__ == "__main__":
    asyncio.run(write(sys.argv[1], bytes.fromhex(sys.argv[2])))
