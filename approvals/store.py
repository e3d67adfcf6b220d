"""Owns the rows of approvals: one statement each for what is written, and approvals as they are read."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Collection, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any, NamedTuple

import asyncpg
import orjson

from approvals.model import (
    CHANNEL,
    READABLE_S,
    REASON_MAX,
    Approval,
    Decided,
    Standing,
    Subject,
    Vote,
    arguments_text,
    parse_requirements,
    requirements_json,
)
from approvals.voting import Ballot
from body_broker.calls import Receipt
from body_broker.errors import Unavailable
from body_broker.storage.postgres import Connection, Executor, Pool
from body_broker.text import clean

SERVICE = "service:body-broker"
"""Who moves what nobody moved."""
PAGE_MAX = 100
WAITING_MAX = 500
"""So many pending approvals are looked through for one person."""

_PAUSED_MAX_S = 15  # longer than the audit takes to say that it does not answer
_LOCKED_MAX_S = 4
# Volatile clock_timestamp() would keep PostgreSQL from looking inside. What nobody has noticed yet is read as it is: past its time it is
# expired, whoever writes it down.
_STANDING = """CASE
    WHEN a.state = 'pending' THEN CASE WHEN a.expires_at > statement_timestamp() THEN 'pending' ELSE 'expired' END
    WHEN a.state <> 'approved' THEN a.state
    WHEN a.outcome IS NOT NULL THEN a.outcome
    WHEN w.state = 'running' OR w.begun IS NOT NULL THEN 'executing'
    WHEN w.state IN ('waiting', 'queued') AND w.expires_at <= statement_timestamp() THEN 'expired'
    ELSE 'approved' END"""
_SELECT = f"""
SELECT * FROM (
    SELECT a.*, a.requirements::text AS requirements_text, a.roles::text AS roles_text, (w.verdicts -> -1)::text AS finding, {_STANDING} AS standing,
        (a.ended_at <= statement_timestamp() - make_interval(secs => {READABLE_S}::float8)) IS TRUE AS stale,
        CASE WHEN a.ended_at > statement_timestamp() - make_interval(secs => {READABLE_S}::float8) THEN w.result::text END AS result,
        CASE WHEN a.state = 'approved' AND a.outcome IS NOT NULL THEN w.error::text END AS error,
        coalesce((SELECT jsonb_agg(jsonb_build_object('voter', v.voter, 'verdict', v.verdict, 'via', v.via,
            'factor', v.factor, 'groups', v.groups, 'reason', v.reason, 'at', extract(epoch FROM v.at)) ORDER BY v.at, v.voter)
            FROM approval_vote v WHERE v.approval_id = a.id), '[]')::text AS votes
    FROM approval a LEFT JOIN work w ON w.id = a.id) AS a
"""  # noqa: S608 - our own text
_BY_ID = f"{_SELECT} WHERE id = $1"
_UNDELIVERED = f"""
{_SELECT} WHERE digest = $1 AND delivered_at IS NULL
"""
_LIST = f"""
{_SELECT}
WHERE ($1::text IS NULL OR asker = $1) AND ($2::text IS NULL OR requester = $2) AND ($3::bigint IS NULL OR ordinal < $3)
  AND (cardinality($4::text[]) = 0 OR standing = ANY ($4))
ORDER BY ordinal DESC LIMIT $5::integer
"""
_WAITING = f"""
{_SELECT}
WHERE state = 'pending' AND expires_at > clock_timestamp()
  AND NOT EXISTS (SELECT FROM approval_vote v WHERE v.approval_id = a.id AND v.voter = $1)
ORDER BY expires_at LIMIT $2::integer
"""
_INSERT = """
INSERT INTO approval (id, digest, tool, server, definition, arguments, chain, asker, requester, sessions, tokens, tainted, depth, history,
    roles, facts, requirements, effect, destructive, headline, preview, basis, reason, earlier, notify,
    receipt_writer, receipt_sequence, expires_at, tainted_by)
VALUES ($1, $2, $3, $4, $5, $6, $7::text[], $8, $9, $10::text[], $27::text[], $11, $12::integer, $13::text[], $14::text::jsonb,
    $15::text[], $16::text::jsonb, $17, $18, $19, $20, $21, $22,
    (SELECT id FROM approval WHERE digest = $2 ORDER BY ordinal DESC LIMIT 1),
    $23, $24, $25::bigint, clock_timestamp() + make_interval(secs => $26::float8), $28::text[])
"""
# Who is refused, or takes back, does not ask people something else at once: that is how they are worn down.
_BURDEN_OF = """
SELECT count(*), greatest(extract(epoch FROM min(expires_at) - clock_timestamp()), 1)::float8 AS first_s
FROM approval WHERE requester = $1 AND state IN ('pending', 'denied', 'cancelled') AND expires_at > clock_timestamp()
"""
_VOTE = """
INSERT INTO approval_vote (approval_id, voter, verdict, via, factor, groups, reason, evidence, receipt_writer, receipt_sequence)
VALUES ($1, $2, $3, $4, $5, $6::text[], $7, $8::text::jsonb, $9, $10::bigint)
"""
_DECIDE = """
UPDATE approval SET state = $2, decided_by = $3, why = $4, decided_at = clock_timestamp(),
    ended_at = CASE WHEN $2 <> 'approved' THEN clock_timestamp() END
WHERE id = $1 AND state = 'pending'
"""
_TAKE = """
UPDATE approval SET delivered_at = clock_timestamp()
WHERE id = $1 AND delivered_at IS NULL
    AND (state IN ('denied', 'expired', 'cancelled') OR outcome IN ('done', 'failed', 'expired', 'cancelled'))
RETURNING id
"""
_EXPIRE_WORK = """
UPDATE work SET state = 'expired', finished_at = clock_timestamp()
WHERE id = $1 AND kind = 'approved_call' AND state IN ('waiting', 'queued') AND expires_at <= clock_timestamp()
"""
_BEGIN = """
UPDATE work SET expires_at = NULL, begun = $2 WHERE id = $1 AND state = 'running' AND (begun IS NOT NULL OR NOT cancel_requested)
RETURNING id
"""
_DROP_WORK = """
UPDATE work SET state = 'cancelled', finished_at = clock_timestamp()
WHERE id = $1 AND kind = 'approved_call' AND state IN ('waiting', 'queued')
"""
_BE_BRIEF = "SELECT set_config('idle_in_transaction_session_timeout', $1, true), set_config('lock_timeout', $2, true)"
_COUNT_PENDING = "SELECT count(*) FROM approval WHERE state = 'pending' AND expires_at > clock_timestamp()"


class Kept(NamedTuple):
    """An approval and what is not told of it.

    Attributes:
        approval: As it is read.
        stale: Nobody took its end within the time in which it could be read: who asks now, asks anew.
    """

    approval: Approval
    stale: bool


async def load(executor: Executor, approval_id: str) -> Kept | None:
    """One approval, whoever it belongs to; None where there is none."""
    row = await executor.fetchrow(_BY_ID, approval_id)
    return _kept(row) if row else None


async def lock(connection: Connection, approval_id: str) -> Kept | None:
    """The same, held to the end of the transaction: nobody else votes on it or ends it meanwhile."""
    if await connection.fetchval("SELECT true FROM approval WHERE id = $1 FOR UPDATE", approval_id) is None:
        return None
    return await load(connection, approval_id)  # read after the lock: its votes are those of whoever held it before


async def undelivered(executor: Executor, digest: str) -> Kept | None:
    """The approval of this call whose end its requester has not been told; there is at most one."""
    row = await executor.fetchrow(_UNDELIVERED, digest)
    return _kept(row) if row else None


async def latest(executor: Executor, digest: str) -> str | None:
    """The id of the last approval of this digest, whatever became of it."""
    return await executor.fetchval("SELECT id FROM approval WHERE digest = $1 ORDER BY ordinal DESC LIMIT 1", digest)


async def lock_requester(connection: Connection, requester: str) -> None:
    """Hold everything that this requester opens to the end of the transaction."""
    await connection.execute("SELECT pg_advisory_xact_lock(hashtextextended('approval ' || $1, 0))", requester)


async def burden_of(connection: Connection, requester: str) -> tuple[int, float]:
    """How many of this requester wait for people, or were refused or taken back within their time; and when one less will, in seconds."""
    row = await connection.fetchrow(_BURDEN_OF, requester)
    assert row is not None, "a count is always a row"
    return row["count"], row["first_s"] or 1.0


async def count_pending(executor: Executor) -> int:
    """How many wait for people, over all requesters."""
    return await executor.fetchval(_COUNT_PENDING)


async def insert(
    connection: Connection, approval_id: str, subject: Subject, *, receipt: Receipt, notify: bool, ttl_s: float
) -> None:
    """Open an approval; the one before for the same call is named in it."""
    await connection.execute(
        _INSERT,
        approval_id,
        subject.digest,
        subject.tool,
        subject.server,
        subject.definition,
        arguments_text(subject.arguments),
        list(subject.chain),
        subject.chain[0],
        subject.requester,
        list(subject.sessions),
        subject.tainted,
        subject.depth,
        sorted(subject.history),
        orjson.dumps({name: sorted(roles) for name, roles in subject.roles.items()}).decode(),
        sorted(subject.facts),
        requirements_json(subject.requirements),
        subject.effect,
        subject.destructive,
        clean(subject.headline, limit=300).replace("\n", " "),
        subject.preview and subject.preview.replace("\0", "\ufffd"),  # which a text column does not hold
        subject.basis,
        (subject.reason and clean(subject.reason, limit=REASON_MAX).strip()) or None,
        notify,
        receipt.writer,
        receipt.sequence,
        ttl_s,
        list(subject.tokens),
        list(subject.tainted_by),
    )


async def add_vote(
    connection: Connection, approval_id: str, ballot: Ballot, *, groups: Collection[str], receipt: Receipt
) -> None:
    """Count a vote; a second one of the same person breaks the transaction."""
    await connection.execute(
        _VOTE,
        approval_id,
        ballot.voter.person,
        ballot.verdict,
        ballot.voter.via,
        ballot.voter.factor,
        sorted(groups),
        ballot.reason,
        orjson.dumps(dict(ballot.voter.evidence)).decode(),
        receipt.writer,
        receipt.sequence,
    )


async def decide(connection: Connection, approval_id: str, state: Decided, *, by: str, why: str | None = None) -> None:
    """Move a pending approval on."""
    await connection.execute(_DECIDE, approval_id, state, by, why)


async def take(executor: Executor, approval_id: str) -> bool:
    """Note that its requester was told how it ended; true for the one who noted it, and never before it has ended."""
    return await executor.fetchval(_TAKE, approval_id) is not None


async def give_up(connection: Connection, approval_id: str) -> None:
    """Note that nobody came for its end in time."""
    await connection.execute("UPDATE approval SET delivered_at = clock_timestamp() WHERE id = $1", approval_id)


async def expire_work(executor: Executor, approval_id: str) -> None:
    """End what was approved and not begun in time; the trigger tells the approval."""
    await executor.execute(_EXPIRE_WORK, approval_id)


async def drop_work(connection: Connection, approval_id: str) -> None:
    """End the work of an approval that will never be given."""
    await connection.execute(_DROP_WORK, approval_id)


async def unrecord(connection: Connection, approval_id: str) -> None:
    """Note that the outcome to come is another one than the audit knows of."""
    await connection.execute("UPDATE approval SET recorded = NULL WHERE id = $1", approval_id)


async def tell(connection: Connection, approval_id: str) -> None:
    """Tell whoever waits that a vote was counted that does not decide yet; where its state moves, a trigger does."""
    await connection.execute("SELECT pg_notify($1, $2)", CHANNEL, approval_id)


async def begin(connection: Connection, approval_id: str, effect: str) -> bool:
    """Note in a run's own transaction that its effect begins: from here on it is brought to its end; false where it was taken back."""
    return await connection.fetchval(_BEGIN, approval_id, effect) is not None


@asynccontextmanager
async def moving(pool: Pool) -> AsyncGenerator[Connection]:
    """A transaction that moves approvals: a hub that is paused inside holds up nobody for long.

    Raises:
        Unavailable: Somebody else holds what it needs.
    """
    try:
        async with pool.acquire() as connection, connection.transaction():
            await connection.execute(_BE_BRIEF, str(round(_PAUSED_MAX_S * 1000)), str(round(_LOCKED_MAX_S * 1000)))
            yield connection
    except asyncpg.LockNotAvailableError as error:
        raise Unavailable(
            "Somebody else is deciding it at this very moment, and has not come to an end; nothing was done.",
            next_step="Repeat it in a few seconds.",
            retry_after_s=_LOCKED_MAX_S,
            details={"component": "approvals"},
        ) from error


async def newest(
    executor: Executor,
    *,
    asker: str | None = None,
    requester: str | None = None,
    before: int | None = None,
    standings: Collection[Standing] = (),
    limit: int = 50,
) -> list[Approval]:
    """Approvals, newest first, at most PAGE_MAX."""
    rows = await executor.fetch(_LIST, asker, requester, before, list(standings), max(1, min(limit, PAGE_MAX)))
    return [_kept(row).approval for row in rows]


async def pending_without(executor: Executor, person: str) -> list[Approval]:
    """What waits for people and has no vote of this one, the most urgent first."""
    return [_kept(row).approval for row in await executor.fetch(_WAITING, person, WAITING_MAX)]


def _kept(row: asyncpg.Record) -> Kept:
    fields: dict[str, Any] = dict(row)  # the columns, of many types
    receipt = Receipt(fields["receipt_writer"], fields["receipt_sequence"])
    approval = Approval(
        **{name: fields[name] for name in _AS_THEY_ARE},
        chain=tuple(fields["chain"]),
        sessions=tuple(fields["sessions"]),
        tokens=tuple(fields["tokens"]),
        history=frozenset(fields["history"]),
        requirements=parse_requirements(fields["requirements_text"]),
        receipt=receipt,
        votes=tuple(_vote(each) for each in orjson.loads(fields["votes"])),
        result=fields["result"] and orjson.loads(fields["result"]),
        error=fields["error"] and orjson.loads(fields["error"]),
        finding=fields["finding"] and orjson.loads(fields["finding"]),
        roles={name: frozenset(roles) for name, roles in orjson.loads(fields["roles_text"]).items()},
        facts=frozenset(fields["facts"]),
        tainted_by=tuple(fields["tainted_by"]),
    )
    return Kept(approval, fields["stale"])


def _vote(fields: Mapping[str, Any]) -> Vote:  # a JSON object of our own
    return Vote(
        voter=fields["voter"],
        verdict=fields["verdict"],
        via=fields["via"],
        factor=fields["factor"],
        groups=frozenset(fields["groups"]),
        reason=fields["reason"],
        at=datetime.fromtimestamp(fields["at"], UTC),
    )


_AS_THEY_ARE = (
    "id",
    "ordinal",
    "digest",
    "tool",
    "server",
    "definition",
    "arguments",
    "tainted",
    "depth",
    "effect",
    "destructive",
    "headline",
    "preview",
    "basis",
    "reason",
    "earlier",
    "standing",
    "state",
    "decided_by",
    "why",
    "created_at",
    "expires_at",
    "decided_at",
    "ended_at",
    "delivered_at",
)
