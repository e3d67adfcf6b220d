"""Owns the records of operator commands: what a person with the data dir or the database's credentials does beside the hub."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from body_broker.audit.auditor import open_auditor
from body_broker.audit.record import Record
from body_broker.calls import Receipt
from body_broker.errors import Detail
from body_broker.storage.postgres import Pool


async def record_operator(
    pool: Pool,
    key: bytes,
    *,
    operator: str,
    action: str,
    verdict: str = "allow",
    details: Mapping[str, Detail] | None = None,
    body: bytes | None = None,
    clock: Callable[[], float] = time.time,  # noqa: TID251 - the default of the injected clock
) -> Receipt:
    """Record one command of `operator:NAME` on a short chain of its own, committed and closed; called before the effect.

    Args:
        pool: A pool on a migrated database.
        key: The audit key, 32 bytes.
        operator: The name alone.
        action: The command, such as `config set`.
        verdict: allow before the effect; how it ended, where that is recorded too.
        details: A few facts.
        body: The command's arguments.
        clock: Unix seconds.

    Raises:
        Unavailable: The database did not take it; the command must not go on.
    """
    record = Record(
        kind="operator", action=action, requester=f"operator:{operator}", verdict=verdict, details=details or {}
    )
    async with open_auditor(pool, key, clock=clock, details={"process": "operator"}) as auditor:
        receipt = auditor.add(record, body)
        await auditor.durable(receipt)
    return receipt
