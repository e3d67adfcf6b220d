"""Owns how a run ends: the handler is run, and what became of it is one fenced write."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

from body_broker.calls import Json
from body_broker.errors import BodyBrokerError, InternalError, on_the_wire
from body_broker.telemetry import get_logger
from body_broker.tracing import Value, joined, span
from body_broker.work.fence import Value as Written
from body_broker.work.model import CHANNEL, LeaseLost, encode
from body_broker.work.parking import Park
from body_broker.work.run import Handler, Run, unknown

logger = get_logger(__name__)

_SUCCEED = """
UPDATE work SET state = 'succeeded', result = $3::text::jsonb, finished_at = clock_timestamp(), lease_until = NULL
WHERE id = $1 AND token = $2::bigint AND state = 'running' RETURNING id
"""
# An effect that has begun and left no recorded outcome may have happened, whatever its last attempt says.
_FAIL = """
WITH found AS (
    SELECT begun IS NOT NULL AND NOT EXISTS (SELECT FROM work_step s WHERE s.work = $1 AND s.name = begun) AS in_doubt
    FROM work WHERE id = $1)
UPDATE work SET error = $3::text::jsonb, lease_until = NULL,
    state = CASE WHEN in_doubt THEN 'unknown' ELSE 'failed' END,
    open_effect = CASE WHEN in_doubt THEN begun END,
    finished_at = CASE WHEN NOT in_doubt THEN clock_timestamp() END
FROM found WHERE id = $1 AND token = $2::bigint AND state = 'running' RETURNING id
"""
_CANCEL = """
UPDATE work SET lease_until = NULL, run_at = clock_timestamp(),
    state = CASE WHEN begun IS NULL THEN 'cancelled' ELSE 'queued' END,
    finished_at = CASE WHEN begun IS NULL THEN clock_timestamp() END
WHERE id = $1 AND token = $2::bigint AND state = 'running' RETURNING id
"""
_LEAVE_UNKNOWN = """
UPDATE work SET state = 'unknown', error = $3::text::jsonb, lease_until = NULL
WHERE id = $1 AND token = $2::bigint AND state = 'running' RETURNING id
"""
_TRY_AGAIN = """
UPDATE work SET error = $3::text::jsonb, lease_until = NULL,
    state = CASE WHEN cancel_requested AND begun IS NULL THEN 'cancelled' ELSE 'queued' END,
    finished_at = CASE WHEN cancel_requested AND begun IS NULL THEN clock_timestamp() END,
    run_at = clock_timestamp() + make_interval(secs => $4::float8)
WHERE id = $1 AND token = $2::bigint AND state = 'running' RETURNING id
"""
_HAND_BACK = """
WITH back AS (
    UPDATE work SET attempts = attempts - 1, run_at = clock_timestamp(), lease_until = NULL,
        state = CASE WHEN cancel_requested AND begun IS NULL THEN 'cancelled' ELSE 'queued' END,
        finished_at = CASE WHEN cancel_requested AND begun IS NULL THEN clock_timestamp() END
    WHERE id = $1 AND token = $2::bigint AND state = 'running' RETURNING kind)
SELECT kind, pg_notify($3, 'ready ' || kind) FROM back
"""
_PARK = "SELECT work_park($1, $2::bigint, $3, $4::float8, $5)"


@dataclass(frozen=True, slots=True)
class Backoff:
    """How long a failed run waits for the next: doubled from run to run."""

    first_s: float
    max_s: float

    def delay_s(self, attempt: int, error: BaseException) -> float:
        """Seconds after this attempt; longer where the error itself says so."""
        asked = error.retry_after_s if isinstance(error, BodyBrokerError) else None
        return max(min(self.first_s * 2.0 ** min(attempt - 1, 60), self.max_s), asked or 0.0)


async def perform(run: Run, handler: Handler, backoff: Backoff) -> None:
    """Run the handler and write what became of it; never raises, for whatever is not written is swept when the lease lapses."""
    result: str | None = None
    failure: BaseException | None = None
    try:
        run.enter()
        result = await _handled(run, handler)
    except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001 - whatever it raises becomes the work's outcome
        failure = error
    run.leave()
    try:
        await _write_ending(run, result, failure, backoff)
    except LeaseLost:
        logger.warning("work_taken_over", work=run.id, attempt=run.work.attempt)
    except Exception:
        logger.exception("work_outcome_not_written", work=run.id)


async def _handled(run: Run, handler: Handler) -> str:
    """What the handler gives, in the trace of whoever asked for the work."""
    about: dict[str, Value] = {
        "messaging.system": "postgresql",
        "messaging.operation.type": "process",
        "messaging.destination.name": run.work.kind,
        "messaging.message.id": run.id,
        "work.attempt": run.work.attempt,
    }
    with joined(run.origin.trace), span(f"process {run.work.kind}", about, kind="consumer") as part:
        try:
            return encode(await handler(run), "result")
        except Park:
            part.excuse()
            raise


async def _write_ending(run: Run, result: str | None, failure: BaseException | None, backoff: Backoff) -> None:
    if isinstance(failure, LeaseLost):
        raise failure
    statement, values = _ending(run, result, failure, backoff)
    await run.fence.write(statement, *values)


def _ending(
    run: Run, result: str | None, failure: BaseException | None, backoff: Backoff
) -> tuple[str, tuple[Written, ...]]:
    if run.open_effect is not None:  # whatever the handler made of it
        logger.error("work_unknown", work=run.id, effect=run.open_effect, exc_info=failure)
        return _LEAVE_UNKNOWN, (_body(unknown(run.open_effect)),)
    if failure is None:
        return _SUCCEED, (result,)
    if isinstance(failure, Park):
        return _PARK, (failure.key, failure.wake_in_s, failure.message)
    if isinstance(failure, asyncio.CancelledError) and run.stopped:
        return (_CANCEL, ()) if run.interrupted == "cancelled" else (_HAND_BACK, (CHANNEL,))
    hopeless = isinstance(failure, BodyBrokerError) and not failure.retryable
    if hopeless or run.work.attempt >= run.work.attempts_max:
        logger.error("work_failed", work=run.id, kind=run.work.kind, **_logged(failure))
        return _FAIL, (_body(failure),)
    logger.warning("work_tried_again", work=run.id, kind=run.work.kind, attempt=run.work.attempt, **_logged(failure))
    return _TRY_AGAIN, (_body(failure), backoff.delay_s(run.work.attempt, failure))


def _logged(error: BaseException) -> dict[str, Any]:
    """What the log has of a failure: the words of one that was foreseen, and where any other was raised."""
    foreseen = isinstance(error, BodyBrokerError) and not isinstance(error, InternalError) and error.__cause__ is None
    return {"error": str(error)} if foreseen else {"exc_info": error}


def _body(error: BaseException) -> Json:
    return encode(on_the_wire(error).body(), "error")
