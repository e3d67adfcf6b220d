"""Owns what is done to work from outside a worker: enqueue, release, wake, cancel, read, purge, and settling the unknown."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import Any

import asyncpg

from body_broker.calls import Json
from body_broker.errors import BadInput, Conflict, NotFound, on_the_wire
from body_broker.storage.postgres import Executor
from body_broker.text import clean, new_id
from body_broker.tracing import here
from body_broker.work.model import CHANNEL, Origin, Page, State, Verdict, WorkItem, WorkSummary, decode, encode

PAGE_MAX = 100
_PURGE_AT_ONCE = 500
_MAY_SETTLE = ("person:", "operator:")

_ENQUEUE = """
WITH made AS (
    INSERT INTO work (id, kind, owner, origin, input, state, priority, run_at, expires_at,
                      unique_key, limit_key, limit_max, attempts_max)
    VALUES ($1, $2, $3, $4::text::jsonb, $5::text::jsonb, $6, $7::integer,
            clock_timestamp() + make_interval(secs => $8::float8), clock_timestamp() + make_interval(secs => $9::float8),
            $10, $11, $12::integer, $13::integer)
    ON CONFLICT DO NOTHING RETURNING id, kind, state)
SELECT id, CASE WHEN state = 'queued' THEN pg_notify($14, 'ready ' || kind) END FROM made
"""
_SAME_KEY = """
SELECT id, kind = $3 AND input = $4::text::jsonb AS same FROM work WHERE owner = $1 AND unique_key = $2
"""
_IS_QUEUED = """
SELECT true FROM work WHERE state = 'queued' AND kind = $1 AND input = $2::text::jsonb AND NOT cancel_requested LIMIT 1
"""
_UNFINISHED = """
SELECT id, input::text FROM work
WHERE kind = $1 AND owner = $2 AND state IN ('waiting', 'queued', 'running') AND NOT cancel_requested ORDER BY ordinal
"""
_RELEASE = """
WITH moved AS (
    UPDATE work SET state = 'queued', run_at = clock_timestamp(), waits_for = NULL, wake_at = NULL
    WHERE id = $1 AND state = 'waiting' AND (expires_at IS NULL OR expires_at > clock_timestamp()) RETURNING kind)
SELECT kind, pg_notify($2, 'ready ' || kind) FROM moved
"""
# What it waited for stays readable: whoever cancels may want to take that back too.
_CANCEL = """
WITH moved AS (
    UPDATE work SET cancel_requested = true, wake_at = NULL,
        state = CASE WHEN state = 'running' THEN state ELSE 'cancelled' END,
        finished_at = CASE WHEN state = 'running' THEN NULL ELSE clock_timestamp() END
    WHERE id = $1 AND owner = $2 AND state IN ('waiting', 'queued', 'running') AND begun IS NULL RETURNING id, state)
SELECT state, CASE WHEN state = 'running' THEN pg_notify($3, 'cancel ' || id) END FROM moved
"""
_GET = """
SELECT id, ordinal, kind, owner, origin::text, state, priority, run_at, expires_at, attempts, attempts_max, cancel_requested,
    open_effect, waits_for, progress::text, error::text, verdicts::text, created_at, started_at, finished_at,
    input::text, result::text
FROM work WHERE id = $1 AND ($2::text IS NULL OR owner = $2)
"""
_LIST = """
SELECT id, ordinal, kind, owner, origin::text, state, priority, run_at, expires_at, attempts, attempts_max, cancel_requested,
    open_effect, waits_for, progress::text, error::text, verdicts::text, created_at, started_at, finished_at
FROM work
WHERE ($1::text IS NULL OR owner = $1) AND ($2::bigint IS NULL OR ordinal < $2)
  AND (cardinality($3::text[]) = 0 OR state = ANY ($3)) AND (cardinality($4::text[]) = 0 OR kind = ANY ($4))
  AND kind <> ALL ($6::text[])
ORDER BY ordinal DESC LIMIT $5::integer
"""
# What comes before it by the order of claims; what is put off, or has expired, is in nobody's way that is not put off further.
_POSITION = """
SELECT (SELECT count(*) FROM work other
    WHERE other.state = 'queued' AND other.limit_key = mine.limit_key
      AND (other.expires_at IS NULL OR other.expires_at > clock_timestamp())
      AND (other.run_at > now.now, -other.priority, other.run_at, other.ordinal)
          < (mine.run_at > now.now, -mine.priority, mine.run_at, mine.ordinal))
FROM work mine, (SELECT clock_timestamp() AS now) AS now WHERE id = $1 AND state = 'queued' AND limit_key IS NOT NULL
"""
_SETTLE = """
WITH moved AS (
    UPDATE work SET
        verdicts = verdicts || jsonb_build_object(
            'by', $2::text, 'verdict', $3::text, 'note', $4::text, 'effect', open_effect, 'at', clock_timestamp()),
        state = CASE WHEN $3 = 'again' THEN 'queued' ELSE $3 END,
        result = CASE WHEN $3 = 'succeeded' THEN $5::text::jsonb END,
        error = CASE WHEN $3 = 'failed' THEN $7::text::jsonb END,
        attempts_max = CASE WHEN $3 = 'again' THEN greatest(attempts_max, attempts + 1) ELSE attempts_max END,
        finished_at = CASE WHEN $3 = 'again' THEN NULL ELSE clock_timestamp() END,
        cancel_requested = false, expires_at = NULL, run_at = clock_timestamp(), open_effect = NULL
    WHERE id = $1 AND state = 'unknown' RETURNING kind, state)
SELECT state, CASE WHEN state = 'queued' THEN pg_notify($6, 'ready ' || kind) END FROM moved
"""
_STEPS = "SELECT name, outcome::text FROM work_step WHERE work = $1 AND starts_with(name, $2)"
_PURGE = """
DELETE FROM work WHERE id = ANY (ARRAY(
    SELECT id FROM work WHERE finished_at < clock_timestamp() - make_interval(secs => $1::float8)
    ORDER BY finished_at LIMIT $2::integer FOR UPDATE SKIP LOCKED))
"""


async def enqueue(
    connection: Executor,
    kind: str,
    given: Json,
    *,
    origin: Origin,
    work_id: str | None = None,
    waiting: bool = False,
    priority: int = 0,
    delay_s: float = 0.0,
    expires_in_s: float | None = None,
    unique_key: str | None = None,
    limit_key: str | None = None,
    limit_max: int = 1,
    attempts_max: int = 5,
) -> str:
    """The id of work recorded on the caller's connection: it exists if and only if the caller's transaction commits.

    Args:
        connection: The caller's connection, in its transaction; a pool where there is none.
        kind: Which handler runs it.
        given: Its input, any JSON value up to 4 MiB.
        origin: Who asked and how; the asker owns it.
        work_id: Its id where it already has one (`apr_...`); else a new `job_...`.
        waiting: It starts only after `release`.
        priority: Higher ones start first.
        delay_s: It starts no earlier.
        expires_in_s: Waiting or queued work that has not started by then becomes `expired`.
        unique_key: The owner's key: repeating it returns the id of the first work under it, whatever became of that.
        limit_key: At most `limit_max` pieces of work under this key run at once, over all workers.
        limit_max: See `limit_key`.
        attempts_max: Runs until it has failed.

    Raises:
        BadInput: The input is not JSON.
        TooLarge: The input is too long.
        Conflict: The unique key stands for other work, or the id is taken.
    """
    assert limit_max >= 1, "a limit of nothing would never start"
    assert attempts_max >= 1, "work that may not be tried would never start"
    data = encode(given, "input")
    found = await connection.fetchval(
        _ENQUEUE,
        work_id or new_id("job"),
        kind,
        origin.asker,
        encode(replace(origin, trace=origin.trace or here()).body(), "origin"),
        data,
        "waiting" if waiting else "queued",
        priority,
        delay_s,
        expires_in_s,
        unique_key,
        limit_key,
        limit_max,
        attempts_max,
        CHANNEL,
    )
    if found is not None:
        return str(found)
    first = unique_key and await connection.fetchrow(_SAME_KEY, origin.asker, unique_key, kind, data)
    if not first or not first["same"]:
        raise Conflict("Other work already exists under this key or id.")
    return str(first["id"])


async def is_queued(connection: Executor, kind: str, given: Json) -> bool:
    """Whether work of this kind with this input has not begun yet, or waits for its next try."""
    return await connection.fetchval(_IS_QUEUED, kind, encode(given, "input")) is not None


async def unfinished(connection: Executor, kind: str, *, owner: str) -> list[tuple[str, Json]]:
    """Ids and inputs of the owner's work of this kind that has not ended and was not asked to stop, the oldest first."""
    return [(row["id"], decode(row["input"])) for row in await connection.fetch(_UNFINISHED, kind, owner)]


async def release(connection: Executor, work_id: str) -> bool:
    """Let waiting work start; true only for the one call that released it, and never for work that has expired."""
    return await connection.fetchval(_RELEASE, work_id, CHANNEL) is not None


async def wake(connection: Executor, key: str) -> int:
    """How many pieces of parked work wait for this key and go on now, before what was asked for after them.

    On the caller's connection: it happens if and only if the caller's transaction commits. Work that has not lain down yet is not woken,
    and looks again by itself (`parking.Park`). Approvals wake what waits for them without this.
    """
    woken: int = await connection.fetchval("SELECT work_wake($1)", key)
    return woken


async def position(connection: Executor, work_id: str) -> int | None:
    """How many queued pieces of work under the same limit begin before it; None where it is not queued, or has no limit."""
    ahead: int | None = await connection.fetchval(_POSITION, work_id)
    return ahead


async def cancel(connection: Executor, work_id: str, *, owner: str) -> State:
    """The state after asking for a stop: work not begun is cancelled at once, a running one as soon as its worker hears.

    Work that has ended stays as it ended. An effect that has begun is brought to its end.

    Raises:
        NotFound: This owner has no such work.
    """
    state: State | None = await connection.fetchval(_CANCEL, work_id, owner, CHANNEL)
    if state is None:
        state = await connection.fetchval("SELECT state FROM work WHERE id = $1 AND owner = $2", work_id, owner)
    if state is None:
        raise _not_found()
    return state


async def get(connection: Executor, work_id: str, *, owner: str | None) -> WorkItem:
    """One piece of the owner's work, whole; with None anybody's, for operators and the hub's own readers.

    Raises:
        NotFound: This owner has no such work.
    """
    row = await connection.fetchrow(_GET, work_id, owner)
    if row is None:
        raise _not_found()
    return WorkItem(**_decoded(row))


async def list_newest(
    connection: Executor,
    *,
    owner: str | None,
    states: Collection[State] = (),
    kinds: Collection[str] = (),
    without: Collection[str] = (),
    before: int | None = None,
    limit: int = 50,
) -> Page:
    """The owner's work, newest first; with None everybody's, for operators.

    Args:
        connection: Where to read.
        owner: The asker's principal.
        states: Only these; all when empty.
        kinds: Only these; all when empty.
        without: None of these kinds.
        before: `Page.before` of the page before; a caller outside the process gets it sealed.
        limit: Items on a page, 1 to 100.
    """
    limit = max(1, min(limit, PAGE_MAX))
    rows = await connection.fetch(_LIST, owner, before, list(states), list(kinds), limit + 1, list(without))
    items = [WorkSummary(**_decoded(row)) for row in rows[:limit]]
    return Page(items, items[-1].ordinal if len(rows) > limit else None)


async def settle(
    connection: Executor, work_id: str, *, by: str, verdict: Verdict, note: str, result: Json = None
) -> State:
    """The state after a person said what became of an unknown effect; who, what and why stay on the work.

    Args:
        connection: The caller's connection; what else the verdict changes belongs in the same transaction.
        work_id: Work whose state is `unknown`.
        by: The person's or operator's principal; no tier and no service settles anything.
        verdict: `succeeded` or `failed` ends it so; `again` queues it, and the effect is begun anew.
        note: What the person found, up to 1000 characters.
        result: Its result, where the verdict is `succeeded`.

    Raises:
        BadInput: Nobody is named, or there is no note.
        NotFound: There is no such work.
        Conflict: Its state is not `unknown`.
    """
    note = clean(note, limit=1000).strip()
    if not by.startswith(_MAY_SETTLE) or not note:
        raise BadInput("An unknown effect is settled by a named person, with a note of what they found.")
    answer = encode(result, "result")
    state: State | None = await connection.fetchval(
        _SETTLE, work_id, by, verdict, note, answer, CHANNEL, encode(on_the_wire(_undone(by, note)).body(), "error")
    )
    if state is not None:
        return state
    if await connection.fetchval("SELECT true FROM work WHERE id = $1", work_id):
        raise Conflict("Only work whose outcome is unknown can be settled.")
    raise _not_found()


async def steps(connection: Executor, work_id: str, prefix: str) -> dict[str, Json]:
    """What a piece of work has recorded so far of steps whose names begin so, by their names; nobody's rights are asked for."""
    return {row["name"]: decode(row["outcome"]) for row in await connection.fetch(_STEPS, work_id, prefix)}


async def purge(connection: Executor, *, older_than_s: float) -> int:
    """How many pieces of work that ended longer ago than this were forgotten; `unknown` stays until a person settled it."""
    total = 0
    while True:
        status = await connection.execute(_PURGE, older_than_s, _PURGE_AT_ONCE)
        gone = int(status.rpartition(" ")[2])
        total += gone
        if gone < _PURGE_AT_ONCE:
            return total


def _undone(by: str, note: str) -> Conflict:
    return Conflict(
        f"It was not done: {by} looked and found so. They say: {note}",
        next_step="Make the call again if it is still wanted.",
        details={"settled_by": by},
    )


def _not_found() -> NotFound:
    return NotFound("You have no work by that id.")


def _decoded(row: asyncpg.Record) -> dict[str, Any]:  # the fields of WorkSummary or WorkItem
    fields: dict[str, Any] = dict(row)
    fields["origin"] = Origin.parse(fields["origin"])
    for name in ("progress", "error", "verdicts", "input", "result"):
        if name in fields:
            fields[name] = decode(fields[name])
    return fields
