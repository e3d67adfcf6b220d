"""Owns the endpoint's notices: its SNS topics, delivered to an SQS queue, wake the jobs that they are about.

A notice is a hint and nothing else: whoever is woken looks at the object itself. So one that is lost costs time, one that comes twice
costs a look, and one that is about nothing of ours is dropped.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, cast

import asyncpg
import orjson

from body_broker.background import running
from body_broker.storage.postgres import LOST, Pool
from body_broker.telemetry import get_logger
from body_broker.work import queue
from tiers.bronze.sagemaker.backend import key_of
from tiers.bronze.sagemaker.client import WAIT_S, Received, SageMakerClient
from tiers.bronze.sagemaker.places import Asking, Place
from tiers.faults import EngineFault

log = get_logger(__name__)

_AGAIN_S, _AGAIN_MAX_S = 1.0, 60.0
_BYTES_MAX = 1_100_000
"""More than any message of SQS has."""
_JOB_OF = """
SELECT job FROM expert_call WHERE output = ANY($1::text[])
UNION SELECT job FROM expert_call WHERE (job, turn, attempt) = ($2, $3::integer, $4::integer)
"""


@dataclass(frozen=True, slots=True)
class Notice:
    """What a message says: where an answer lies, and what we called the question. A failure's message has only the second."""

    output: str | None
    asking: Asking | None


class SageMakerNotices:
    """Listens to one queue.

    Args:
        client: Talks to AWS.
        queue_url: The queue that both topics are delivered to.
        pool: Of the database with the jobs.
        wait_s: How long an empty queue is listened to at once.
        pause: Waits so many seconds after a failure.
    """

    def __init__(
        self,
        client: SageMakerClient,
        queue_url: str,
        pool: Pool,
        *,
        wait_s: int = WAIT_S,
        pause: Callable[[float], Any] = asyncio.sleep,
    ) -> None:
        self._client, self._queue_url, self._pool = client, queue_url, pool
        self._wait_s, self._pause = wait_s, pause

    @asynccontextmanager
    async def listening(self) -> AsyncGenerator[None]:
        """Listen until the way out."""
        async with running(self.listen(), name="sagemaker-notices"):
            yield

    async def listen(self) -> None:
        """Listen for ever; a queue or a database that cannot be reached is tried again, less and less often."""
        pause_s = _AGAIN_S
        while True:
            try:
                await self.take()
            except (EngineFault, *LOST, asyncpg.PostgresError) as error:
                reason = error.reason if isinstance(error, EngineFault) else type(error).__name__
                log.warning("expert_notices_not_read", reason=reason, again_in_s=pause_s)
                await self._pause(pause_s)
                pause_s = min(pause_s * 2, _AGAIN_MAX_S)
            else:
                pause_s = _AGAIN_S

    async def take(self) -> int:
        """How many jobs the messages woke that came now; the messages are deleted only then.

        Raises:
            EngineFault: The queue cannot be read or written.
            OSError: The database is away (any of `storage.postgres.LOST`).
        """
        received = await self._client.receive(self._queue_url, wait_s=self._wait_s)
        woken = 0
        for each in received:
            woken += await self._heed(each)
        await self._client.delete(self._queue_url, [each.receipt for each in received])
        return woken

    async def _heed(self, message: Received) -> int:
        notice = notice_of(message.body)
        jobs = await self._jobs_of(notice) if notice is not None else ()
        if not jobs:
            log.warning("expert_notice_dropped", known=notice is not None)
            return 0
        return sum([await queue.wake(self._pool, key_of(job)) for job in jobs])

    async def _jobs_of(self, notice: Notice) -> Sequence[str]:
        asking = notice.asking or Asking("", 0, 0)
        outputs = [] if notice.output is None else [notice.output]
        rows = await self._pool.fetch(_JOB_OF, outputs, asking.job, asking.turn, asking.attempt)
        return [row["job"] for row in rows]


def notice_of(body: str) -> Notice | None:
    """What a queue's message says, in SNS' envelope or without one (raw message delivery); None where it is no notice."""
    told = _object(body)
    if isinstance(told.get("Message"), str):
        told = _object(told["Message"])
    response, inference_id = told.get("responseParameters"), told.get("inferenceId")
    location = cast("dict[str, Any]", response).get("outputLocation") if isinstance(response, dict) else None
    place = Place.parse(location) if isinstance(location, str) else None
    asking = Asking.parse(inference_id) if isinstance(inference_id, str) else None
    return None if place is None and asking is None else Notice(None if place is None else str(place), asking)


def _object(text: str) -> dict[str, Any]:
    if len(text) > _BYTES_MAX:
        return {}
    try:
        found: Any = orjson.loads(text)
    except orjson.JSONDecodeError:
        return {}
    return cast("dict[str, Any]", found) if isinstance(found, dict) else {}
