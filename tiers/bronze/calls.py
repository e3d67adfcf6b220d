"""Owns the record of what models were asked for a job, and the money of each asking: both change in one transaction, under the fence."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

import asyncpg

from body_broker.storage.postgres import Connection, Pool
from tiers.catalogue import Price
from tiers.counts import Counts
from tiers.faults import Reason
from tiers.model import Tier, Usage
from tiers.money import A_DOLLAR, cost_of, tokens_of

CallState = Literal["invoking", "invoked", "answered", "failed", "lost"]

_ROWS = """
SELECT *, extract(epoch FROM clock_timestamp() - begun_at)::float8 AS age_s,
    extract(epoch FROM due_at - clock_timestamp())::float8 AS left_s
FROM expert_call WHERE job = $1 AND turn = $2::integer ORDER BY attempt
"""
_BEGIN = """
INSERT INTO expert_call (job, turn, attempt, engine, model, state, output, failure, reservation, due_at)
VALUES ($1, $2::integer, $3::integer, $4, $5, 'invoking', $6, $7, $8, clock_timestamp() + make_interval(secs => $9::float8))
RETURNING *, extract(epoch FROM clock_timestamp() - begun_at)::float8 AS age_s,
    extract(epoch FROM due_at - clock_timestamp())::float8 AS left_s
"""
_INVOKED = """
UPDATE expert_call SET state = 'invoked', output = $4, failure = $5
WHERE job = $1 AND turn = $2::integer AND attempt = $3::integer
RETURNING *, extract(epoch FROM clock_timestamp() - begun_at)::float8 AS age_s,
    extract(epoch FROM due_at - clock_timestamp())::float8 AS left_s
"""
# What was answered stays answered: whatever is found out later about its failure is not about that answer.
_END = """
UPDATE expert_call SET state = $4, reason = $5, maybe_spent = $6::boolean, cost = $7::bigint,
    prompt_tokens = $8::bigint, completion_tokens = $9::bigint, ended_at = clock_timestamp()
WHERE job = $1 AND turn = $2::integer AND attempt = $3::integer AND state <> 'answered'
RETURNING *, extract(epoch FROM clock_timestamp() - begun_at)::float8 AS age_s,
    extract(epoch FROM due_at - clock_timestamp())::float8 AS left_s
"""
_SPOIL = """
UPDATE expert_call SET state = 'failed', reason = $4
WHERE job = $1 AND turn = $2::integer AND attempt = $3::integer AND state = 'answered' RETURNING true
"""
# The row of the reservation is read before it goes. Where it is not there any more, it was booked before, or swept.
_SETTLE = """
SELECT tier, amount, spend_settle(id, $2::bigint, $3::bigint, $4::bigint, $5::bigint) AS spent FROM spend_reservation WHERE id = $1
"""
_NOTE = """
SELECT spend_note('bronze', owner, 1, $2::bigint, $3::bigint) FROM work WHERE id = $1
"""
_SPENT = """
SELECT count(*) AS asked, coalesce(sum(cost), 0)::bigint AS cost, coalesce(bool_or(maybe_spent), false) AS maybe_spent,
    coalesce(bool_or(cost IS NULL AND ended_at IS NOT NULL), false) AS unpriced,
    coalesce(sum(prompt_tokens), 0)::bigint AS prompt, coalesce(sum(completion_tokens), 0)::bigint AS completion
FROM expert_call WHERE job = $1 AND ($2::integer IS NULL OR turn = $2::integer)
"""
_OPEN = """
SELECT *, extract(epoch FROM clock_timestamp() - begun_at)::float8 AS age_s,
    extract(epoch FROM due_at - clock_timestamp())::float8 AS left_s
FROM expert_call WHERE job = $1 AND ended_at IS NULL ORDER BY turn, attempt
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class CallRow:
    """One asking of one question.

    Attributes:
        turn: The how manieth question of the job.
        attempt: The how manieth asking of it.
        reason: A word of `tiers.faults`, where it failed or was lost.
        output: Where an endpoint writes its answer; `failure` where it writes why there is none. None of an engine that answers at once.
        reservation: The money set aside for it; None where it costs nothing.
        maybe_spent: Nobody can say whether it was run, or what it cost.
        cost: Billionths of a US dollar; None where nobody knows, or it has not ended.
        due_at: Until then an answer may still come, UTC.
        age_s: Since it was begun, by the database's clock when it was read.
        left_s: Until `due_at`, in the same way; negative afterwards.
    """

    job: str
    turn: int
    attempt: int
    engine: str
    model: str | None
    state: CallState
    reason: str | None
    output: str | None
    failure: str | None
    reservation: str | None
    maybe_spent: bool
    cost: int | None
    prompt_tokens: int | None
    completion_tokens: int | None
    begun_at: datetime
    due_at: datetime
    ended_at: datetime | None
    age_s: float
    left_s: float

    @property
    def open(self) -> bool:
        """Whether nothing is known of its end."""
        return self.state in {"invoking", "invoked"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Spent:
    """What askings have used together.

    Attributes:
        cost_usd: What is known.
        unpriced: Whether something of it costs, and nobody knows how much.
    """

    asked: int
    usage: Usage
    cost_usd: float
    unpriced: bool
    maybe_spent: bool


class CallStore:
    """Reads and writes the askings of jobs.

    Every write takes the connection of `Run.fenced()`, so that a worker that was replaced writes nothing. Money is booked in the same
    transaction as the row's end: an asking cannot end without it, and it is booked once, whoever ends it and however often.

    Args:
        pool: Of the database.
        counts: Told what was spent.
    """

    def __init__(self, pool: Pool, counts: Counts | None = None) -> None:
        self._pool, self._counts = pool, counts or Counts()

    async def rows_of(self, job: str, turn: int, *, connection: Connection | None = None) -> list[CallRow]:
        """The askings of one question, the earliest first; inside a transaction, by its connection."""
        return [_row(found) for found in await (connection or self._pool).fetch(_ROWS, job, turn)]

    async def open_of(self, job: str) -> list[CallRow]:
        """The askings of a job of whose end nothing is known, the earliest first."""
        return [_row(found) for found in await self._pool.fetch(_OPEN, job)]

    async def spent_of(self, job: str, turn: int | None = None, *, connection: Connection | None = None) -> Spent:
        """What the askings of a job, or of one of its questions, have used together; inside a transaction, by its connection."""
        found = await (connection or self._pool).fetchrow(_SPENT, job, turn)
        assert found is not None, "an aggregate without groups has one row"
        return Spent(
            asked=found["asked"],
            usage=Usage(found["prompt"], found["completion"]),
            cost_usd=found["cost"] / A_DOLLAR,
            unpriced=found["unpriced"],
            maybe_spent=found["maybe_spent"],
        )

    async def begin(
        self,
        connection: Connection,
        job: str,
        turn: int,
        attempt: int,
        *,
        engine: str,
        model: str | None,
        due_in_s: float,
        output: str | None = None,
        failure: str | None = None,
        reservation: str | None = None,
    ) -> CallRow:
        """The row of an asking that leaves only after this is committed."""
        about = (job, turn, attempt, engine, model, output, failure, reservation, due_in_s)
        return _one(await connection.fetchrow(_BEGIN, *about))

    async def invoked(self, connection: Connection, row: CallRow, output: str | None, failure: str | None) -> CallRow:
        """The row of an asking that an endpoint has taken, with the places that it named."""
        return _one(await connection.fetchrow(_INVOKED, row.job, row.turn, row.attempt, output, failure))

    async def answered(
        self, connection: Connection, row: CallRow, usage: Usage | None, price: Price | None
    ) -> CallRow | None:
        """The row of an asking whose answer is there, its cost booked; None where that was recorded before.

        Args:
            connection: Of `Run.fenced()`.
            row: Which; one that was given up as lost is answered late.
            usage: As the engine counted; None where it did not: then all that was set aside counts as spent.
            price: Of its engine.
        """
        if row.reservation is None or price is None:
            tokens = usage or Usage()
            ended = await self._end(connection, row, "answered", None, maybe=False, cost=0, usage=usage)
            if ended is not None:
                about = (row.job, tokens_of(tokens.prompt), tokens_of(tokens.completion))
                await connection.fetchval(_NOTE, *about)
            return ended
        cost = None if usage is None else cost_of(price, usage)
        ended = await self._end(connection, row, "answered", None, maybe=usage is None, cost=cost, usage=usage)
        if ended is not None:
            await self._settle(connection, row, cost, usage or Usage())
        return ended

    async def failed(
        self, connection: Connection, row: CallRow, reason: Reason, *, maybe_spent: bool = False
    ) -> CallRow | None:
        """The row of an asking that came to nothing, its money booked or given back; None where it was answered before.

        Args:
            connection: Of `Run.fenced()`.
            row: Which.
            reason: Why.
            maybe_spent: It may have been run; where money was set aside for it, all of that counts as spent.
        """
        return await self._give_up(connection, row, "failed", reason, maybe_spent=maybe_spent)

    async def spoiled(self, connection: Connection, row: CallRow, reason: Reason) -> None:
        """An answer was paid for that does not hold: what it cost stands, and its engine counts as one that failed."""
        await connection.fetchval(_SPOIL, row.job, row.turn, row.attempt, reason)

    async def lost(self, connection: Connection, row: CallRow, reason: Reason) -> CallRow | None:
        """The row of an asking of whose end nobody will hear; None where it was answered before.

        Where money was set aside, or somebody else's endpoint had it, it may have cost.
        """
        may_cost = row.reservation is not None or row.output is not None
        return await self._give_up(connection, row, "lost", reason, maybe_spent=may_cost)

    async def _give_up(
        self, connection: Connection, row: CallRow, state: CallState, reason: Reason, *, maybe_spent: bool
    ) -> CallRow | None:
        cost = None if maybe_spent else 0
        ended = await self._end(connection, row, state, reason, maybe=maybe_spent, cost=cost, usage=None)
        if ended is not None and row.reservation is not None:
            await self._settle(connection, row, cost, Usage())
        return ended

    async def _end(
        self,
        connection: Connection,
        row: CallRow,
        state: CallState,
        reason: Reason | None,
        *,
        maybe: bool,
        cost: int | None,
        usage: Usage | None,
    ) -> CallRow | None:
        tokens = (None, None) if usage is None else (tokens_of(usage.prompt), tokens_of(usage.completion))
        about = (row.job, row.turn, row.attempt, state, reason, maybe, cost, *tokens)
        found = await connection.fetchrow(_END, *about)
        return None if found is None else _row(found)

    async def _settle(self, connection: Connection, row: CallRow, cost: int | None, usage: Usage) -> None:
        """Book the reservation: what it cost, or all of it where nobody knows. Nothing that was set aside twice is booked twice."""
        about = (cost, 0 if cost == 0 else 1, tokens_of(usage.prompt), tokens_of(usage.completion))
        found = await connection.fetchrow(_SETTLE, row.reservation, *about)
        if found is not None and found["spent"]:
            self._counts.spent(Tier(found["tier"]), found["spent"] / A_DOLLAR)


def _one(found: asyncpg.Record | None) -> CallRow:
    assert found is not None, "the row is there: it is written under the fence of its job"
    return _row(found)


def _row(found: asyncpg.Record) -> CallRow:
    fields: dict[str, Any] = dict(found)
    return CallRow(**fields)
