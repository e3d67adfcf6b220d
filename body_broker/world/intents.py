"""Owns intents: what a model wants an NPC to do for the next moments, in Redis, gone by themselves. They change no world."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import orjson
from pydantic import Field, ValidationError

from body_broker.calls import Json
from body_broker.errors import BadInput, Conflict, NotFound, TooLarge, Unavailable
from body_broker.storage.redis import LOST, Redis
from body_broker.world.kinds import NUMBER_MAX, Data, Ref, Slug
from body_broker.world.model import Entity
from body_broker.world.operation import is_dead

TTL_MS = 2_000
TTL_MS_MAX = 60_000
PARAMS_BYTES_MAX = 1_024
KEPT_AFTER_MS = 3_000
"""How long an intent that has expired can still be told from none."""
_CAUSE_MAX = 100

# An intent that saw an older NPC than the one that is kept says nothing new.
_SUBMIT = """
local kept = redis.call('GET', KEYS[1])
if kept and cjson.decode(kept).version > tonumber(ARGV[2]) then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[3])
return 1
"""


class Intent(Data):
    """What an NPC is to do.

    Attributes:
        kind: Such as `approach`, `flee`, `speak`.
        target: The entity that it is about.
        ttl_ms: For how long it is meant.
        version: The NPC's, as whoever wants this saw it.
        cause_id: The change or event that made them want it.
        confidence: Of the model, 0 to 1.
    """

    kind: Slug
    target: Ref | None = None
    params: Annotated[dict[str, Json], Field(max_length=20)] = Field(default_factory=dict[str, Json])
    ttl_ms: Annotated[int, Field(ge=100, le=TTL_MS_MAX)] = TTL_MS
    version: Annotated[int, Field(ge=0, le=NUMBER_MAX)]
    cause_id: Annotated[str, Field(max_length=_CAUSE_MAX)] | None = None
    confidence: Annotated[float, Field(ge=0, le=1)] = 1.0


@dataclass(frozen=True, slots=True)
class Held:
    """An intent as it stands."""

    intent: Intent
    state: Literal["fresh", "expired"]
    age_ms: int


def check(fields: dict[str, Any]) -> Intent:
    """The intent of these fields.

    Raises:
        BadInput: They do not fit; every place is named in `details["problems"]`.
        TooLarge: Its params are longer than 1 KiB.
    """
    try:
        intent = Intent.model_validate(fields)
        size = len(orjson.dumps(intent.params))
    except ValidationError as error:
        problems = [
            f"{'.'.join(['intent', *(str(part) for part in found['loc'])])}: {found['msg']}"
            for found in error.errors(include_url=False, include_input=False)
        ]
        raise BadInput(f"This is no intent: {problems[0]}.", details={"problems": problems}) from error
    except TypeError as error:
        raise BadInput("The params of the intent are not JSON.") from error
    if size > PARAMS_BYTES_MAX:
        raise TooLarge(f"The params of the intent have {size} bytes; {PARAMS_BYTES_MAX} are the limit.")
    return intent


async def submit(redis: Redis, npc: Entity | None, intent: Intent) -> None:
    """Keep an intent for as long as it is meant.

    Args:
        redis: Where.
        npc: The NPC as it is now; None where there is none.
        intent: Its `version` is the one that its model saw.

    Raises:
        NotFound: There is no such NPC, or it is gone.
        Conflict: The NPC has changed since, is dead, or has an intent of a later version.
        Unavailable: Redis is away.
    """
    if npc is None or npc.removed or npc.kind != "npc":
        raise NotFound("There is no such NPC.", next_step="Look it up with find_entities, kind npc.")
    if is_dead(npc):
        raise Conflict(f"{npc.id} is dead.", next_step="Want nothing of it.")
    if intent.version != npc.version:
        _refuse(npc, intent, npc.version)
    value = orjson.dumps({**intent.model_dump(mode="json"), "at_ms": _now_ms()})
    kept_ms = intent.ttl_ms + KEPT_AFTER_MS
    try:
        call: Any = redis.eval(_SUBMIT, 1, _key(npc.id), value, str(intent.version), str(kept_ms))
        taken = await call
    except LOST as error:
        raise _away() from error
    if not taken:
        _refuse(npc, intent, None)


async def get(redis: Redis, npc_id: str) -> Held | None:
    """The NPC's intent; None where it has none, or none that anybody remembers.

    Raises:
        Unavailable: Redis is away.
    """
    try:
        found = await redis.get(_key(npc_id))
    except LOST as error:
        raise _away() from error
    if found is None:
        return None
    body = orjson.loads(found)
    age_ms = max(_now_ms() - body.pop("at_ms"), 0)
    intent = Intent.model_validate(body)
    return Held(intent, "fresh" if age_ms < intent.ttl_ms else "expired", age_ms)


def _refuse(npc: Entity, intent: Intent, current: int | None) -> None:
    raise Conflict(
        f"{npc.id} is not as it was in version {intent.version}.",
        next_step="Read the NPC and decide again.",
        details={} if current is None else {"current_version": current},
    )


def _key(npc_id: str) -> str:
    return f"intent:{npc_id}"


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def _away() -> Unavailable:
    return Unavailable("The store of intents is away.", details={"component": "redis"})
