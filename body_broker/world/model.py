"""Owns the words of the world: entities, changes, events, verdicts, and how much a reading may be trusted. No store."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

from body_broker.calls import Json

Kind = Literal["region", "place", "npc", "player", "item", "faction", "quest", "flag"]
State = Literal["queued", "applied", "conflict", "rejected", "expired", "cancelled"]
Source = Literal["map", "database"]
"""Where a reading came from: this process's map of the world, or PostgreSQL."""

ENTITY_ID = re.compile(r"[a-z0-9][a-z0-9_.-]{0,79}")
"""One name space over all kinds; `npc:{id}` and `world:{region}` are keys in Redis, not ids."""

FINAL: frozenset[State] = frozenset({"applied", "conflict", "rejected", "expired", "cancelled"})

DEPTH_MAX = 8
BATCH_MAX = 64
PAYLOAD_BYTES_MAX = 16_384
PRIORITY_MAX = 9
PLAYER_RANK = 2
"""The rank of a change that is a player's input."""
EXPIRES_IN_MS = 60_000
EXPIRES_IN_MS_MAX = 24 * 3_600_000

CORRECTED = "corrected"
"""The type of the events of an operator's edit, which may repeat words from outside though no change asked for it."""
CHANGE_CHANNEL = "world_change"
"""The NOTIFY channel that says a change is queued; no payload."""
DECIDED_CHANNEL = "world_decided"
"""The NOTIFY channel that says changes were decided; no payload."""
EVENT_STREAM = "world-event"
"""The Redis stream of recorded events, in the order of their positions; PostgreSQL has them all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entity:
    """One thing of the world as it is.

    Attributes:
        version: The number of its events.
        tick: Of its latest event.
        data: Its fields, by its kind; JSON values.
        removed: It is gone; nothing changes it any more.
        outside: The names of its fields that hold text from outside.
    """

    id: str
    kind: Kind
    region: str | None
    version: int
    tick: int
    data: Mapping[str, Any]
    removed: bool = False
    outside: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class Proposal:
    """What somebody wants changed.

    Attributes:
        key: Idempotency key: the same one from the same requester is the same change.
        expect_version: It applies to this version only; needed by operations that do not commute.
        causation: The id of the change, or `event:POS` of the event, that made them want it.
        player: Whose input it is, as the game server reports it.
    """

    entity_id: str
    op: str
    payload: Mapping[str, Json]
    key: str
    expect_version: int | None = None
    causation: str | None = None
    priority: int = 0
    expires_in_ms: int = EXPIRES_IN_MS
    player: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """A proposal that was taken, as an engine sees it.

    Attributes:
        batch: Changes of one batch are decided together, all or nothing; None stands alone.
        rank: 2 for a player's input, 1 for the game server's, 0 for everybody else's: higher goes first.
        tainted: Whether text from outside is behind it.
        ancestry: Signatures of the changes that it was caused by: what each wanted of which entity.
    """

    seq: int
    id: str
    actor: str
    batch: str | None
    entity_id: str
    op: str
    payload: Mapping[str, Json]
    expect_version: int | None
    rank: int
    priority: int
    causation: str | None
    depth: int
    tainted: bool
    expires_at: datetime
    ancestry: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class Effect:
    """What a change does to one entity.

    Attributes:
        type: The event's type, such as `moved`.
        patch: JSON merge patch (RFC 7396) over the entity's data.
        kind: Of the entity; None where it exists already.
        region: Where it is from now on; None leaves it.
        removed: It is gone from now on.
        outside: The patch carries text that came from outside.
    """

    entity_id: str
    type: str
    patch: Mapping[str, Json] = field(default_factory=dict[str, Json])
    kind: Kind | None = None
    region: str | None = None
    removed: bool = False
    outside: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What an engine decided of a change.

    Attributes:
        rule: Why it was not applied.
        current_version: The entity's version where `expect_version` was another.
        effects: What it did; none unless applied.
    """

    change_id: str
    state: State
    rule: str | None = None
    current_version: int | None = None
    effects: tuple[Effect, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One recorded step of one entity. `pos` orders all of them without gaps and is where a reader resumes."""

    pos: int
    entity_id: str
    version: int
    kind: Kind
    region: str | None
    type: str
    patch: Mapping[str, Json]
    removed: bool
    change_id: str | None
    causation: str | None
    epoch: int
    tick: int
    outside: bool
    at_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Queued:
    """What became of a proposal at the door."""

    change_id: str
    state: State
    duplicate: bool
    current_version: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """How a change stands."""

    change_id: str
    entity_id: str
    op: str
    state: State
    rule: str | None
    current_version: int | None
    observed: Json
    tick: int | None
    queued_at: datetime
    expires_at: datetime
    decided_at: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """How much what was read may be trusted: up to which position and tick, how long ago that was known to be all, and whence.

    Attributes:
        paused_at: Since when the engine decides nothing, as far as the source knows; None where it may.
        paused_by: Who had it paused.
    """

    pos: int
    tick: int
    age_ms: int
    source: Source
    paused_at: datetime | None = None
    paused_by: str | None = None
