"""Owns how experts' jobs are asked for: bounded for each asker, once under a key, and how one stands while it has not ended."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import cast

from body_broker.calls import Json
from body_broker.errors import BadInput, Conflict, RateLimited
from body_broker.storage.postgres import Connection, Pool
from body_broker.work import keyed, queue
from body_broker.work.model import Origin, State
from tiers.bronze.calls import CallStore
from tiers.bronze.model import PRIORITIES, Assignment, Priority

LIMIT_KEY = "experts"
"""What all of this work has in common: at most `concurrency` pieces of it run at once, over all workers."""
MANY_MAX = 50
ATTEMPTS_MAX = 5
_RETRY_S = 60.0
# A key of an asker's own stands for jobs only, whatever other work of theirs has keys; for one job, or for some together.
_ONE, _EACH = "job {key}", "jobs {place} {key}"
_OPEN = "SELECT work_open($1, $2)"
_KNOWN = "SELECT unique_key, (input ->> 'outside')::boolean AS outside FROM work WHERE owner = $1 AND unique_key = ANY ($2::text[])"
# What is still open when its job has ended, by its time or because its asker may do nothing more, is given up as what was lost is.
_STANDING = """
SELECT count(*) AS asked, coalesce(sum(cost), 0)::float8 / 1e9 AS cost_usd, coalesce(bool_or(maybe_spent OR left_open), false) AS maybe_spent,
    coalesce(bool_or(cost IS NULL AND ended_at IS NOT NULL OR left_open), false) AS unpriced,
    coalesce(sum(prompt_tokens), 0)::bigint AS prompt_tokens, coalesce(sum(completion_tokens), 0)::bigint AS completion_tokens,
    (array_agg(engine ORDER BY turn DESC, attempt DESC) FILTER (WHERE ended_at IS NULL AND NOT is_over))[1] AS engine,
    (array_agg(engine) FILTER (WHERE (state = 'lost' OR left_open) AND output IS NOT NULL))[1] AS dropped
FROM (SELECT *, is_over AND ended_at IS NULL AND (reservation IS NOT NULL OR output IS NOT NULL) AS left_open
    FROM expert_call, (SELECT finished_at IS NOT NULL AS is_over FROM work WHERE id = $1) AS whole WHERE job = $1) AS asking
"""
# A call that people were asked for is recorded as such, and what came of it beside it.
_ASKED = """
SELECT outcome ->> 'approval' FROM work_step tool WHERE work = $1 AND starts_with(name, 'tool ')
    AND outcome ->> 'outcome' = 'approval_pending' AND outcome ->> 'approval' IS NOT NULL
    AND NOT EXISTS (SELECT FROM work_step came WHERE came.work = tool.work AND came.name = 'came' || substr(tool.name, 5))
ORDER BY name
"""
_TITLES = "SELECT id, input ->> 'title' AS title FROM work WHERE id = ANY ($1::text[])"


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """How a job stands, beside what its work says.

    Attributes:
        position: How many jobs begin before it; None unless it is queued.
        asked: How often a model was asked for it.
        cost_usd: What is known to have been spent so far.
        unpriced: Whether what was asked also cost something that nobody knows.
        maybe_spent: Whether a model was asked of which nobody can say whether it was run.
        engine: Whose answer it waits for now.
        dropped: The endpoint whose answer is not waited for any more.
    """

    position: int | None
    asked: int
    cost_usd: float
    unpriced: bool
    maybe_spent: bool
    prompt_tokens: int
    completion_tokens: int
    engine: str | None
    dropped: str | None


class Jobs:
    """Asks for experts' jobs in PostgreSQL; whoever has a worker runs them.

    Args:
        pool: The stores.
        open_max: Jobs that one asker may have open.
        concurrency: Jobs that run at once, over all workers.
    """

    def __init__(self, pool: Pool, *, open_max: int, concurrency: int) -> None:
        self._pool, self._open_max, self._concurrency = pool, open_max, concurrency
        self._calls = CallStore(pool)

    async def submit(
        self,
        assignment: Assignment,
        origin: Origin,
        *,
        priority: Priority = "normal",
        key: str | None = None,
        idempotency_key: str | None = None,
    ) -> str:
        """The id of the job that does it: a new one, or the one that was asked for under the same key before.

        Args:
            assignment: What is to be done.
            origin: Who asks and how; the asker owns the job, and pays.
            priority: Before or after the other jobs.
            key: `Call.key` of the call that asks.
            idempotency_key: The asker's own.

        Raises:
            RateLimited: The asker has too many jobs open.
            Conflict: The asker's key stands for another job.
            TooLarge: The assignment is longer than work may be.
            BadInput: The assignment is not JSON.
        """
        keys = [_ONE.format(key=idempotency_key)] if idempotency_key else []
        return (await self._submit([assignment], origin, priority, key, keys))[0]

    async def submit_many(
        self,
        assignments: Sequence[Assignment],
        origin: Origin,
        *,
        priority: Priority = "normal",
        key: str | None = None,
        idempotency_key: str | None = None,
    ) -> list[str]:
        """The ids of the jobs that do these, in order: all of them are asked for, or none.

        Args:
            assignments: Up to `MANY_MAX`.
            origin: As for `submit`.
            priority: As for `submit`.
            key: As for `submit`.
            idempotency_key: The asker's own, of all of them together.

        Raises:
            BadInput: They are none, or too many, or one is not JSON.
            RateLimited: With them the asker would have too many jobs open.
            Conflict: The asker's key stands for other jobs.
            TooLarge: One is longer than work may be.
        """
        if not 1 <= len(assignments) <= MANY_MAX:
            raise BadInput(f"From 1 to {MANY_MAX} jobs are asked for at once, not {len(assignments)}.")
        # All that a key may stand for: more or fewer than before are other jobs.
        keys = [_EACH.format(place=place, key=idempotency_key) for place in range(MANY_MAX)] if idempotency_key else []
        return await self._submit(assignments, origin, priority, key, keys)

    async def standing(self, job_id: str) -> Standing:
        """How the job stands; of work that is no expert's job, its place in the queue."""
        async with self._pool.acquire() as connection:
            row = await connection.fetchrow(_STANDING, job_id)
            assert row is not None, "an aggregate without groups has one row"
            return Standing(position=await queue.position(connection, job_id), **row)

    async def titles(self, job_ids: Sequence[str]) -> Mapping[str, str]:
        """The titles of these jobs, by their ids."""
        if not job_ids:
            return {}
        return {row["id"]: row["title"] for row in await self._pool.fetch(_TITLES, list(job_ids))}

    async def asked_of_people(self, job_id: str) -> list[str]:
        """The approvals that a job has asked for and of which it does not know yet what came."""
        return [row[0] for row in await self._pool.fetch(_ASKED, job_id)]

    async def cancel(self, job_id: str, *, owner: str) -> State:
        """The state after asking for a stop, as `queue.cancel` has it; the answer of an endpoint is waited for no more.

        Raises:
            NotFound: This owner has no such job.
        """
        state = await queue.cancel(self._pool, job_id, owner=owner)
        if state == "cancelled":  # nobody runs it any more who could write down that its answer is given up
            for row in await self._calls.open_of(job_id):
                async with self._pool.acquire() as connection, connection.transaction():
                    await self._calls.lost(connection, row, "deadline")
        return state

    async def _submit(
        self,
        assignments: Sequence[Assignment],
        origin: Origin,
        priority: Priority,
        key: str | None,
        keys: Sequence[str],
    ) -> list[str]:
        async def begin() -> Json:
            # First, because it is also where those wait for one another who ask for the same owner.
            open_: int = await connection.fetchval(_OPEN, LIMIT_KEY, origin.asker)
            rows = await connection.fetch(_KNOWN, origin.asker, list(keys)) if keys else []
            known: dict[str, bool] = {row["unique_key"]: row["outside"] for row in rows}
            if len(known) not in {0, len(assignments)}:
                raise _taken()
            more = len(assignments) - len(known)
            if more and open_ + more > self._open_max:
                raise self._full(open_, more)
            wanted = assignments
            if known:  # whatever the asker has read since, it is the same job in the same words
                wanted = [
                    replace(one, outside=known.get(key, one.outside))
                    for one, key in zip(assignments, keys, strict=False)
                ]
            return await self._begin(connection, wanted, origin, PRIORITIES[priority], keys)

        async with self._pool.acquire() as connection, connection.transaction():
            return cast("list[str]", await keyed.once(connection, key, begin))

    def _full(self, open_: int, more: int) -> RateLimited:
        room = f": there is no room for {more} more." if more > 1 else "."
        return RateLimited(
            f"You have {open_} jobs open, and may have {self._open_max}{room}",
            next_step="Wait for one to end (list_jobs), or cancel one (cancel_job), then ask again.",
            retry_after_s=_RETRY_S,
        )

    async def _begin(
        self,
        connection: Connection,
        assignments: Sequence[Assignment],
        origin: Origin,
        priority: int,
        keys: Sequence[str],
    ) -> list[str]:
        try:
            return [
                await queue.enqueue(
                    connection,
                    assignment.kind,
                    assignment.body(),
                    origin=origin,
                    priority=priority,
                    expires_in_s=assignment.budget.seconds,
                    unique_key=keys[place] if keys else None,
                    limit_key=LIMIT_KEY,
                    limit_max=self._concurrency,
                    attempts_max=ATTEMPTS_MAX,
                )
                for place, assignment in enumerate(assignments)
            ]
        except Conflict as error:
            raise _taken() from error


def _taken() -> Conflict:
    return Conflict(
        "This idempotency_key stands for what was asked for in other words.",
        next_step="Take a new key for a new job, or repeat the first call's arguments exactly.",
    )
