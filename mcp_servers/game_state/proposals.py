"""Owns the shapes of what the game_state server proposes: changes, their standing, intents, and who decides them."""

from __future__ import annotations

import re
from typing import Annotated, cast

from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema

from body_broker.calls import Arguments, Json, Result
from body_broker.world.intents import TTL_MS
from body_broker.world.kinds import NUMBER_MAX
from body_broker.world.model import BATCH_MAX, EXPIRES_IN_MS, EXPIRES_IN_MS_MAX, PRIORITY_MAX
from body_broker.world.operations import OPERATIONS
from mcp_servers.game_state.models import Id, Read

WAIT_MS_MAX = 2_000

ChangeId = Annotated[str, Field(min_length=5, max_length=80)]
Key = Annotated[str | None, Field(min_length=1, max_length=128)]
Version = Annotated[int | None, Field(ge=1, le=NUMBER_MAX)]
Cause = Annotated[str | None, Field(max_length=80, description="The change, or event:POS, it answers.")]
Priority = Annotated[int, Field(ge=0, le=PRIORITY_MAX)]
ExpiresInMs = Annotated[int, Field(ge=1, le=EXPIRES_IN_MS_MAX)]
PlayerId = Annotated[str | None, Field(max_length=80, description="Whose input; game servers only.")]


_WORD = re.compile(r"[a-z0-9][a-z0-9_.:-]{0,79}")


def has_prose(value: Json) -> bool:
    """Whether a JSON value holds text that is neither a name nor an id."""
    if isinstance(value, str):
        return not _WORD.fullmatch(value)
    if isinstance(value, dict):
        found = cast("dict[str, Json]", value)
        return any(map(has_prose, (*found.keys(), *found.values())))
    return isinstance(value, list) and any(map(has_prose, cast("list[Json]", value)))


class StateChange(BaseModel):
    """What is to change (seed 001, StateChange)."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)

    entity_id: Id
    op: Annotated[str, Field(max_length=40), WithJsonSchema({"type": "string", "enum": [*OPERATIONS]})]
    payload: dict[str, Json] = {}


class QueueStateChange(Arguments):
    """One change."""

    change: StateChange
    idempotency_key: Key = None
    expect_version: Version = None
    dry_run: bool = False
    causation_id: Cause = None
    priority: Priority = 0
    expires_in_ms: ExpiresInMs = EXPIRES_IN_MS
    player_id: PlayerId = None


class BatchedChange(StateChange):
    """One change of several."""

    idempotency_key: Key = None
    expect_version: Version = None
    causation_id: Annotated[str | None, Field(max_length=80)] = None
    priority: Priority = 0
    expires_in_ms: ExpiresInMs = EXPIRES_IN_MS


class QueueStateChanges(Arguments):
    """Several changes."""

    changes: Annotated[list[BatchedChange], Field(min_length=1, max_length=BATCH_MAX)]
    atomic: Annotated[bool, Field(description="Decided together, all or none.")] = True
    player_id: PlayerId = None


class ChangeQueued(Result):
    """What became of one change at the door; a dry run has no id, and its status says what the engine would do with it now."""

    change_id: str | None
    status: str
    duplicate: bool
    current_version: int | None
    idempotency_key: str
    rule: str | None = None


class ChangesQueued(Result):
    """What became of each change at the door, in their order."""

    changes: list[ChangeQueued]


class GetChangeStatus(Arguments):
    """One change of the caller's, by its id or its idempotency key."""

    change_id: ChangeId | None = None
    idempotency_key: Key = None


class WaitForChange(Arguments):
    """A change to wait for."""

    change_id: ChangeId
    timeout_ms: Annotated[int, Field(ge=0, le=WAIT_MS_MAX)] = WAIT_MS_MAX


class CancelStateChange(Arguments):
    """A change to take back."""

    change_id: ChangeId


class ChangeStatus(Read):
    """How a change stands. `observed` is what the engine saw it do; `version` is the entity's now, 0 where there is none."""

    change_id: str
    entity_id: str
    op: str
    status: str
    rule: str | None = None
    current_version: int | None = None
    observed: Json = None
    queued_at: str
    expires_at: str
    decided_at: str | None = None


class WantedIntent(BaseModel):
    """What an NPC is to do (body_broker.world.intents has its bounds)."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)

    kind: Annotated[str, Field(max_length=40, description="Such as approach, flee, speak.")]
    target: Id | None = None
    params: dict[str, Json] = {}
    confidence: float = 1.0


class SubmitIntent(Arguments):
    """An intent for an NPC of the caller's."""

    npc_id: Id
    intent: WantedIntent
    observed_version: Annotated[int, Field(ge=1, le=NUMBER_MAX, description="Of the state it was made from.")]
    ttl_ms: int = TTL_MS


class IntentState(Read):
    """What an NPC is about to do. `state` is fresh, stale (the NPC has changed since), expired, or none."""

    npc_id: str
    state: str
    intent: WantedIntent | None
    observed_version: int | None
    expires_in_ms: int

    def outside(self) -> bool:
        """Whether it has free text: its model may have read anything."""
        return self.intent is not None and has_prose(self.intent.params)


class Engine(BaseModel):
    """Who decides changes. `live` says whether its lease holds, `lag_ms` how long what it has not decided yet waits."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str
    epoch: int
    external: bool
    live: bool
    tick: int
    tick_hz: float | None
    lag_ms: int


class EngineStatus(Read):
    """Whether changes are being decided, and how many wait; no engine at all means that none does, and none ever did or it is paused."""

    engines: list[Engine]
    paused_since: str | None = Field(default=None, description="Nothing is decided until it is resumed.")
    paused_by: str | None = None
    queue_depth: int
    oldest_ms: int
