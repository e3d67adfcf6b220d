"""Owns how joined servers stand, as people are shown it: what is pinned of each, when it was last seen, and forgetting one."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from body_broker.storage.postgres import Pool
from mcp_servers.upstreams.model import State

_SEEN = "SELECT name, first_seen_at, looked_at, failed_at, failure FROM upstream ORDER BY name"
_COUNTS = "SELECT upstream, state, count(*)::bigint AS rows FROM upstream_pin GROUP BY upstream, state"
_FORGET = "DELETE FROM upstream WHERE name = $1"
_FORGET_SECRETS = "DELETE FROM upstream_secret WHERE upstream = $1"


@dataclass(frozen=True, slots=True)
class Stands:
    """How one server stands.

    Attributes:
        counts: How many of its operations are in each state.
        looked_at: The last time that it told what it offers.
        failed_at: The last time that it did not; None where it always did.
        failure: Why, in words of ours.
    """

    first_seen_at: datetime
    looked_at: datetime
    failed_at: datetime | None
    failure: str | None
    counts: dict[State, int]

    @property
    def failing(self) -> bool:
        """Whether the last look failed."""
        return self.failed_at is not None and self.failed_at >= self.looked_at


async def standing(pool: Pool) -> dict[str, Stands]:
    """Every server that was ever seen, by name."""
    found = {
        row["name"]: Stands(row["first_seen_at"], row["looked_at"], row["failed_at"], row["failure"], {})
        for row in await pool.fetch(_SEEN)
    }
    for row in await pool.fetch(_COUNTS):
        if row["upstream"] in found:
            found[row["upstream"]].counts[row["state"]] = row["rows"]
    return found


async def forget(pool: Pool, name: str) -> None:
    """Forget a server's pins and the secrets it was shown; joined again, it is seen for the first time."""
    async with pool.acquire() as connection, connection.transaction():
        await connection.execute(_FORGET_SECRETS, name)
        await connection.execute(_FORGET, name)
