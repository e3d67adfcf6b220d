"""Owns the world in Redis: the keys `npc:{id}` and `world:{region}`, the stream of events, and the news of decisions.

It is a copy for readers that must not ask PostgreSQL; who needs all of it asks there. An engine whose epoch is over leaves
no trace here either: each write names its epoch, and one that knows a later epoch takes nothing.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any, cast

from body_broker.storage.redis import Redis
from body_broker.world.forms import encode, entity_body, event_body
from body_broker.world.model import EVENT_STREAM, Entity, Event, Kind

EVENTS_KEPT = 10_000
DECIDED_STREAM = "world-decided"
"""The Redis stream of changes that were decided: who waits for one looks it up then."""
DECIDED_KEPT = 10_000
EPOCH_KEY = "world-epoch"
_PREFIXES: Mapping[Kind, str] = {"npc": "npc", "region": "world"}
_WRITES_AT_ONCE = 200

# An event's entry has its position as its id, so the stream takes each once and in order, whoever brings it again.
_PUBLISH = """
local known = tonumber(redis.call('GET', KEYS[1]) or '0')
if known == 0 or known > tonumber(ARGV[1]) then return 0 end
redis.call('SET', KEYS[1], ARGV[1])
local at, keys = 5, tonumber(ARGV[2])
for i = 1, keys do
  if ARGV[at] == '' then redis.call('DEL', KEYS[3 + i]) else redis.call('SET', KEYS[3 + i], ARGV[at]) end
  at = at + 1
end
for _ = 1, tonumber(ARGV[3]) do
  redis.pcall('XADD', KEYS[2], 'MAXLEN', '~', '%d', ARGV[at] .. '-0', 'event', ARGV[at + 1])
  at = at + 2
end
for _ = 1, tonumber(ARGV[4]) do
  redis.call('XADD', KEYS[3], 'MAXLEN', '~', '%d', '*', 'change', ARGV[at])
  at = at + 1
end
return 1
""" % (EVENTS_KEPT, DECIDED_KEPT)  # noqa: UP031 - Lua is full of braces

# A database that was restored from a backup is behind what this Redis saw: then Redis is what is wrong, and begins anew.
_BEGIN = """
local time = redis.call('TIME')
local known = tonumber(redis.call('GET', KEYS[1]) or '0')
local top = redis.call('XREVRANGE', KEYS[2], '+', '-', 'COUNT', 1)
local ahead = top[1] and tonumber(string.match(top[1][1], '%d+')) > tonumber(ARGV[2])
if known > tonumber(ARGV[1]) or ahead then
  if tonumber(time[1]) * 1000000 + tonumber(time[2]) > tonumber(ARGV[3]) then return 0 end
  redis.call('DEL', KEYS[2])
end
redis.call('SET', KEYS[1], ARGV[1])
return 1
"""


async def publish(
    redis: Redis,
    events: Sequence[Event],
    entities: Mapping[str, Entity],
    *,
    epoch: int,
    decided: Sequence[str] = (),
) -> bool:
    """Tell readers what was recorded.

    Args:
        redis: Where.
        events: In the order of their positions.
        entities: The whole world as these events leave it.
        epoch: Of who publishes.
        decided: The ids of the changes that were decided.

    Returns:
        Whether it was taken; false where a later epoch has published, or where Redis has lost what it held.

    Raises:
        OSError, redis.RedisError: Redis is away; what is missing there is made up for by `rewrite`.
    """
    touched = {event.entity_id for event in events}
    return await _write(redis, epoch, _keys_of(entities[each] for each in touched), events, decided)


async def rewrite(
    redis: Redis,
    entities: Mapping[str, Entity],
    events: Iterable[Event],
    *,
    epoch: int,
    last_pos: int,
    prove: Callable[[], Awaitable[None]],
    proof_s: float,
) -> bool:
    """Make the copy whole: every key anew, none that is no more, and the events that the stream lacks.

    Args:
        redis: Where.
        entities: The whole world.
        events: The latest of the record, in the order of their positions; the stream keeps `EVENTS_KEPT`.
        epoch: Of who writes.
        last_pos: The position of the record's latest event.
        prove: Renews the epoch in PostgreSQL, and raises where it is over.
        proof_s: For how long from then on nobody else can have another.

    Returns:
        Whether it was taken; false where a later epoch has published.
    """
    if not await _begin(redis, epoch, last_pos, prove, proof_s):
        return False
    wanted = _keys_of(entities.values())
    stale = {key: b"" for key in await _present(redis) if key not in wanted}
    found = list({**wanted, **stale}.items())
    for start in range(0, len(found), _WRITES_AT_ONCE):
        if not await _write(redis, epoch, dict(found[start : start + _WRITES_AT_ONCE]), (), ()):
            return False
    kept = list(events)
    for start in range(0, len(kept), _WRITES_AT_ONCE):
        if not await _write(redis, epoch, {}, kept[start : start + _WRITES_AT_ONCE], ()):
            return False
    return True


async def is_kept(redis: Redis, epoch: int) -> bool:
    """Whether Redis still holds the copy that this epoch made whole."""
    found = await redis.get(EPOCH_KEY)
    return found is not None and int(found) == epoch


async def latest(redis: Redis) -> int:
    """The position of the stream's latest event; 0 where it has none."""
    top: Any = await redis.xrevrange(EVENT_STREAM, count=1)
    return int(top[0][0].split(b"-")[0]) if top else 0


async def _begin(redis: Redis, epoch: int, last_pos: int, prove: Callable[[], Awaitable[None]], proof_s: float) -> bool:
    # By Redis's own clock, so that an engine which was paused in between changes nothing.
    seconds, micros = await redis.time()  # pyright: ignore[reportUnknownMemberType]  # redis-py's hints
    await prove()
    until = seconds * 1_000_000 + micros + int(proof_s * 1_000_000)
    call = redis.eval(_BEGIN, 2, EPOCH_KEY, EVENT_STREAM, *cast("list[str]", [epoch, last_pos, until]))
    return bool(await cast("Awaitable[int]", call))


async def _present(redis: Redis) -> set[str]:
    found: set[str] = set()
    for pattern in ("npc:*", "world:*"):
        async for key in cast("AsyncIterator[bytes]", redis.scan_iter(match=pattern, count=1_000)):  # pyright: ignore[reportUnknownMemberType]  # redis-py's hints
            found.add(key.decode())
    return found


async def _write(
    redis: Redis, epoch: int, keys: Mapping[str, bytes], events: Sequence[Event], decided: Sequence[str]
) -> bool:
    arguments: list[bytes | str | int] = [epoch, len(keys), len(events), len(decided), *keys.values()]
    for event in events:
        arguments += [event.pos, encode(event_body(event))]
    arguments += decided
    names = [EPOCH_KEY, EVENT_STREAM, DECIDED_STREAM, *keys]
    call = redis.eval(_PUBLISH, len(names), *names, *cast("list[str]", arguments))
    return bool(await cast("Awaitable[int]", call))


def _keys_of(entities: Iterable[Entity]) -> dict[str, bytes]:
    return {
        f"{_PREFIXES[each.kind]}:{each.id}": b"" if each.removed else encode(entity_body(each))
        for each in entities
        if each.kind in _PREFIXES
    }
