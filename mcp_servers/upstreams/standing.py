"""Owns how joined servers stand, as people are shown it: what is pinned of each, when it was last seen, and forgetting one."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from body_broker.storage.postgres import Pool
from mcp_servers.upstreams.model import Pin, State

_SEEN = """
SELECT name, first_seen_at, looked_at, failed_at, failure, coalesce(told->>'protocol', '') AS protocol,
    concat_ws(' ', told->'server'->>'name', told->'server'->>'version') AS server
FROM upstream ORDER BY name
"""
_COUNTS = "SELECT upstream, state, count(*)::bigint AS rows FROM upstream_pin GROUP BY upstream, state"
_FORGET = "DELETE FROM upstream WHERE name = $1"
_ASKED = """
SELECT s.approval FROM upstream_asked s JOIN approval a ON a.id = s.approval
WHERE (s.upstream, s.kind, s.name, s.digest) = ($1, $2, $3, $4)
    AND ($5 OR (a.ended_at IS NULL AND a.expires_at > clock_timestamp()))
"""
_FORGET_SECRETS = "DELETE FROM upstream_secret WHERE upstream = $1"


@dataclass(frozen=True, slots=True)
class Stands:
    """How one server stands.

    Attributes:
        counts: How many of its operations are in each state.
        looked_at: The last time that it told what it offers.
        failed_at: The last time that it did not; None where it always did.
        failure: Why, in words of ours.
        protocol: The revision that was agreed on then.
        server: What it calls itself, cleaned.
    """

    first_seen_at: datetime
    looked_at: datetime
    failed_at: datetime | None
    failure: str | None
    protocol: str
    server: str
    counts: dict[State, int]

    @property
    def failing(self) -> bool:
        """Whether the last look failed."""
        return self.failed_at is not None and self.failed_at >= self.looked_at


async def standing(pool: Pool) -> dict[str, Stands]:
    """Every server that was ever seen, by name."""
    found = {
        row["name"]: Stands(**{key: value for key, value in row.items() if key != "name"}, counts={})
        for row in await pool.fetch(_SEEN)
    }
    for row in await pool.fetch(_COUNTS):
        if row["upstream"] in found:
            found[row["upstream"]].counts[row["state"]] = row["rows"]
    return found


async def asked_about(pool: Pool, pin: Pin, *, ended: bool = False) -> str | None:
    """The approval by which people are asked about what is seen now; with `ended` also one that is over. None where there is none."""
    if pin.seen is None:
        return None
    found: str | None = await pool.fetchval(_ASKED, pin.upstream, pin.kind, pin.name, pin.seen.digest, ended)
    return found


async def forget(pool: Pool, name: str) -> None:
    """Forget a server's pins and the secrets it was shown; joined again, it is seen for the first time."""
    async with pool.acquire() as connection, connection.transaction():
        await connection.execute(_FORGET_SECRETS, name)
        await connection.execute(_FORGET, name)
