"""Owns checkpoints: a chain of its own whose records list the heads of every writer that may have moved since the one before."""

from __future__ import annotations

from dataclasses import dataclass
from hmac import compare_digest
from typing import Any, NamedTuple

import orjson

from body_broker.audit.chain import genesis, key_id, link
from body_broker.audit.ledger import LOCK
from body_broker.storage.postgres import Connection, Pool

CHAIN = "checkpoints"
"""The name under which checkpoints are chained; no writer can have it."""

_LAST_TWO = "SELECT number, mac, body FROM audit_checkpoint ORDER BY number DESC LIMIT 2"

# A closed writer never moves again: its head is listed once more, as closed, and then no longer.
_HEADS = """
SELECT writer, number, seq, mac, closed FROM audit_writer
CROSS JOIN LATERAL (
    SELECT seq, encode(mac, 'hex') AS mac, body::jsonb ->> 'kind' = 'closed' AS closed
    FROM audit_record WHERE audit_record.writer = audit_writer.writer
    ORDER BY seq DESC LIMIT 1
) AS head
WHERE number > $1::bigint OR writer = ANY ($2::text[])
ORDER BY number
"""


class Head(NamedTuple):
    """Where a writer's chain stood: the last record's sequence number, its MAC in hex, and whether it was the closing one."""

    writer: str
    sequence: int
    mac: str
    closed: bool


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """One checkpoint as stored.

    Attributes:
        number: Counts from 1 without a gap.
        mac: Links it to the checkpoint before.
        body: The JSON that the MAC covers.
        at: Unix seconds of the database's clock.
        key_id: Which key made it.
        writers: The number of the last writer it knows.
        heads: Of the writers that may have moved.
    """

    number: int
    mac: bytes
    body: str
    at: float
    key_id: str
    writers: int
    heads: tuple[Head, ...]


async def checkpoint(pool: Pool, key: bytes) -> Checkpoint:
    """Pin the heads of all writers and return the checkpoint; the last one again where nothing has moved since.

    Checkpoints are numbered and chained under a lock, so that any process may make one at any time.
    """
    async with pool.acquire() as connection, connection.transaction():
        await connection.execute("SELECT pg_advisory_xact_lock($1::bigint)", LOCK)
        last, vouched = await _last(connection, key)
        # One that this key did not make (tampered with, or before a change of key) is no ground to leave anything out.
        known = last.writers if last and vouched else 0
        still = [head for head in last.heads if not head.closed] if last and vouched else []
        rows = await connection.fetch(_HEADS, known, [head.writer for head in still])
        heads = [Head(row["writer"], row["seq"], row["mac"], row["closed"]) for row in rows]
        if last and vouched and heads == still:
            return last
        at: float = await connection.fetchval("SELECT extract(epoch FROM clock_timestamp())::float8")
        number = last.number + 1 if last else 1
        body = orjson.dumps(
            {
                "seq": number,
                "at": at,
                "key": key_id(key),
                "writers": max([known, *(row["number"] for row in rows)]),
                "heads": [tuple(head) for head in heads],
            },
        )
        mac = link(key, CHAIN, last.mac if last else genesis(key, CHAIN, 0), number, body)
        await connection.execute(
            "INSERT INTO audit_checkpoint (number, mac, body) VALUES ($1::bigint, $2, $3)", number, mac, body.decode()
        )
        return read(number, mac, body.decode())


def read(number: int, mac: bytes, body: str) -> Checkpoint:
    """A checkpoint from its stored form.

    Raises:
        ValueError: The body is not a checkpoint's; nobody but a tamperer writes another.
    """
    try:
        fields: dict[str, Any] = orjson.loads(body)
        heads = tuple(Head(str(w), int(s), bytes.fromhex(m).hex(), bool(c)) for w, s, m, c in fields["heads"])
        return Checkpoint(number, mac, body, float(fields["at"]), str(fields["key"]), int(fields["writers"]), heads)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError("not a checkpoint") from error


async def _last(connection: Connection, key: bytes) -> tuple[Checkpoint | None, bool]:
    """The last checkpoint, and whether this key made it."""
    rows = await connection.fetch(_LAST_TWO)
    if not rows:
        return None, False
    number, mac, body = rows[0]
    before: bytes = rows[1]["mac"] if len(rows) > 1 else genesis(key, CHAIN, 0)
    vouched = compare_digest(link(key, CHAIN, before, number, body.encode()), mac)
    try:
        return read(number, mac, body), vouched
    except ValueError:
        return Checkpoint(number, mac, body, 0.0, "", 0, ()), False
