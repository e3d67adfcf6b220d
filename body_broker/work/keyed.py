"""Owns effects that happen once under a key: whoever repeats one under the same key gets what it gave, whatever has happened since.

What makes a tool whose effect is `repeatable` so: the key is the approval that it runs under, or a job's id and which of its calls it is
(`job_... 3.1`), and the effect, its result and the key commit together.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from body_broker.calls import Json
from body_broker.storage.postgres import Connection, Executor
from body_broker.work.model import decode, encode

# Two that do the same at the same moment meet here: the second waits for the first one's end.
_BEGIN = "INSERT INTO keyed_effect (key) VALUES ($1) ON CONFLICT (key) DO NOTHING RETURNING true"
_KEEP = "UPDATE keyed_effect SET result = $2::text::jsonb WHERE key = $1"
_RECALL = "SELECT result::text FROM keyed_effect WHERE key = $1"
_PURGE = """
DELETE FROM keyed_effect k WHERE at < clock_timestamp() - make_interval(secs => $1::float8) AND NOT EXISTS (
    SELECT FROM work w WHERE w.id = split_part(k.key, ' ', 1) AND w.state IN ('waiting', 'queued', 'running', 'unknown'))
"""


async def once(connection: Connection, key: str | None, effect: Callable[[], Awaitable[Json]]) -> Json:
    """The result of the effect, which happens in the caller's transaction, or happened before under this key.

    Args:
        connection: In a transaction, in which the effect writes.
        key: Names the effect; None does it in any case.
        effect: Changes this database only.
    """
    if key is None:
        return await effect()
    if not await connection.fetchval(_BEGIN, key):
        return decode(await connection.fetchval(_RECALL, key))
    result = await effect()
    await connection.execute(_KEEP, key, encode(result, "result"))
    return result


async def recall(connection: Executor, key: str | None) -> Json:
    """What an effect gave under this key; None where it has not happened, or there is no key."""
    return None if key is None else decode(await connection.fetchval(_RECALL, key))


async def purge(connection: Executor, *, older_than_s: float) -> int:
    """Forget effects of longer ago than any call can be repeated under its key; how many.

    Those whose work has not ended are kept, however old: it may still be done again.
    """
    status = await connection.execute(_PURGE, older_than_s)
    return int(status.rpartition(" ")[2])
