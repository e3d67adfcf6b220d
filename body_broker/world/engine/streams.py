"""Owns how messages lie in Redis Streams: one entry each, one field; read from an id on, written with a bound."""

from __future__ import annotations

from typing import Any, cast

from pydantic import BaseModel

from body_broker.storage.redis import Redis
from body_broker.world.engine.coding import encode
from body_broker.world.engine.messages import FIELD

KEPT = 10_000
FIRST = "0-0"
_READ_MAX = 64
_BLOCK_MS_MAX = 2_000
"""Less than the client's own limit of a read (body_broker/storage/redis.py): a quiet stream is no lost Redis."""


class Stream:
    """One stream of messages."""

    def __init__(self, redis: Redis, name: str) -> None:
        self._redis, self._name = redis, name

    async def last(self) -> str:
        """The id of the latest entry; reading after it gives what is written from now on."""
        found = cast("list[Any]", await self._redis.xrevrange(self._name, count=1))
        return _text(found[0][0]) if found else FIRST

    async def since(self, age_s: float) -> str:
        """Where to read on to have what was written within the last so many seconds."""
        return f"{await clock_ms(self._redis) - int(age_s * 1000)}-0"

    async def at_most(self, after: str) -> str:
        """Where to read on: an id that is beyond the stream's end is of a stream that is no more, and this one is read whole."""
        return FIRST if _order(await self.last()) < _order(after) else after

    async def latest(self, count: int) -> list[tuple[str, bytes]]:
        """The latest entries, the newest first."""
        return _messages(cast("list[Any]", await self._redis.xrevrange(self._name, count=count)))

    async def add(self, message: BaseModel | bytes) -> str:
        """Write a message; its entry's id."""
        raw = message if isinstance(message, bytes) else encode(message)
        fields: dict[Any, Any] = {FIELD: raw}  # redis-py is invariant in its field types
        return _text(await self._redis.xadd(self._name, fields, maxlen=KEPT, approximate=True))

    async def read(self, after: str, *, block_ms: int | None = None, count: int = _READ_MAX) -> list[tuple[str, bytes]]:
        """Entries after an id with their messages, waiting for one where there is none; an entry without the field is empty.

        Args:
            after: The id of the last entry that was read.
            block_ms: How long to wait, two seconds at most; None does not.
            count: At most so many.
        """
        wait_ms = None if block_ms is None else min(block_ms, _BLOCK_MS_MAX)
        reply: Any = await self._redis.xread({self._name: after}, count=count, block=wait_ms)
        streams: list[Any] = (
            list(cast("dict[Any, Any]", reply).values())
            if isinstance(reply, dict)
            else [pair[1] for pair in cast("list[Any]", reply or [])]
        )
        found: list[tuple[str, bytes]] = []
        for stream in streams:
            # RESP3 has one list of entries more than RESP2.
            for batch in stream if stream and isinstance(stream[0], list) else [stream]:
                found += _messages(batch)
        return found

    async def forget_before(self, entry: str) -> None:
        """Drop what is older than this entry."""
        await self._redis.xtrim(self._name, minid=entry, approximate=False)


def _messages(entries: list[Any]) -> list[tuple[str, bytes]]:
    # An entry that was trimmed while it was read has no fields.
    return [(_text(entry), cast("dict[bytes, bytes]", fields or {}).get(FIELD, b"")) for entry, fields in entries]


def _text(value: Any) -> str:  # redis-py: bytes, or text where the client decodes
    return value.decode() if isinstance(value, bytes) else str(value)


def _order(entry: str) -> tuple[int, int]:
    at_ms, _, number = entry.partition("-")
    return int(at_ms), int(number or 0)


def written_ms(entry: str) -> int:
    """When an entry was written, on the clock of Redis."""
    return _order(entry)[0]


async def clock_ms(redis: Redis) -> int:
    """The clock of Redis, which entries' ids are of."""
    seconds, micros = await redis.time()  # pyright: ignore[reportUnknownMemberType]  # redis-py's hints
    return seconds * 1000 + micros // 1000
