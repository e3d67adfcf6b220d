"""Owns logins to the pages: who a browser is until when, what it was given to sign, and the token that proves a form is ours."""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import orjson
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from body_broker.calls import Json
from body_broker.storage.postgres import Pool

How = Literal["passkey", "totp", "oidc"]
Purpose = Literal["login", "oidc"]
LOGIN_TTL_S = 8 * 3600
PLAIN_LOGIN_TTL_S = 3600
"""On plain http at localhost, where every port of the machine gets the cookie."""
CHALLENGE_TTL_S = 300
_NONCE_BYTES = 12
_KEEP = """
INSERT INTO page_challenge (id, purpose, person, body, expires_at)
VALUES ($1, $2, $3, $4::text::jsonb, clock_timestamp() + $5::float8 * interval '1 second')
"""
_FIND = """
SELECT person FROM page_login AS l
WHERE id = $1 AND expires_at > clock_timestamp() AND (factor IS NULL OR EXISTS (
  SELECT 1 FROM factor AS f
  WHERE f.id = l.factor AND revoked_at IS NULL AND (f.expires_at IS NULL OR f.expires_at > clock_timestamp())))
"""


@dataclass(frozen=True, slots=True)
class Login:
    """Who a browser is."""

    person: str


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
    """The logins and challenges in the database, under hashes; what a stranger was given is kept by their browser, sealed.

    Args:
        pool: The database.
        key: 32 bytes under which that is sealed.
    """

    def __init__(self, pool: Pool, key: bytes) -> None:
        self._pool, self._seal = pool, AESGCM(key)

    async def begin(self, person: str, how: How, factor: str | None = None, *, ttl_s: float = LOGIN_TTL_S) -> str:
        """A new login; the cookie's value comes back and is kept nowhere.

        Args:
            person: Who.
            how: What proved it.
            factor: The id of the factor that did: the login ends with it.
            ttl_s: How long it holds at most.
        """
        held = new_secret()
        await self._pool.execute(
            "INSERT INTO page_login (id, person, how, factor, expires_at)"
            " VALUES ($1, $2, $3, $4, clock_timestamp() + $5::float8 * interval '1 second')",
            _hash(held),
            person,
            how,
            factor,
            float(ttl_s),
        )
        return held

    async def find(self, held: str) -> Login | None:
        """Who holds this cookie; None where nobody does any more."""
        if not held:
            return None
        row = await self._pool.fetchrow(_FIND, _hash(held))
        return Login(row["person"]) if row else None

    async def end(self, held: str) -> None:
        """Forget a login."""
        await self._pool.execute("DELETE FROM page_login WHERE id = $1", _hash(held))

    def sealed(self, purpose: Purpose, holder: str, body: Mapping[str, Json], now: float) -> str:
        """What the holder of this secret is to bring back within five minutes, for a cookie."""
        nonce = secrets.token_bytes(_NONCE_BYTES)
        text = orjson.dumps({"body": dict(body), "until": now + CHALLENGE_TTL_S, "once": secrets.token_hex(16)})
        return base64.urlsafe_b64encode(nonce + self._seal.encrypt(nonce, text, _bound(purpose, holder))).decode()

    def opened(self, purpose: Purpose, holder: str, sealed: str, now: float) -> dict[str, Any] | None:
        """What `sealed` made for this holder: `body`, and what `use` takes; None where it did not, or too long ago."""
        try:
            raw = base64.urlsafe_b64decode(sealed)
            found = self._seal.decrypt(raw[:_NONCE_BYTES], raw[_NONCE_BYTES:], _bound(purpose, holder))
        except (ValueError, InvalidTag):
            return None
        kept: dict[str, Any] = orjson.loads(found)
        return kept if kept["until"] > now else None

    async def use(self, opened: Mapping[str, Any]) -> bool:
        """Use it up, once its holder has shown who they are: strangers write nothing. False where it was used before."""
        kept: bool | None = await self._pool.fetchval(
            _KEEP + " ON CONFLICT DO NOTHING RETURNING true", *_row(f"used\0{opened['once']}", "used", None, {})
        )
        return kept is True

    async def challenge(self, held: str, body: Mapping[str, Json], *, person: str) -> None:
        """Keep what somebody who is logged in was given to sign; what they were given before is forgotten."""
        await self._pool.execute(
            _KEEP + " ON CONFLICT (id) DO UPDATE SET body = excluded.body, expires_at = excluded.expires_at",
            *_row(f"enroll\0{held}", "enroll", person, body),
        )

    async def take_challenge(self, held: str) -> dict[str, Json] | None:
        """What the holder was given, once; None where nothing, or too long ago."""
        found: str | None = await self._pool.fetchval(
            "DELETE FROM page_challenge WHERE id = $1 AND expires_at > clock_timestamp() RETURNING body::text",
            _hash(f"enroll\0{held}"),
        )
        return orjson.loads(found) if found else None


def _row(name: str, purpose: str, person: str | None, body: Mapping[str, Json]) -> tuple[object, ...]:
    return (_hash(name), purpose, person, orjson.dumps(dict(body)).decode(), float(CHALLENGE_TTL_S))


def _bound(purpose: str, holder: str) -> bytes:
    return f"page {purpose}\0{holder}".encode()


def _hash(held: str) -> bytes:
    return hashlib.sha256(held.encode()).digest()
