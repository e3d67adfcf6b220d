"""Owns the keys that sign tokens: one signs, retired ones verify until their last token has expired, private halves are sealed."""

from __future__ import annotations

import secrets
from dataclasses import dataclass

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from body_broker.errors import SettingsError
from body_broker.storage.postgres import Connection, Pool

ALGORITHM = "EdDSA"
# A minted token leaves no row, so a retired key outlives whatever a hub that has not noticed yet may still mint with it.
MINTED_TTL_MAX_S = 3600
_NOTICED_WITHIN_S = 60
_LOCK = 0x7369676E  # "sign": issuing shares it, changing keys holds it alone
_NONCE_BYTES = 12


@dataclass(frozen=True, slots=True)
class SigningKey:
    """The key that signs now."""

    kid: str
    private: Ed25519PrivateKey


class SigningKeys:
    """The table of signing keys.

    Args:
        pool: The database.
        seal: 32 bytes under which private keys are encrypted.
    """

    def __init__(self, pool: Pool, seal: bytes) -> None:
        self._pool, self._seal = pool, AESGCM(seal)

    async def ensure(self) -> SigningKey:
        """The key that signs; the first one is made here, once, however many processes ask.

        Raises:
            SettingsError: It was sealed under another root key.
        """
        found = await self._signing(self._pool)
        if found is None:
            async with self._pool.acquire() as connection, connection.transaction():
                await connection.execute("SELECT pg_advisory_xact_lock($1::bigint)", _LOCK)
                found = await self._signing(connection) or await self._make(connection)
        return found

    async def held(self, connection: Connection) -> SigningKey:
        """The key that signs, which is not retired before this transaction ends; call `ensure` before."""
        await connection.execute("SELECT pg_advisory_xact_lock_shared($1::bigint)", _LOCK)
        found = await self._signing(connection)
        assert found is not None, "ensure was called before"
        return found

    async def rotate(self) -> SigningKey:
        """A new key that signs from now on; the old one verifies until its last token has expired."""
        async with self._pool.acquire() as connection, connection.transaction():
            await connection.execute("SELECT pg_advisory_xact_lock($1::bigint)", _LOCK)
            await connection.execute(
                """
                UPDATE signing_key k SET retired_at = now(), verifies_until = greatest(
                  now() + make_interval(secs => $1::float8),
                  (SELECT max(t.expires_at) FROM login_token t WHERE t.kid = k.kid))
                WHERE retired_at IS NULL
                """,
                MINTED_TTL_MAX_S + _NOTICED_WITHIN_S,
            )
            return await self._make(connection)

    async def _make(self, connection: Connection) -> SigningKey:
        made = SigningKey(f"key_{secrets.token_hex(8)}", Ed25519PrivateKey.generate())
        nonce = secrets.token_bytes(_NONCE_BYTES)
        sealed = nonce + self._seal.encrypt(nonce, made.private.private_bytes_raw(), made.kid.encode())
        await connection.execute(
            "INSERT INTO signing_key (kid, public_key, private_sealed) VALUES ($1, $2, $3)",
            made.kid,
            made.private.public_key().public_bytes_raw(),
            sealed,
        )
        return made

    async def _signing(self, executor: Pool | Connection) -> SigningKey | None:
        row = await executor.fetchrow("SELECT kid, private_sealed FROM signing_key WHERE retired_at IS NULL")
        if row is None:
            return None
        kid, sealed = row["kid"], row["private_sealed"]
        try:
            raw = self._seal.decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], kid.encode())
        except InvalidTag as error:
            raise SettingsError(
                "The signing keys in the database were sealed under another root key.",
                next_step="Start with the BODY_BROKER_SECRET_KEY (or data dir) that this database was used with.",
            ) from error
        return SigningKey(kid, Ed25519PrivateKey.from_private_bytes(raw))
