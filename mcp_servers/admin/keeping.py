"""Owns what is kept in Redis of AWS' answers: those that cost money, for as long as their row says, and page tokens too long for a cursor."""

from __future__ import annotations

from datetime import UTC, datetime

import orjson

from body_broker.calls import Json
from body_broker.errors import BadInput
from body_broker.storage.redis import Redis
from body_broker.text import new_id
from mcp_servers.admin.query import START, Answer, Position

TOKEN_CHARACTERS_MAX = 500
_TOKEN_KEPT_S = 900
_ANSWERS, _TOKENS = "aws:answer", "aws:token"


class Keeping:
    """Keeps answers and tokens; every hub on the same Redis has them."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    async def answer(self, name: str) -> Answer | None:
        """A kept answer, with when AWS gave it; None where there is none."""
        found = await self._redis.get(f"{_ANSWERS}:{name}")
        if found is None:
            return None
        kept: Json = orjson.loads(found)
        after = kept.pop("after")
        return Answer(**kept | {"names": tuple(kept["names"])}, after=after and Position(*after))

    async def keep(self, name: str, answer: Answer, *, at: float, for_s: int) -> None:
        """Keep an answer that AWS has just given."""
        said = orjson.dumps(
            {
                "items": answer.items,
                "after": answer.after and list(answer.after),
                "account": answer.account,
                "region": answer.region,
                "names": answer.names,
                "cached_at": iso(at),
            }
        )
        await self._redis.set(f"{_ANSWERS}:{name}", said, ex=for_s)

    async def state(self, bound: str, position: Position) -> Json:
        """What a cursor holds, short enough for one: a long token is kept here for a quarter of an hour."""
        token, skip = position
        if token is None or len(token) <= TOKEN_CHARACTERS_MAX:
            return [bound, skip, token, None]
        name = new_id("tok")
        await self._redis.set(f"{_TOKENS}:{name}", orjson.dumps(token), ex=_TOKEN_KEPT_S)
        return [bound, skip, None, name]

    async def position(self, bound: str, state: Json) -> Position:
        """Where a page begins; the beginning without a cursor.

        Raises:
            BadInput: The cursor is another query's, or too old.
        """
        if state is None:
            return START
        of, skip, token, name = state
        if of != bound:
            raise _foreign("The cursor belongs to another query.")
        if name is None:
            return Position(token, skip)
        kept = await self._redis.get(f"{_TOKENS}:{name}")
        if kept is None:
            raise _foreign("The cursor is too old.")
        return Position(orjson.loads(kept), skip)


def iso(at: float) -> str:
    """A time as it is told: ISO 8601 in UTC, to the second."""
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def _foreign(what: str) -> BadInput:
    return BadInput(
        what,
        next_step="Leave the cursor out to begin again; keep service, resource, identifier and region as they were.",
        details={"problems": ["cursor: not of this query"]},
    )
