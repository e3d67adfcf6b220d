"""Owns the schema's versions: numbered SQL files, applied in order under an advisory lock; a newer schema is refused."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources

import asyncpg

from body_broker.errors import SchemaTooNew, StoreStartError
from body_broker.storage.postgres import LOST, Connection, Pool

_LOCK = 0x626F6479  # "body": one migrator at a time, whatever process it is in
_PATIENCE_S = 600


@dataclass(frozen=True, slots=True)
class Migration:
    """One numbered file of body_broker/storage/sql."""

    number: int
    name: str
    sql: str


def migrations() -> list[Migration]:
    """Every migration this program knows, in order, numbered 1, 2, 3 without a gap."""
    found: list[Migration] = []
    for file in sorted(resources.files("body_broker.storage").joinpath("sql").iterdir(), key=lambda f: f.name):
        if file.name.endswith(".sql"):
            number, _, name = file.name.removesuffix(".sql").partition("_")
            found.append(Migration(int(number), name, file.read_text("utf-8")))
    assert [m.number for m in found] == list(range(1, len(found) + 1)), "migrations are numbered without a gap"
    return found


async def migrate(pool: Pool, known: Sequence[Migration] | None = None) -> int:
    """Bring the schema to this program's version and return that version; safe to run by many processes at once.

    All of it or nothing: one transaction, under a lock that the others wait for.

    Args:
        pool: The database.
        known: The migrations this program knows, where they are not those of body_broker/storage/sql.

    Raises:
        SchemaTooNew: The database was migrated by a newer program.
        StoreStartError: A migration does not apply, or the database was migrated by another program.
    """
    known = await asyncio.to_thread(migrations) if known is None else known
    try:
        async with pool.acquire() as connection, connection.transaction():
            # Waiting for another migrator, or building an index, takes as long as it takes.
            await connection.execute(f"SET LOCAL statement_timeout = {_PATIENCE_S * 1000}")
            await connection.execute("SELECT pg_advisory_xact_lock($1::bigint)", _LOCK, timeout=_PATIENCE_S)
            await connection.execute(
                "CREATE TABLE IF NOT EXISTS schema_version (number integer PRIMARY KEY, name text NOT NULL, at timestamptz NOT NULL DEFAULT now())",
            )
            present = await connection.fetch("SELECT number, name FROM schema_version ORDER BY number")
            _refuse_foreign([(row["number"], row["name"]) for row in present], known)
            for migration in known[len(present) :]:
                await _apply(connection, migration)
    except (*LOST, asyncpg.PostgresError) as error:
        raise StoreStartError(
            "The database's schema cannot be brought up to date.",
            next_step="The log has the cause; the role of BODY_BROKER_DATABASE_URL must own its database.",
        ) from error
    return len(known)


def _refuse_foreign(present: Sequence[tuple[int, str]], known: Sequence[Migration]) -> None:
    if len(present) > len(known):
        raise SchemaTooNew(f"The database has schema {len(present)}; this program knows {len(known)}.")
    for (number, name), migration in zip(present, known, strict=False):
        if (number, name) != (migration.number, migration.name):
            raise StoreStartError(
                f"The database's schema {number} is {name}, here it is {migration.name}: another program made it.",
                next_step="Point BODY_BROKER_DATABASE_URL at another database.",
            )


async def _apply(connection: Connection, migration: Migration) -> None:
    try:
        await connection.execute(migration.sql, timeout=_PATIENCE_S)
    except (asyncpg.FeatureNotSupportedError, asyncpg.UndefinedFileError, asyncpg.InsufficientPrivilegeError) as error:
        raise StoreStartError(
            f"Migration {migration.number} ({migration.name}) needs something that this PostgreSQL does not give it.",
            next_step="Install pgvector 0.7 or newer, and let an administrator of the database run CREATE EXTENSION vector.",
        ) from error
    except asyncpg.PostgresError as error:
        raise StoreStartError(f"Migration {migration.number} ({migration.name}) does not apply.") from error
    await connection.execute(
        "INSERT INTO schema_version (number, name) VALUES ($1::integer, $2)", migration.number, migration.name
    )
