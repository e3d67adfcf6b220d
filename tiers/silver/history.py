"""Owns what was said in a conversation: its last turns, in Redis, under the conversation's own unguessable id."""

from __future__ import annotations

from typing import Any

import orjson

from body_broker.storage.redis import Redis
from tiers.prompting import WORDS_MAX, Turn

TURNS_MAX = 10
KEPT_S = 24 * 3600
"""How long a conversation in which nothing is said is remembered."""

_ADD = """
redis.call('RPUSH', KEYS[1], ARGV[1])
redis.call('LTRIM', KEYS[1], -tonumber(ARGV[2]), -1)
redis.call('EXPIRE', KEYS[1], ARGV[3])
return 1
"""


class Dialogue:
    """The turns of conversations.

    Args:
        redis: Where they are kept; hubs share them.
    """

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    async def read(self, conversation: str) -> tuple[Turn, ...]:
        """Its last turns, oldest first.

        Raises:
            LOST: Redis is away.
        """
        call: Any = self._redis.lrange(_key(conversation), 0, -1)
        found: list[bytes] = await call
        return tuple(Turn(*orjson.loads(each)) for each in found)

    async def add(self, conversation: str, turn: Turn) -> None:
        """Remember one more, and forget what is older than the last ten.

        Raises:
            LOST: Redis is away.
        """
        value = orjson.dumps([turn.player[:WORDS_MAX], turn.answer[:WORDS_MAX]])
        call: Any = self._redis.eval(_ADD, 1, _key(conversation), value, str(TURNS_MAX), str(KEPT_S))
        await call


def _key(conversation: str) -> str:
    return f"dialogue:{conversation}"
