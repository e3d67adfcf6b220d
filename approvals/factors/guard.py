"""Owns how often a code may be guessed: counted for each person in the database, so over all hubs together."""

from __future__ import annotations

from collections.abc import Callable

from body_broker.errors import RateLimited
from body_broker.storage.postgres import Pool

ATTEMPTS = 5
LOCKED_S = 300
_LOCKED_MAX_S = 3600
_FORGOTTEN_S = 24 * 3600

# An attempt is counted before its code is looked at: a thousand at once are a thousand attempts. Every fifth locks, each time
# twice as long as before, and only a right code, or a day without an attempt, starts anew.
_ATTEMPT = """
INSERT INTO factor_guard AS g (person, failures, locked_until) VALUES ($1, 1, NULL)
ON CONFLICT (person) DO UPDATE SET
  failures = CASE WHEN g.locked_until < to_timestamp($2::float8 - $3::float8) THEN 1 ELSE g.failures + 1 END,
  locked_until = CASE WHEN g.locked_until IS NOT NULL AND g.locked_until < to_timestamp($2::float8 - $3::float8) THEN NULL
    WHEN (g.failures + 1) % $4::int = 0
    THEN to_timestamp($2::float8 + least($5::float8 * 2 ^ least((g.failures + 1) / $4::int - 1, 20), $6::float8))
    ELSE g.locked_until END
WHERE g.locked_until IS NULL OR g.locked_until <= to_timestamp($2::float8)
RETURNING failures
"""
_LEFT = "SELECT extract(epoch FROM locked_until)::float8 - $2::float8 FROM factor_guard WHERE person = $1"


class Guard:
    """Counts attempts and locks; a person's right code clears it.

    Args:
        pool: The database.
        clock: Unix seconds.
    """

    def __init__(self, pool: Pool, clock: Callable[[], float]) -> None:
        self._pool, self._clock = pool, clock

    async def attempt(self, person: str) -> int:
        """Count one attempt and return how many there were since the last right code.

        Raises:
            RateLimited: There were too many wrong ones; nothing is looked at for a while.
        """
        now = self._clock()
        found: int | None = await self._pool.fetchval(
            _ATTEMPT, person, now, _FORGOTTEN_S, ATTEMPTS, LOCKED_S, _LOCKED_MAX_S
        )
        if found is not None:
            return found
        left: float | None = await self._pool.fetchval(_LEFT, person, now)
        wait = max(1.0, left or LOCKED_S)
        raise RateLimited(
            f"Too many wrong codes for {person}: no code of theirs is looked at for {round(wait)} s.",
            next_step="Wait that long. If those attempts were not yours, somebody is guessing: tell your operator; a passkey is not locked.",
            retry_after_s=wait,
        )

    async def clear(self, person: str) -> None:
        """Forget the attempts: this one was right."""
        await self._pool.execute("DELETE FROM factor_guard WHERE person = $1", person)
