"""Owns pins in PostgreSQL: what an upstream was at first sight is served, and what differs from that only after people accepted it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import asyncpg
import orjson

from body_broker.calls import Json
from body_broker.errors import Conflict
from body_broker.storage.postgres import Connection, Pool
from mcp_servers.upstreams.model import Definition, Kind, Pin

FIRST_SIGHT = "first sight"
CHANNEL = "upstreams"
"""The NOTIFY channel of a trigger on pins, and its payload."""

_ALONE = "SELECT pg_advisory_xact_lock(hashtextextended('upstream ' || $1, 0))"
_READ = """
SELECT upstream, kind, name, state, accepted::text AS accepted, seen::text AS seen FROM upstream_pin
WHERE $1::text IS NULL OR upstream = $1 ORDER BY upstream, kind, name
"""
_LOOKED = """
INSERT INTO upstream (name, told) VALUES ($1, $2::text::jsonb)
ON CONFLICT (name) DO UPDATE SET looked_at = clock_timestamp(), told = excluded.told, failed_at = NULL, failure = NULL
RETURNING (xmax = 0) AS first
"""
_FAILED = "UPDATE upstream SET failed_at = clock_timestamp(), failure = $2 WHERE name = $1"
_FIRST = f"""
INSERT INTO upstream_pin (upstream, kind, name, state, accepted, accepted_digest, accepted_at, accepted_by)
VALUES ($1, $2, $3, 'pinned', $4::text::json, $5, clock_timestamp(), '{FIRST_SIGHT}')
"""  # noqa: S608 - our own words
_NEW = """
INSERT INTO upstream_pin (upstream, kind, name, state, seen, seen_digest, seen_at)
VALUES ($1, $2, $3, 'new', $4::text::json, $5, clock_timestamp())
"""
_SEEN = """
UPDATE upstream_pin SET state = $4, seen = $5::text::json, seen_digest = $6, seen_at = clock_timestamp()
WHERE upstream = $1 AND kind = $2 AND name = $3
"""
_ACCEPT = """
UPDATE upstream_pin SET state = 'pinned', accepted = seen, accepted_digest = seen_digest, accepted_at = clock_timestamp(),
    accepted_by = $5, seen = NULL, seen_digest = NULL
WHERE upstream = $1 AND kind = $2 AND name = $3 AND seen_digest = $4
RETURNING name
"""
_ACCEPTED = """
SELECT 1 FROM upstream_pin
WHERE upstream = $1 AND kind = $2 AND name = $3 AND state = 'pinned' AND accepted_digest = $4 AND accepted_by = $5
"""
# An operator's yes outweighs an earlier no, and whoever sees this definition again after another one asks at once.
_UNREFUSED = """
UPDATE upstream_asked SET refused_at = NULL, asked_at = '-infinity' WHERE upstream = $1 AND kind = $2 AND name = $3 AND digest = $4
"""
_ONE = """
SELECT upstream, kind, name, state, accepted::text AS accepted, seen::text AS seen FROM upstream_pin
WHERE upstream = $1 AND kind = $2 AND name = $3
"""
_ASKED = """
INSERT INTO upstream_asked (upstream, kind, name, digest, approval) VALUES ($1, $2, $3, $4, $5)
ON CONFLICT (upstream, kind, name, digest) DO UPDATE SET asked_at = clock_timestamp(), approval = excluded.approval
"""
_REFUSED = """
UPDATE upstream_asked s SET refused_at = clock_timestamp() FROM approval a
WHERE s.upstream = $1 AND s.refused_at IS NULL AND a.id = s.approval AND a.state = 'denied' AND s.asked_at > '-infinity'
"""
_TO_ASK = """
SELECT p.upstream, p.kind, p.name, p.state, p.accepted::text AS accepted, p.seen::text AS seen, s.approval
FROM upstream_pin p LEFT JOIN upstream_asked s
    ON (s.upstream, s.kind, s.name, s.digest) = (p.upstream, p.kind, p.name, p.seen_digest)
LEFT JOIN approval a ON a.id = s.approval
WHERE p.upstream = $1 AND p.seen_digest IS NOT NULL AND (s.digest IS NULL OR (
    s.refused_at IS NULL AND s.asked_at <= clock_timestamp() - make_interval(secs => $2::float8)
    AND (a.id IS NULL OR a.ended_at IS NOT NULL OR a.expires_at <= clock_timestamp())))
ORDER BY p.seen_at, p.kind, p.name
"""
_OPEN = """
SELECT count(*) FROM upstream_asked s JOIN approval a ON a.id = s.approval
WHERE s.upstream = $1 AND a.state = 'pending' AND a.expires_at > clock_timestamp()
"""


@dataclass(frozen=True, slots=True)
class Seen:
    """What came of one look.

    Attributes:
        first: Whether it was the first, so that everything is pinned as it is.
        withheld: Each that is not served now.
    """

    first: bool
    withheld: tuple[Pin, ...]


@dataclass(frozen=True, slots=True)
class ToAsk:
    """What people are to be asked about.

    Attributes:
        pin: What is withheld.
        before: The approval that asked for it before, and ended without an answer.
    """

    pin: Pin
    before: str | None


class Pins:
    """The pins of every upstream.

    Args:
        pool: The truth.
    """

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def read(self) -> Mapping[str, tuple[Pin, ...]]:
        """Every pin, by upstream."""
        found: dict[str, list[Pin]] = {}
        for row in await self._pool.fetch(_READ, None):
            found.setdefault(row["upstream"], []).append(_pin(row))
        return {name: tuple(pins) for name, pins in found.items()}

    async def saw(self, upstream: str, definitions: Sequence[Definition], told: Mapping[str, Json]) -> Seen:
        """Record one complete look: the first one is trusted, whatever differs from what was accepted is withheld."""
        async with self._pool.acquire() as connection, connection.transaction():
            await connection.execute(_ALONE, upstream)  # two hubs that look for the first time
            first = await connection.fetchval(_LOOKED, upstream, orjson.dumps(dict(told)).decode())
            if first:
                for each in definitions:
                    await connection.execute(_FIRST, upstream, each.kind, each.name, _text(each), each.digest)
                return Seen(first=True, withheld=())
            known = {(pin.kind, pin.name): pin for pin in await _pins(connection, upstream)}
            now = {(each.kind, each.name): each for each in definitions}
            for key, each in now.items():
                await _note(connection, upstream, each, known.get(key))
            for key in known.keys() - now.keys():
                if known[key].state != "gone":
                    await connection.execute(_SEEN, upstream, *key, "gone", None, None)
            withheld = tuple(pin for pin in await _pins(connection, upstream) if pin.state != "pinned")
        return Seen(first=False, withheld=withheld)

    async def failed(self, upstream: str, words: str) -> None:
        """Record that it did not tell what it offers; an upstream that was never seen has nothing to record it at."""
        await self._pool.execute(_FAILED, upstream, words[:500])

    async def to_ask(self, upstream: str, *, again_s: float) -> tuple[ToAsk, ...]:
        """What is withheld and people are to be asked about in its present form, longest known first.

        Args:
            upstream: Whose.
            again_s: After so long it is asked for again, where nobody answered; not where somebody said no.
        """
        await self._pool.execute(_REFUSED, upstream)
        rows = await self._pool.fetch(_TO_ASK, upstream, again_s)
        return tuple(ToAsk(_pin(row), row["approval"]) for row in rows)

    async def count_asked(self, upstream: str) -> int:
        """How many requests about this upstream wait for people."""
        return await self._pool.fetchval(_OPEN, upstream)

    async def asked(self, upstream: str, kind: Kind, name: str, digest: str, approval: str | None) -> None:
        """Note which approval asks people about this definition; None where nobody could be asked."""
        await self._pool.execute(_ASKED, upstream, kind, name, digest, approval)

    async def find(self, upstream: str, kind: Kind, name: str) -> Pin | None:
        """One pin; None where there is none."""
        row = await self._pool.fetchrow(_ONE, upstream, kind, name)
        return None if row is None else _pin(row)

    async def accept(self, upstream: str, kind: Kind, name: str, digest: str, by: str) -> None:
        """Serve what is seen now. Accepted once more by the same, it stays as it is.

        Raises:
            Conflict: That is not what it says now.
        """
        async with self._pool.acquire() as connection, connection.transaction():
            await connection.execute(_ALONE, upstream)
            key = (upstream, kind, name, digest, by)
            if await connection.fetchval(_ACCEPT, *key) is None and not await connection.fetchval(_ACCEPTED, *key):
                raise Conflict(
                    "The upstream server does not say any more what was to be accepted.",
                    next_step="Look at what it says now, and decide on that.",
                    details={"upstream": upstream, "kind": kind},
                )
            await connection.execute(_UNREFUSED, upstream, kind, name, digest)


async def _note(connection: Connection, upstream: str, now: Definition, pin: Pin | None) -> None:
    if pin is None:
        await connection.execute(_NEW, upstream, now.kind, now.name, _text(now), now.digest)
        return
    if pin.accepted is not None and pin.accepted.digest == now.digest:
        if pin.state != "pinned":
            await connection.execute(_SEEN, upstream, now.kind, now.name, "pinned", None, None)
        return
    if pin.seen is not None and pin.seen.digest == now.digest:
        return
    state = "changed" if pin.accepted is not None else "new"
    await connection.execute(_SEEN, upstream, now.kind, now.name, state, _text(now), now.digest)


async def _pins(connection: Connection, upstream: str) -> list[Pin]:
    return [_pin(row) for row in await connection.fetch(_READ, upstream)]


def _pin(row: asyncpg.Record) -> Pin:
    def known(text: str | None) -> Definition | None:
        body: Any = None if text is None else orjson.loads(text)
        return None if text is None else Definition(row["kind"], row["name"], body)

    return Pin(
        upstream=row["upstream"],
        kind=row["kind"],
        name=row["name"],
        state=row["state"],
        accepted=known(row["accepted"]),
        seen=known(row["seen"]),
    )


def _text(definition: Definition) -> str:
    return orjson.dumps(definition.body).decode()
