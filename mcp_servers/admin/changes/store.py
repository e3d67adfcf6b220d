"""Owns the table of changes: drafts, which have no effect, and changes that were made, one for each approval."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

import orjson

from body_broker.calls import Caller, Json
from body_broker.storage.postgres import Connection, Executor
from body_broker.text import new_id
from mcp_servers.admin.changes.kind import Foreseen, Found, Maker

DRAFT_HOURS = 24
DRAFTS_MAX = 50
"""Drafts of one asker that are kept: a new one takes the place of the oldest."""

_DRAFT = """
INSERT INTO admin_change (id, kind, target, params, requester, asker, state, diff, basis, expires_at)
VALUES ($1, $2, $3, $4::text::jsonb, $5, $6, 'draft', $7, $8, now() + make_interval(hours => $9::integer)) RETURNING expires_at
"""
_FORGET = """
DELETE FROM admin_change WHERE state = 'draft' AND (expires_at < now() OR id IN (
    SELECT id FROM admin_change WHERE asker = $1 AND state = 'draft' ORDER BY created_at DESC, id OFFSET $2::integer))
"""
_BEGIN = """
INSERT INTO admin_change
    (id, key, kind, target, params, requester, asker, state, diff, basis, receipt_writer, receipt_sequence)
VALUES ($1, $2, $3, $4, $5::text::jsonb, $6, $7, 'executing', $8, $9, $10, $11::bigint)
ON CONFLICT (key) DO NOTHING RETURNING id
"""
_WRITTEN = """
UPDATE admin_change SET outcome = $2::text::jsonb, state = $3, ended_at = CASE WHEN $3 = 'executing' THEN NULL ELSE clock_timestamp() END
WHERE id = $1
"""
_FOUND = """
UPDATE admin_change SET outcome = outcome || jsonb_build_object('found', $2::text), state = $3,
    ended_at = CASE WHEN $3 = 'executing' THEN NULL ELSE coalesce(ended_at, clock_timestamp()) END
WHERE id = $1
"""
_OF_KEY = "SELECT id, outcome::text FROM admin_change WHERE key = $1"


@dataclass(frozen=True, slots=True)
class Requested:
    """A change as it was asked for."""

    kind: str
    target: str
    params: Mapping[str, Json]

    def params_text(self) -> str:
        """Its params as JSON."""
        return orjson.dumps(dict(self.params)).decode()


@dataclass(frozen=True, slots=True)
class Made:
    """A change that was made. `remembered` is what its kind reads it back by."""

    id: str
    remembered: Json


async def draft(connection: Connection, wanted: Requested, foreseen: Foreseen, caller: Caller) -> tuple[str, datetime]:
    """The id of a draft, and when it is forgotten; in the caller's transaction."""
    change_id = new_id("chg")
    who = (caller.requester, caller.asker)
    expires_at = await connection.fetchval(
        _DRAFT,
        change_id,
        wanted.kind,
        wanted.target,
        wanted.params_text(),
        *who,
        foreseen.diff,
        foreseen.basis,
        DRAFT_HOURS,
    )
    await connection.execute(_FORGET, caller.asker, DRAFTS_MAX)
    return change_id, expires_at


async def begin(connection: Connection, wanted: Requested, foreseen: Foreseen, maker: Maker) -> str | None:
    """The id under which the change is made in the caller's transaction; None where it was made under this key before."""
    receipt = maker.receipt
    return await connection.fetchval(
        _BEGIN,
        new_id("chg"),
        maker.key,
        wanted.kind,
        wanted.target,
        wanted.params_text(),
        maker.requester,
        maker.origin.asker,
        foreseen.diff,
        foreseen.basis,
        receipt and receipt.writer,
        receipt and receipt.sequence,
    )


async def written(connection: Connection, change_id: str, remembered: Json, *, lasting: bool) -> None:
    """What was written, before it is read back; in the same transaction."""
    outcome = orjson.dumps({"made": remembered}).decode()
    await connection.execute(_WRITTEN, change_id, outcome, "executing" if lasting else "done")


async def verified(connection: Executor, change_id: str, found: Found) -> None:
    """What reading back found."""
    await connection.execute(_FOUND, change_id, found.text, found.state)


async def made_under(connection: Executor, key: str) -> Made | None:
    """The change that was made under a key; None where none was."""
    row = await connection.fetchrow(_OF_KEY, key)
    return None if row is None else Made(row["id"], orjson.loads(row["outcome"])["made"])
