"""Owns the messages of the engine protocol, version 1: their fields and bounds, and where they travel. No store, no clock."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from body_broker.calls import Json
from body_broker.world.model import BATCH_MAX, DEPTH_MAX, PRIORITY_MAX, Kind

TO_ENGINE = "state-change"
"""The stream that the hub writes and engines read."""
TO_HUB = "engine-report"
"""The stream that engines write and the hub reads."""
READ_KEY = "engine-report:read"
"""How far the hub has read the stream of reports; the hub's own."""
FIELD = b"json"
"""The one field of a stream's entry: the message as UTF-8 JSON."""

VERSION = 1
MESSAGE_BYTES_MAX = 2 * 1024 * 1024
SNAPSHOT_BYTES = 256 * 1024
"""What one message of a snapshot holds at most, unless a single entity is larger."""
DATA_DEPTH_MAX = 24
"""How deep JSON of an engine may be nested."""
EFFECTS_MAX = 256
NUMBER_MAX = 2**53 - 1
"""The largest whole number that a double holds exactly, because that is what many engines' JSON knows."""


def _whole(value: Any) -> Any:  # any JSON value
    # Godot 4 and JavaScript write 5.0 where they mean 5.
    return int(value) if isinstance(value, float) and value.is_integer() else value


Whole = Annotated[int, Field(strict=True, ge=0, le=NUMBER_MAX), BeforeValidator(_whole)]
Number = Annotated[int, Field(strict=True, ge=1, le=NUMBER_MAX), BeforeValidator(_whole)]
EntityId = Annotated[str, Field(strict=True, pattern=r"^[a-z0-9][a-z0-9_.-]{0,79}$")]
Name = Annotated[str, Field(strict=True, pattern=r"^[A-Za-z0-9][A-Za-z0-9_.:/-]{0,63}$")]
"""An engine's id, an instance, an idempotency key: printable ASCII without blanks."""
Word = Annotated[str, Field(strict=True, pattern=r"^[a-z][a-z0-9_]{0,39}$")]
"""The name of an event's type or of a rule."""
Patch = Annotated[dict[str, Json], Field(max_length=256)]
Flag = Annotated[bool, Field(strict=True)]


class _Ours(BaseModel):
    # What the hub sends may grow within a version: readers pass over fields they do not know.
    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False, hide_input_in_errors=True)


class _Theirs(BaseModel):
    # What an engine sends is held to the letter: a misspelt field would be an effect lost in silence.
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, hide_input_in_errors=True)


class _Order(_Ours):
    v: Annotated[Literal[1], BeforeValidator(_whole)] = 1


class _Report(_Theirs):
    v: Annotated[Literal[1], BeforeValidator(_whole)] = 1


# From an engine to the hub, on the stream engine-report.


class Hello(_Report):
    """An engine offers to arbitrate. Answered by welcome or taken."""

    type: Literal["hello"] = "hello"
    engine: Name = Field(description="Which engine this is; the same after its restart.")
    instance: Name = Field(description="Which run of it: chosen at random at each start.")
    tick_hz: Annotated[float, Field(gt=0, le=10_000)] | None = Field(
        default=None, description="Ticks a second, for people."
    )


class Heartbeat(_Report):
    """The engine is alive. Answered by lease; send one every third of the lease."""

    type: Literal["heartbeat"] = "heartbeat"
    epoch: Number
    n: Number = Field(description="1, 2, 3, ... over all messages of this engine in this epoch.")
    tick: Whole


class EffectPart(_Theirs):
    """What happened to one entity."""

    entity_id: EntityId
    version: Number = Field(description="The entity's version after this: one more than before, 1 for a new one.")
    type: Word = Field(description="The event's name, such as `moved`.")
    patch: Patch = Field(default_factory=dict, description="JSON merge patch (RFC 7396) over the entity's data.")
    kind: Kind | None = Field(default=None, description="For a new entity, its kind.")
    region: EntityId | None = Field(default=None, description="Where it is from now on; absent leaves it where it was.")
    removed: Flag = Field(default=False, description="It is gone for ever.")
    outside: Flag = Field(default=False, description="The patch carries text that a player or another outsider wrote.")


class OutcomePart(_Theirs):
    """What became of one change."""

    change_id: Name
    state: Literal["applied", "conflict", "rejected", "expired"]
    rule: Word | None = Field(default=None, description="Why it was not applied.")
    current_version: Whole | None = Field(default=None, description="With conflict: the version that the entity has.")
    effects: tuple[EffectPart, ...] = Field(
        default=(), max_length=EFFECTS_MAX, description="With applied: what was observed."
    )


class Outcome(_Report):
    """What the engine decided: of one `change` message, all of its changes."""

    type: Literal["outcome"] = "outcome"
    epoch: Number
    n: Number
    tick: Whole
    outcomes: tuple[OutcomePart, ...] = Field(min_length=1, max_length=BATCH_MAX)


class Observation(_Report):
    """What happened in the game without having been asked for, such as a player's step."""

    type: Literal["observation"] = "observation"
    epoch: Number
    n: Number
    tick: Whole
    key: Name = Field(description="Idempotency key: the hub records one observation of this engine under it, ever.")
    effects: tuple[EffectPart, ...] = Field(min_length=1, max_length=EFFECTS_MAX)


class Bye(_Report):
    """The engine stops: its lease ends at once."""

    type: Literal["bye"] = "bye"
    epoch: Number
    n: Number


# From the hub to engines, on the stream state-change.


class Welcome(_Order):
    """This engine arbitrates, under this epoch. A snapshot follows."""

    type: Literal["welcome"] = "welcome"
    engine: Name
    instance: Name
    epoch: Number = Field(description="The fencing token: it goes into each message.")
    n: Number = Field(description="1; then 2, 3, ... over all messages of the hub in this epoch that have one.")
    lease_ms: Number
    tick: Whole = Field(description="Of the last engine: go on from here.")
    entities: Whole = Field(description="How many the snapshot has.")
    snapshots: Whole = Field(description="In how many messages it comes.")


class EntityPart(_Ours):
    """One entity as it is."""

    id: EntityId
    kind: Kind
    region: EntityId | None
    version: Number
    removed: Flag
    data: dict[str, Json]


class Snapshot(_Order):
    """A part of the world as it is at the epoch's begin. It replaces what the engine had."""

    type: Literal["snapshot"] = "snapshot"
    epoch: Number
    n: Number
    entities: tuple[EntityPart, ...]


class Taken(_Order):
    """Another engine arbitrates: say hello again later."""

    type: Literal["taken"] = "taken"
    engine: Name
    instance: Name
    retry_ms: Number


class ChangePart(_Ours):
    """One change to decide."""

    change_id: Name
    entity_id: EntityId
    op: Word
    payload: dict[str, Json]
    expect_version: Number | None
    rank: Annotated[int, Field(strict=True, ge=0, le=2)] = Field(
        description="2 a player's input, 1 the game server's, 0 everybody else's."
    )
    priority: Annotated[int, Field(strict=True, ge=0, le=PRIORITY_MAX)]
    depth: Annotated[int, Field(strict=True, ge=0, le=DEPTH_MAX)] = Field(
        description="How many changes caused it, one after another."
    )
    causation: str | None = Field(description="The change, or `event:POS`, that caused it.")
    actor: str = Field(description="Who asked.")
    tainted: Flag = Field(description="Text from outside may be behind it.")
    expires_in_ms: int = Field(strict=True, description="From the sending on; 0 or less is expired.")


class Change(_Order):
    """Changes to decide: one, or a batch that is applied whole or not at all."""

    type: Literal["change"] = "change"
    epoch: Number
    n: Number
    atomic: Flag
    changes: tuple[ChangePart, ...] = Field(min_length=1, max_length=BATCH_MAX)


class Lease(_Order):
    """A heartbeat was heard: the engine may go on for `lease_ms` more."""

    type: Literal["lease"] = "lease"
    epoch: Number
    n: Number
    lease_ms: Number


class Recorded(_Order):
    """Everything up to the engine's message `upto` is in the record for good."""

    type: Literal["recorded"] = "recorded"
    epoch: Number
    n: Number
    upto: Number
    pos: Whole = Field(description="Position of the world's latest event.")


RefusalCode = Literal["bad_json", "bad_message", "unknown_type", "too_large", "old_epoch", "unfit"]


class Refusal(_Order):
    """The dead letter: a message of an engine that was not taken, and why. It has no `n`."""

    type: Literal["refusal"] = "refusal"
    of: str = Field(description="The id of the entry in engine-report, as XADD returned it.")
    code: RefusalCode
    message: str
    epoch: Whole | None = Field(description="As the message named it, where that could be read.")


EndReason = Literal["reload", "lapsed", "lost", "out_of_step", "replaced", "bye"]


class Ended(_Order):
    """The epoch is over: nothing of it counts any more. Say hello again. It has no `n`."""

    type: Literal["ended"] = "ended"
    epoch: Number
    reason: EndReason


Report = Hello | Heartbeat | Outcome | Observation | Bye
Order = Welcome | Snapshot | Taken | Change | Lease | Recorded | Refusal | Ended
Numbered = Heartbeat | Outcome | Observation | Bye

REPORTS: tuple[type[Report], ...] = (Hello, Heartbeat, Outcome, Observation, Bye)
ORDERS: tuple[type[Order], ...] = (Welcome, Snapshot, Taken, Change, Lease, Recorded, Refusal, Ended)
