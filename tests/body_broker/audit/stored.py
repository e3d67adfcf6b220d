"""Owns what the audit's tests ask of the database and of a report."""

from __future__ import annotations

import asyncpg

from body_broker.audit.record import Record
from body_broker.audit.verify import Report
from body_broker.storage.postgres import Pool

KEY = bytes(range(32))


def read_of(number: int) -> Record:
    return Record(kind="decision", action=f"read_{number}", requester="tier:silver", verdict="allow")


async def sequences(pool: Pool, writer: str) -> list[int]:
    rows = await pool.fetch("SELECT seq FROM audit_record WHERE writer = $1 ORDER BY seq", writer)
    return [row["seq"] for row in rows]


async def actions(pool: Pool, writer: str) -> list[str]:
    rows = await pool.fetch("SELECT body::jsonb ->> 'action' FROM audit_record WHERE writer = $1 ORDER BY seq", writer)
    return [row[0] for row in rows if row[0] is not None]


def named(report: Report) -> set[tuple[str, str, int | None]]:
    return {(breach.kind, breach.chain, breach.sequence) for breach in report.breaches}


async def break_connections(database_url: str) -> int:
    """Terminate every other connection to this database, and say how many."""
    connection = await asyncpg.connect(database_url)
    try:
        rows = await connection.fetch(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
        return len(rows)
    finally:
        await connection.close()
