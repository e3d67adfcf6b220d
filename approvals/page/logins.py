"""Owns logins to the pages: who a browser is until when, what it was given to sign, and the token that proves a form is ours."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import orjson

from body_broker.calls import Json
from body_broker.errors import RateLimited
from body_broker.storage.postgres import Pool

How = Literal["passkey", "totp", "oidc"]
Purpose = Literal["login", "enroll", "oidc"]
LOGIN_TTL_S = 8 * 3600
CHALLENGE_TTL_S = 300
OPEN_MAX = 10_000
"""Logins that strangers may have begun at once: they are kept, and nobody may fill the database with them."""
_OPEN = """
SELECT count(*) FROM (
  SELECT 1 FROM page_challenge WHERE purpose = $1 AND expires_at > clock_timestamp() LIMIT $2::int
) AS begun
"""


@dataclass(frozen=True, slots=True)
class Login:
    """Who a browser is: `how` says what proved it."""

    person: str
    how: How


def new_secret() -> str:
    """What only one browser holds."""
    return secrets.token_urlsafe(32)


def form_token(cookie: str) -> str:
    """The token that every form of this browser carries: made of a cookie that no other site can read."""
    return hashlib.sha256(b"body-broker form\0" + cookie.encode()).hexdigest()


def form_is_ours(cookie: str, token: str) -> bool:
    """Whether a form was made for the holder of this cookie."""
    return bool(cookie) and hmac.compare_digest(form_token(cookie).encode(), token.encode())


class Logins:
    """The logins and challenges in the database, under hashes.

    Args:
        pool: The database.
        open_max: Logins that may be begun at once.
    """

    def __init__(self, pool: Pool, *, open_max: int = OPEN_MAX) -> None:
        self._pool, self._open_max = pool, open_max

    async def begin(self, person: str, how: How) -> str:
        """A new login; the cookie's value comes back and is kept nowhere."""
        held = new_secret()
        await self._pool.execute(
            "INSERT INTO page_login (id, person, how, expires_at)"
            " VALUES ($1, $2, $3, clock_timestamp() + $4::float8 * interval '1 second')",
            _hash(held),
            person,
            how,
            float(LOGIN_TTL_S),
        )
        return held

    async def find(self, held: str) -> Login | None:
        """Who holds this cookie; None where nobody does any more."""
        if not held:
            return None
        row = await self._pool.fetchrow(
            "SELECT person, how FROM page_login WHERE id = $1 AND expires_at > clock_timestamp()", _hash(held)
        )
        return Login(row["person"], row["how"]) if row else None

    async def end(self, held: str) -> None:
        """Forget a login."""
        await self._pool.execute("DELETE FROM page_login WHERE id = $1", _hash(held))

    async def challenge(
        self, held: str, purpose: Purpose, body: Mapping[str, Json], *, person: str | None = None
    ) -> None:
        """Keep what the holder of this secret was given; what it was given before for the same is forgotten.

        Raises:
            RateLimited: Too many have begun without coming to an end.
        """
        open_now: int = await self._pool.fetchval(_OPEN, purpose, self._open_max)
        if open_now >= self._open_max:
            raise RateLimited("Too many logins are begun at this moment.", retry_after_s=CHALLENGE_TTL_S)
        await self._pool.execute(
            "INSERT INTO page_challenge (id, purpose, person, body, expires_at)"
            " VALUES ($1, $2, $3, $4::text::jsonb, clock_timestamp() + $5::float8 * interval '1 second')"
            " ON CONFLICT (id) DO UPDATE SET body = excluded.body, person = excluded.person, expires_at = excluded.expires_at",
            _hash(f"{purpose}\0{held}"),
            purpose,
            person,
            orjson.dumps(dict(body)).decode(),
            float(CHALLENGE_TTL_S),
        )

    async def take_challenge(self, held: str, purpose: Purpose) -> dict[str, Json] | None:
        """What the holder was given, once; None where nothing, or too long ago."""
        found: str | None = await self._pool.fetchval(
            "DELETE FROM page_challenge WHERE id = $1 AND expires_at > clock_timestamp() RETURNING body::text",
            _hash(f"{purpose}\0{held}"),
        )
        return orjson.loads(found) if found else None


def _hash(held: str) -> bytes:
    return hashlib.sha256(held.encode()).digest()
