"""Owns what is known of the copy in PostgreSQL: its generations, and what each does not show yet. Follows every change of the lore.

Whoever changes the lore holds a lock together with others until the commit; whoever makes or changes a generation, or begins to
copy, takes it alone for a moment. So no change falls between two generations, and none between a job's last look and its end.
"""

from __future__ import annotations

import secrets
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime

from body_broker.storage.postgres import Connection, Executor
from body_broker.work import queue
from body_broker.work.model import Origin

COPY, REBUILD, CHECK = "lore_copy", "lore_copy_rebuild", "lore_copy_check"
ORIGIN = Origin(chain=("service:body-broker",), session="lore copy")
GONE_MAX = 5000
"""Revs that a query may leave out; a copy that is further behind is not asked."""
_TOGETHER = "SELECT pg_advisory_xact_lock_shared(hashtext('lore_copy'))"
_ALONE = "SELECT pg_advisory_xact_lock(hashtext('lore_copy'))"
_ATTEMPTS_MAX = 1_000_000  # it is never given up: what is due stays due

# Not transaction time: whoever waited for the row was later.
_NOTE = """
INSERT INTO lore_copy_due AS due (generation, rev, index_id, since)
SELECT generation, rev, $2::integer, clock_timestamp() FROM lore_copy, unnest($1::bigint[]) AS rev
WHERE state IN ('filling', 'serving') ORDER BY generation, rev
ON CONFLICT (generation, rev) DO UPDATE SET since = clock_timestamp()
"""
_NOTE_ALL = """
INSERT INTO lore_copy_due (generation, rev, index_id, since)
SELECT $1, rev, index_id, clock_timestamp() FROM lore_document WHERE rev IS NOT NULL
"""
_SERVING = """
SELECT generation, model_id IS DISTINCT FROM (SELECT id FROM lore_model WHERE state = 'serving' AND dimensions IS NOT NULL)
    AS outdated FROM lore_copy WHERE state = 'serving'
"""
_STANDING = """
SELECT c.generation, c.model_id, ARRAY(
    SELECT due.rev FROM lore_copy_due due WHERE due.generation = c.generation AND due.index_id = $1::integer
    AND NOT EXISTS (SELECT FROM lore_document d WHERE d.rev = due.rev) LIMIT $2::integer) AS gone, (
    SELECT coalesce(sum(t.chunks), 0) FROM lore_copy_due due JOIN lore_document d USING (rev) JOIN lore_posting_total t USING (rev)
    WHERE due.generation = c.generation AND due.index_id = $1::integer) AS missing
FROM lore_copy c WHERE c.state = 'serving'
"""
_CURRENT = "SELECT rev FROM lore_document WHERE rev = ANY ($1::bigint[])"
# Passages of the index without those that the copy shows with a vector.
_VECTORLESS = """
SELECT coalesce((SELECT sum(chunks) FROM lore_posting_total JOIN lore_document USING (rev, index_id)
    WHERE index_id = $1::integer), 0)
  - (SELECT count(*) FROM lore_vector v JOIN lore_document d USING (rev)
    WHERE v.part = 0 AND v.index_id = $1::integer AND v.model_id = $2::integer
    AND NOT EXISTS (SELECT FROM lore_copy_due due WHERE due.generation = $3 AND due.rev = v.rev))
"""
_DUE = """
SELECT rev, index_id, since FROM (
    SELECT due.rev, due.index_id, due.since, sum(coalesce(t.chunks, 1)) OVER (ORDER BY due.since, due.rev) - coalesce(t.chunks, 1) AS before
    FROM (SELECT * FROM lore_copy_due WHERE generation = $1 ORDER BY since, rev LIMIT $2::integer) AS due
    LEFT JOIN lore_posting_total t USING (rev)) AS due
WHERE before < $3::bigint ORDER BY since, rev
"""
_REBUILDING = """
SELECT id FROM work WHERE state IN ('queued', 'running') AND kind = $1 AND input @> '{"always": true}' AND NOT cancel_requested
ORDER BY ordinal LIMIT 1
"""
# What somebody is noting again just now is due again: it is neither waited for, nor can the two wait for each other.
_SHOWN = """
DELETE FROM lore_copy_due WHERE (generation, rev) IN (
    SELECT due.generation, due.rev FROM lore_copy_due due
    JOIN unnest($2::bigint[], $3::timestamptz[]) AS shown (rev, since) USING (rev, since)
    WHERE due.generation = $1 FOR UPDATE OF due SKIP LOCKED)
"""


@dataclass(frozen=True, slots=True)
class Generation:
    """One OpenSearch index of lore: its name, state, whose vectors it holds, and what it does not show yet."""

    name: str
    state: str
    model_id: int | None
    due: int


@dataclass(frozen=True, slots=True)
class Standing:
    """The generation that is searched, as one lore index finds it.

    Attributes:
        generation: Its name.
        model_id: Whose vectors it holds.
        gone: Revs it may still show and nobody may find.
        missing: Current passages it may not show yet.
    """

    generation: str
    model_id: int | None
    gone: Sequence[int]
    missing: int


@dataclass(frozen=True, slots=True)
class Due:
    """A rev to bring up to date; `since` is the change it was noted for."""

    rev: int
    index_id: int
    since: datetime


class Ledger:
    """A `Follower` that needs no OpenSearch: a process without one notes what it changes for those that have one."""

    async def changed(self, connection: Connection, index_id: int, current: Sequence[int], gone: Sequence[int]) -> None:
        """Note what the copies do not show yet, and have it copied."""
        await together(connection)
        await connection.execute(_NOTE, [*current, *gone], index_id)
        serving = await connection.fetchrow(_SERVING)
        if serving is not None:
            await enqueue_copy(connection, serving["generation"])
            if serving["outdated"]:
                await enqueue_rebuild(connection, always=False)

    async def serving(self, connection: Connection, model_id: int) -> None:
        """Have a copy built that holds this model's vectors; until then PostgreSQL answers by meaning."""
        await together(connection)
        if await connection.fetchval(
            "SELECT true FROM lore_copy WHERE model_id IS DISTINCT FROM $1::integer", model_id
        ):
            await enqueue_rebuild(connection, always=False)


async def together(connection: Connection) -> None:
    """Hold the lore against whoever makes or changes a generation, to the end of the transaction."""
    await connection.execute(_TOGETHER)


async def alone(connection: Connection) -> None:
    """Wait for every change under way, and keep new ones out to the end of the transaction."""
    await connection.execute(_ALONE)


async def enqueue_copy(connection: Executor, generation: str) -> None:
    """Have what is due copied. One job that has not begun is enough: when it begins it waits for this transaction."""
    given = {"generation": generation}
    if not await queue.is_queued(connection, COPY, given):
        await queue.enqueue(
            connection, COPY, given, origin=ORIGIN, limit_key=f"{COPY} {generation}", attempts_max=_ATTEMPTS_MAX
        )


async def join_rebuild(connection: Connection) -> str:
    """The job that builds a new generation in any case: one under way, or a new one. Call `alone` first."""
    running = await connection.fetchval(_REBUILDING, REBUILD)
    if running is not None:
        return str(running)
    return await queue.enqueue(
        connection, REBUILD, {"always": True}, origin=ORIGIN, limit_key=REBUILD, attempts_max=_ATTEMPTS_MAX
    )


async def enqueue_rebuild(connection: Executor, *, always: bool) -> None:
    """Have a new generation built; unless `always`, only if one is needed when the job begins."""
    given = {"always": always}
    if not await queue.is_queued(connection, REBUILD, given):
        await queue.enqueue(connection, REBUILD, given, origin=ORIGIN, limit_key=REBUILD, attempts_max=_ATTEMPTS_MAX)


async def generations(connection: Executor) -> list[Generation]:
    """Every generation there is a row of, the one that serves first."""
    rows = await connection.fetch(
        "SELECT generation, state, model_id,"
        " (SELECT count(*) FROM lore_copy_due due WHERE due.generation = c.generation) AS due"
        " FROM lore_copy c ORDER BY state = 'serving' DESC, created_at"
    )
    return [Generation(row["generation"], row["state"], row["model_id"], row["due"]) for row in rows]


async def begin_generation(connection: Connection, prefix: str) -> str:
    """The name of a new generation to fill, with everything due; call `alone` first."""
    name = f"{prefix}-{secrets.token_hex(6)}"
    model = await connection.fetchval("SELECT id FROM lore_model WHERE state = 'serving' AND dimensions IS NOT NULL")
    await connection.execute(
        "INSERT INTO lore_copy (generation, model_id, state) VALUES ($1, $2::integer, 'filling')", name, model
    )
    await connection.execute(_NOTE_ALL, name)
    return name


async def serve(connection: Connection, generation: str) -> bool:
    """Whether it serves from now on: only where nothing is due to it. The one before is lost. Call `alone` first."""
    due = await connection.fetchval("SELECT true FROM lore_copy_due WHERE generation = $1 LIMIT 1", generation)
    if due:
        return False
    await connection.execute("UPDATE lore_copy SET state = 'lost' WHERE state = 'serving'")
    await connection.execute(
        "UPDATE lore_copy SET state = 'serving' WHERE generation = $1 AND state = 'filling'", generation
    )
    await connection.execute(
        "DELETE FROM lore_copy_due due USING lore_copy c WHERE c.generation = due.generation AND c.state = 'lost'"
    )
    return True


async def lose(connection: Connection, generation: str) -> None:
    """Search a generation no more, and have another one built; its index is deleted with it. Call `alone` first."""
    await connection.execute("UPDATE lore_copy SET state = 'lost' WHERE generation = $1", generation)
    await connection.execute("DELETE FROM lore_copy_due WHERE generation = $1", generation)
    await enqueue_rebuild(connection, always=False)


async def forget(connection: Connection, generation: str) -> None:
    """A lost generation's row is gone, as its index is. Call `alone` first."""
    await connection.execute("DELETE FROM lore_copy WHERE generation = $1 AND state = 'lost'", generation)


async def standing(connection: Executor, index_id: int) -> Standing | None:
    """How the generation that is searched stands; None where there is none."""
    row = await connection.fetchrow(_STANDING, index_id, GONE_MAX + 1)
    return None if row is None else Standing(row["generation"], row["model_id"], row["gone"], int(row["missing"]))


async def current(connection: Executor, revs: Collection[int]) -> set[int]:
    """Those of the revs that readers see."""
    return {row["rev"] for row in await connection.fetch(_CURRENT, list(revs))}


async def vectorless(connection: Executor, index_id: int, model_id: int, generation: str) -> int:
    """Current passages of an index that the generation may not show with a vector of the model."""
    return int(await connection.fetchval(_VECTORLESS, index_id, model_id, generation))


async def due(connection: Executor, generation: str, *, revs_max: int, chunks_max: int) -> list[Due]:
    """What to bring up to date next, the longest due first: about so many passages."""
    rows = await connection.fetch(_DUE, generation, revs_max, chunks_max)
    return [Due(row["rev"], row["index_id"], row["since"]) for row in rows]


async def shown(connection: Connection, generation: str, dues: Sequence[Due]) -> None:
    """The generation shows these; what changed again meanwhile stays due."""
    await connection.execute(_SHOWN, generation, [each.rev for each in dues], [each.since for each in dues])
