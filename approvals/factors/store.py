"""Owns the tables of factors and enrolments: what is sealed and to what, what counts, and that nothing is used twice."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import asyncpg
import orjson
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from approvals.factors.model import INVITE_S, FactorInfo, Invitation
from approvals.model import Factor
from body_broker.calls import Json
from body_broker.errors import Conflict, NotFound
from body_broker.storage.postgres import Connection, Pool
from body_broker.telemetry import get_logger

log = get_logger(__name__)

_NONCE_BYTES = 12
_LOCK = 0x66616374  # "fact": whether a factor is the installation's first is asked by one at a time
# $1 is now.
_COUNTING = """
SELECT * FROM factor
WHERE confirmed_at IS NOT NULL AND revoked_at IS NULL AND (expires_at IS NULL OR expires_at > to_timestamp($1::float8))
"""
_LASTING = _COUNTING + "AND expires_at IS NULL\n"
_USE_STEP = """
UPDATE factor SET last_step = $3::bigint
WHERE confirmed_at IS NOT NULL AND revoked_at IS NULL AND (expires_at IS NULL OR expires_at > to_timestamp($1::float8))
  AND id = $2 AND last_step < $3::bigint RETURNING id
"""
_COUNT_SIGNATURE = """
UPDATE factor SET sign_count = $3::bigint
WHERE confirmed_at IS NOT NULL AND revoked_at IS NULL AND (expires_at IS NULL OR expires_at > to_timestamp($1::float8))
  AND id = $2 AND (sign_count < $3::bigint OR (sign_count = 0 AND $3::bigint = 0)) RETURNING id
"""
_INFO = """
SELECT id, person, kind, label, created_at, confirmed_by, revoked_by, expires_at,
       CASE WHEN revoked_at IS NOT NULL THEN 'revoked' WHEN expires_at <= to_timestamp($1::float8) THEN 'expired'
            WHEN confirmed_at IS NULL THEN 'waiting' ELSE 'counts' END AS standing
FROM factor
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """A factor that counts, with its secret opened."""

    id: str
    person: str
    secret: bytes = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class New:
    """A factor about to be kept."""

    id: str
    person: str
    kind: Factor
    label: str
    secret: bytes = field(repr=False)
    credential: bytes | None = None
    sign_count: int = 0
    last_step: int = 0
    expires_at: int | None = None


class FactorStore:
    """Rows of `factor`, and of `page_challenge` for enrolments.

    Args:
        pool: The database.
        key: 32 bytes under which secrets are sealed.
        clock: Unix seconds.
        throw_aways: Whether throw-away factors are looked at; else they prove nothing.
    """

    def __init__(self, pool: Pool, key: bytes, clock: Callable[[], float], *, throw_aways: bool = False) -> None:
        self._pool, self._seal, self._clock = pool, AESGCM(key), clock
        self._counting = _COUNTING if throw_aways else _LASTING

    async def infos(self, person: str | None = None) -> list[FactorInfo]:
        """Factors of one person or of everybody, oldest first."""
        rows = await self._pool.fetch(
            _INFO + "WHERE $2::text IS NULL OR person = $2 ORDER BY created_at, id", self._clock(), person
        )
        return [FactorInfo(**dict(row)) for row in rows]

    async def info(self, factor: str) -> FactorInfo:
        """One factor.

        Raises:
            NotFound: There is none with this id.
        """
        row = await self._pool.fetchrow(_INFO + "WHERE id = $2", self._clock(), factor)
        if row is None:
            raise NotFound("No factor has this id.", next_step="`body-broker mfa list` shows them.")
        return FactorInfo(**dict(row))

    async def anybody(self) -> bool:
        """Whether any lasting factor counts."""
        return await self._pool.fetchrow(_LASTING + "LIMIT 1", self._clock()) is not None

    async def held(self, person: str, kind: Factor) -> list[Held]:
        """The person's factors of a kind that count."""
        rows = await self._pool.fetch(
            self._counting + "AND person = $2 AND kind = $3 ORDER BY id", self._clock(), person, kind
        )
        return [held for row in rows if (held := self._open(row)) is not None]

    async def by_credential(self, credential: bytes) -> Held | None:
        """The passkey of this credential id, where it counts."""
        row = await self._pool.fetchrow(self._counting + "AND credential = $2", self._clock(), credential)
        return None if row is None else self._open(row)

    async def use_step(self, factor: str, step: int) -> bool:
        """Take a TOTP step; False where it, or a later one, was taken before."""
        return await self._pool.fetchval(_USE_STEP, self._clock(), factor, step) is not None

    async def count_signature(self, factor: str, count: int) -> bool:
        """Move a passkey's counter on; False where it did not grow, as a copy's would not. Those that keep none say 0 always."""
        return await self._pool.fetchval(_COUNT_SIGNATURE, self._clock(), factor, count) is not None

    async def add(self, new: New, *, confirmed_by: str | None) -> None:
        """Keep a factor; with `confirmed_by` it counts at once, which holds only while no other does.

        Raises:
            Conflict: Another became the first meanwhile, or the passkey is enrolled already.
        """
        sealed = self._sealed(new, confirmed_by)
        try:
            async with self._pool.acquire() as connection, connection.transaction():
                await connection.execute("SELECT pg_advisory_xact_lock($1::bigint)", _LOCK)
                await self._insert(connection, new, sealed, confirmed_by)
        except asyncpg.UniqueViolationError as error:
            raise Conflict("This passkey is enrolled already.", next_step="Use it, or enrol another device.") from error

    async def confirm(self, factor: str, by: str) -> None:
        """Let a waiting factor count.

        Raises:
            NotFound: There is none with this id.
            Conflict: It does not wait any more, or was not sealed by this installation.
        """
        row = await self._pool.fetchrow("SELECT * FROM factor WHERE id = $1", factor)
        if row is None:
            raise NotFound("No factor has this id.", next_step="`body-broker mfa list` shows them.")
        held = self._open(row)
        done = None
        if held is not None and row["confirmed_at"] is None:
            # Sealed anew: whoever can only write the database cannot make a waiting factor count.
            sealed = self._sealed(_again(row, held.secret), by)
            done = await self._pool.fetchval(
                """
                UPDATE factor SET sealed = $2, confirmed_at = now(), confirmed_by = $3
                WHERE id = $1 AND confirmed_at IS NULL AND revoked_at IS NULL RETURNING id
                """,
                *(factor, sealed, by),
            )
        if done is None:
            raise Conflict(
                "This factor does not wait to be confirmed.", next_step="`body-broker mfa list` shows how it stands."
            )

    async def revoke(self, factor: str, by: str) -> bool:
        """End a factor, forget its secret and end the logins made with it; False where it had ended before."""
        done = await self._pool.fetchval(
            """
            WITH ended AS (
              UPDATE factor SET revoked_at = now(), revoked_by = $2, sealed = ''::bytea
              WHERE id = $1 AND revoked_at IS NULL RETURNING id
            ), gone AS (DELETE FROM page_login WHERE factor = $1)
            SELECT id FROM ended
            """,
            *(factor, by),
        )
        return done is not None

    async def invite(self, person: str, *, first: bool) -> tuple[str, datetime]:
        """A token for one enrolment, and when it ends; `first` where what comes of it may be the installation's first."""
        token = secrets.token_urlsafe(24)
        row = await self._pool.fetchval(
            """
            INSERT INTO page_challenge (id, purpose, person, body, expires_at)
            VALUES ($1, 'enroll', $2, '{}'::jsonb, to_timestamp($3::float8)) RETURNING expires_at
            """,
            *(_hash(token), person, self._clock() + INVITE_S),
        )
        if first:
            await self.begin(token, {"first": True})
        return token, row

    async def invitation(self, token: str) -> tuple[Invitation, dict[str, Json]]:
        """What a token stands for, and what its enrolment has come to.

        Raises:
            NotFound: It was used, is too old, or never was.
        """
        row = await self._pool.fetchrow(
            """
            SELECT person, body::text AS body, expires_at FROM page_challenge
            WHERE id = $1 AND purpose = 'enroll' AND expires_at > to_timestamp($2::float8)
            """,
            *(_hash(token), self._clock()),
        )
        if row is None:
            raise _spent()
        body, first = self._unpack(row["body"], token), not await self.anybody()
        found = Invitation(
            person=row["person"], first=first, by_approver=body.get("first") is True, expires_at=row["expires_at"]
        )
        return found, body

    async def begin(self, token: str, body: Mapping[str, Json]) -> None:
        """Keep what an enrolment has come to, sealed under the installation's key."""
        nonce = secrets.token_bytes(_NONCE_BYTES)
        sealed = nonce + self._seal.encrypt(nonce, orjson.dumps(dict(body)), b"enrol " + _hash(token))
        await self._pool.execute(
            "UPDATE page_challenge SET body = $2::text::jsonb WHERE id = $1 AND purpose = 'enroll'",
            *(_hash(token), orjson.dumps({"sealed": sealed.hex()}).decode()),
        )

    async def spend(self, token: str) -> None:
        """Use an enrolment's token up.

        Raises:
            NotFound: Somebody else did.
        """
        gone = await self._pool.fetchval(
            "DELETE FROM page_challenge WHERE id = $1 AND purpose = 'enroll' RETURNING person", _hash(token)
        )
        if gone is None:
            raise _spent()

    async def _insert(self, connection: Connection, new: New, sealed: bytes, confirmed_by: str | None) -> None:
        if confirmed_by is not None and await connection.fetchrow(_LASTING + "LIMIT 1", self._clock()):
            raise Conflict(
                "Somebody else has enrolled the first factor meanwhile.",
                next_step="Begin again: yours is then confirmed by them.",
            )
        await connection.execute(
            """
            INSERT INTO factor (id, person, kind, label, sealed, credential, sign_count, last_step, confirmed_at, confirmed_by, expires_at)
            VALUES ($1, $2, $3, $4, $5, $6, $7::bigint, $8::bigint, CASE WHEN $9::text IS NOT NULL THEN now() END, $9,
                    to_timestamp($10::float8))
            """,
            *(new.id, new.person, new.kind, new.label, sealed, new.credential, new.sign_count, new.last_step),
            *(confirmed_by, new.expires_at),
        )

    def _sealed(self, new: New, confirmed_by: str | None) -> bytes:
        nonce = secrets.token_bytes(_NONCE_BYTES)
        return nonce + self._seal.encrypt(
            nonce, new.secret, _bound(new.id, new.person, new.kind, confirmed_by, new.expires_at)
        )

    def _open(self, row: asyncpg.Record) -> Held | None:
        bound = _bound(row["id"], row["person"], row["kind"], row["confirmed_by"], _seconds(row["expires_at"]))
        sealed: bytes = row["sealed"]
        try:
            secret = self._seal.decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], bound)
        except (InvalidTag, ValueError):
            # Written past this program, moved to another person, or sealed under another root key: it counts for nobody.
            log.error("factor_seal_broken", factor=row["id"])  # noqa: TRY400 - the traceback says nothing more
            return None
        return Held(id=row["id"], person=row["person"], secret=secret)

    def _unpack(self, body: str, token: str) -> dict[str, Json]:
        kept: dict[str, Any] = orjson.loads(body)
        if "sealed" not in kept:
            return {}
        sealed = bytes.fromhex(kept["sealed"])
        try:
            opened = self._seal.decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], b"enrol " + _hash(token))
        except InvalidTag as error:
            raise _spent() from error
        return orjson.loads(opened)


def _again(row: asyncpg.Record, secret: bytes) -> New:
    return New(
        id=row["id"],
        person=row["person"],
        kind=row["kind"],
        label=row["label"],
        secret=secret,
        expires_at=_seconds(row["expires_at"]),
    )


def _bound(factor: str, person: str, kind: str, confirmed_by: str | None, expires_at: int | None) -> bytes:
    return orjson.dumps(["factor.v1", factor, person, kind, confirmed_by, expires_at])


def _seconds(at: datetime | None) -> int | None:
    return None if at is None else int(at.timestamp())


def _hash(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()


def _spent() -> NotFound:
    return NotFound(
        "This enrolment was used, is more than ten minutes old, or never began.",
        next_step="Begin a new one: body-broker mfa enroll --as person:NAME.",
    )
