"""Owns the rows of a chain and the SQL that writes them: a writer's registration, and appends that are harmless to repeat."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import asyncpg

from body_broker.audit.chain import Chain
from body_broker.audit.record import Record, encode
from body_broker.errors import Conflict, TooLarge
from body_broker.storage.postgres import LOST, Connection

NOT_TAKEN = (*LOST, asyncpg.PostgresError, asyncpg.InternalClientError)
"""What a database that is away, stopping, starting, full or read-only raises; the same statement may work later."""
BODY_BYTES_MAX = 16 * 1024 * 1024
LOCK = 0x61756474  # "audt": registrations and checkpoints, one at a time over all processes

_REGISTER = """
INSERT INTO audit_writer (writer, number, key_id)
SELECT $1, coalesce(max(number), 0) + 1, $2 FROM audit_writer
RETURNING number
"""

# The records come last, so that the command's tag counts them.
_APPEND = """
WITH incoming AS (
    SELECT * FROM unnest($2::bigint[], $3::bytea[], $4::text[], $5::bytea[]) AS incoming (seq, mac, body, content)
), bodies AS (
    INSERT INTO audit_body (writer, seq, content)
    SELECT $1, seq, content FROM incoming WHERE content IS NOT NULL
    ON CONFLICT DO NOTHING
)
INSERT INTO audit_record (writer, seq, mac, body)
SELECT $1, seq, mac, body FROM incoming
ON CONFLICT DO NOTHING
"""

_HELD = """
SELECT count(*) FROM audit_record
JOIN unnest($2::bigint[], $3::bytea[]) AS ours (seq, mac) USING (seq, mac)
WHERE writer = $1
"""


class Row(NamedTuple):
    """One record on its way into the database."""

    sequence: int
    mac: bytes
    body: str
    content: bytes | None


def chained(chain: Chain, record: Record, now: float, body: bytes | None = None) -> Row:
    """The record as the chain's next row.

    Raises:
        TooLarge: The body is over BODY_BYTES_MAX; the chain has not grown.
    """
    digest = record.digest
    if body is not None:
        if len(body) > BODY_BYTES_MAX:
            raise TooLarge("The arguments are larger than the audit keeps.", details={"limit_bytes": BODY_BYTES_MAX})
        digest = hashlib.sha256(body).hexdigest()
    text = encode(record, chain.sequence + 1, now if record.at is None else record.at, digest)
    mac = chain.extend(text)
    return Row(chain.sequence, mac, text.decode(), body)


async def register(connection: Connection, writer: str, key: str, first: Callable[[int], Row]) -> None:
    """Give a writer the next number and append its first record, both or neither.

    Args:
        connection: Not in a transaction.
        writer: The new chain's name.
        key: The key's id.
        first: Makes the first row, once the number is known.
    """
    async with connection.transaction():
        await connection.execute("SELECT pg_advisory_xact_lock($1::bigint)", LOCK)
        number: int = await connection.fetchval(_REGISTER, writer, key)
        await append(connection, writer, [first(number)])


async def append(connection: Connection, writer: str, rows: Sequence[Row]) -> None:
    """Append rows to one chain in one statement; rows that an earlier attempt has already committed are found, not doubled.

    Raises:
        Conflict: The chain holds something else at one of these numbers: it has a second writer, or was tampered with.
    """
    sequences, macs, bodies, contents = (list(column) for column in zip(*rows, strict=True))
    tag = await connection.execute(_APPEND, writer, sequences, macs, bodies, contents)
    if tag == f"INSERT 0 {len(rows)}":
        return
    held: int = await connection.fetchval(_HELD, writer, sequences, macs)
    if held != len(rows):
        raise Conflict(
            "The audit chain of this process holds records that it did not write.",
            next_step="Run `body-broker audit verify`, then restart this process: it begins a new chain.",
        )
