"""Owns reading the newest records and forgetting bodies; neither needs the key."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from body_broker.audit.record import Kind, Record, decode
from body_broker.calls import Receipt
from body_broker.storage.postgres import Pool

TAIL_MAX = 10_000
_FORGOTTEN_AT_ONCE = 10_000

_TAIL = """
SELECT writer, seq, body FROM audit_record
WHERE ($2::text IS NULL OR body::jsonb ->> 'kind' = $2)
  AND ($3::text IS NULL OR body::jsonb ->> 'action' = $3)
  AND ($4::text IS NULL OR body::jsonb ->> 'requester' = $4)
ORDER BY at DESC, writer, seq DESC
LIMIT $1::bigint
"""

_FORGET = """
DELETE FROM audit_body WHERE ctid = ANY (ARRAY(
    SELECT ctid FROM audit_body WHERE kept_at < now() - $1::interval LIMIT $2::bigint
))
"""


@dataclass(frozen=True, slots=True)
class Entry:
    """A record as it stands on its chain; reading it proves nothing, `verify` does."""

    receipt: Receipt
    record: Record


async def tail(
    pool: Pool,
    limit: int = 50,
    *,
    kind: Kind | None = None,
    action: str | None = None,
    requester: str | None = None,
) -> list[Entry]:
    """The newest committed records over all writers, newest first, at most TAIL_MAX.

    Raises:
        Conflict: A record among them is not one that this program wrote.
    """
    rows = await pool.fetch(_TAIL, min(limit, TAIL_MAX), kind, action, requester)
    return [Entry(Receipt(row["writer"], row["seq"]), decode(row["body"])) for row in rows]


async def forget_bodies(pool: Pool, older_than: timedelta) -> int:
    """Empty the bodies kept longer than that, by the database's clock, and return how many; every chain stays whole."""
    forgotten = 0
    while True:
        tag = await pool.execute(_FORGET, older_than, _FORGOTTEN_AT_ONCE)
        count = int(tag.removeprefix("DELETE "))
        forgotten += count
        if count < _FORGOTTEN_AT_ONCE:
            return forgotten
