"""Owns the schema's versions: numbered SQL files, applied in order under an advisory lock; a newer schema is refused."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources

from body_broker.errors import SchemaTooNew, StoreStartError
from body_broker.storage.postgres import Pool

_LOCK = 0x626F6479  # "body": one migrator at a time, whatever process it is in


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


async def migrate(pool: Pool) -> int:
    """Bring the schema to this program's version and return that version; safe to run by many processes at once.

    Raises:
        SchemaTooNew: The database was migrated by a newer program.
        StoreStartError: A migration does not apply.
    """
    known = migrations()
    async with pool.acquire() as connection, connection.transaction():
        await connection.execute("SELECT pg_advisory_xact_lock($1::bigint)", _LOCK)
        await connection.execute(
            "CREATE TABLE IF NOT EXISTS schema_version (number integer PRIMARY KEY, name text NOT NULL, at timestamptz NOT NULL DEFAULT now())",
        )
        present: int = await connection.fetchval("SELECT coalesce(max(number), 0) FROM schema_version")
        if present > len(known):
            raise SchemaTooNew(f"The database has schema {present}; this program knows {len(known)}.")
        for migration in known[present:]:
            try:
                await connection.execute(migration.sql)
            except Exception as error:
                raise StoreStartError(f"Migration {migration.number} ({migration.name}) does not apply.") from error
            await connection.execute(
                "INSERT INTO schema_version (number, name) VALUES ($1::integer, $2)",
                migration.number,
                migration.name,
            )
    return len(known)
