"""Owns the shapes of what the game_state server reads: what each tool takes and answers, and how an answer reads as text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Self, cast

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, WithJsonSchema

from body_broker.calls import Arguments, Json, Result
from body_broker.world.kinds import NUMBER_MAX, OUTSIDE_FIELDS
from body_broker.world.model import Entity, Kind, Source

IDS_MAX = 256
FIELDS_MAX = 32

Id = Annotated[str, Field(min_length=1, max_length=80)]
Ids = Annotated[list[Id], Field(min_length=1, max_length=IDS_MAX)]
Region = Annotated[str | None, Field(max_length=80)]
_STRINGS: dict[str, Any] = {"type": "array", "items": {"type": "string"}}
_Names = Annotated[list[Annotated[str, Field(max_length=64)]], Field(max_length=FIELDS_MAX), WithJsonSchema(_STRINGS)]
Fields = Annotated[_Names | None, Field(description="Only these; players' words by name alone: memories, last_said.")]
FieldsBriefly = _Names | None
Fresh = bool
"""Asked of PostgreSQL itself; gold may not (policies/tiers.cedar)."""
Limit = Annotated[int, Field(ge=1, le=100)]
Cursor = Annotated[str | None, Field(max_length=1_024)]
Scalar = Annotated[str, Field(max_length=200)] | int | float | bool


class Read(Result):
    """How far an answer may be trusted.

    Attributes:
        version: Of the entity that was asked for; of a listing the position of the latest event in it, where get_events goes on.
        as_of_tick: The engine's tick that it shows.
        age_ms: How long ago it was known to be all there is.
        source: This hub's map of the world, or PostgreSQL.
    """

    version: int
    as_of_tick: int
    age_ms: int
    source: Annotated[Source, WithJsonSchema({"type": "string"})]


def outside_in(fields: Mapping[str, Any]) -> bool:
    """Whether words from outside are in an entity's fields; what does not say so of itself counts."""
    remarks: list[Any] = []
    for name in OUTSIDE_FIELDS & fields.keys():
        remarks += cast("list[Any]", fields[name]) if isinstance(fields[name], list) else [fields[name]]
    return any(remark is not None and remark.get("outside") is not False for remark in remarks)


class Shown(BaseModel):
    """Base of what shows some fields of an entity; it knows whether one of them holds words from outside."""

    state: dict[str, Json]
    _holds_outside: bool = PrivateAttr(default=False)

    def of(self, entity: Entity) -> Self:
        """Itself, marked by what the record says of the fields that are shown."""
        self._holds_outside = not entity.outside.isdisjoint(self.state)
        return self

    def outside(self) -> bool:
        """Whether it repeats words from outside."""
        return self._holds_outside or outside_in(self.state)


class Nothing(Arguments):
    """No arguments."""


class GetNpcState(Arguments):
    """One NPC."""

    npc_id: Id
    fields: Fields = None
    fresh: Fresh = False


class GetPlayerState(Arguments):
    """One player's character."""

    player_id: Id
    fields: FieldsBriefly = None
    fresh: Fresh = False


class EntityState(Shown, Read):
    """One entity; a field that is empty is left out unless it was asked for by name."""

    id: str
    region: str | None
    state: dict[str, Json]


class GetNpcStates(Arguments):
    """Several NPCs."""

    npc_ids: Ids
    fields: FieldsBriefly = None
    fresh: Fresh = False


class Item(Shown):
    """An entity in a listing."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str
    kind: Kind
    region: str | None
    version: int
    state: dict[str, Json]


class EntityStates(Read):
    """Several entities, in the order of the ids."""

    items: list[Item]
    missing: list[str]

    def outside(self) -> bool:
        """Whether one of them repeats words from outside."""
        return any(item.outside() for item in self.items)


class GetWorldState(Arguments):
    """A region."""

    region: Id
    include: Annotated[
        Annotated[list[Kind], Field(max_length=8), WithJsonSchema(_STRINGS)] | None,
        Field(description="Kinds, such as npc."),
    ] = None
    cursor: Cursor = None
    fresh: Fresh = False


class WorldState(Shown, Read):
    """A region with a page of what is in it, in short; `pos` is where get_events goes on.

    Where the engine is paused nothing changes: since when and by whom is said.
    """

    region: str
    pos: int
    state: dict[str, Json]
    items: list[Item]
    next_cursor: str | None = None
    paused_since: str | None = None
    paused_by: str | None = None

    def outside(self) -> bool:
        """Whether it, or what is in it, repeats words from outside."""
        return super().outside() or any(item.outside() for item in self.items)


class FindEntities(Arguments):
    """What to look for; everything said must hold."""

    ids: Annotated[list[Id] | None, Field(max_length=IDS_MAX)] = None
    kind: Kind | None = None
    region: Region = None
    near: Annotated[Id | None, Field(description="Id of what it is near to.")] = None
    radius: Annotated[float | None, Field(ge=0, le=2_000_000)] = None
    where: Annotated[
        Annotated[dict[str, Scalar], Field(max_length=8), WithJsonSchema({"type": "object"})] | None,
        Field(description="Fields and values."),
    ] = None
    fields: FieldsBriefly = None
    limit: Limit = 20
    cursor: Cursor = None
    fresh: Fresh = False


class EntityPage(Read):
    """Entities by their ids, or the nearest first."""

    items: list[Item]
    next_cursor: str | None = None

    def outside(self) -> bool:
        """Whether one of them repeats words from outside."""
        return any(item.outside() for item in self.items)


class GetEvents(Arguments):
    """Events after a position."""

    after_pos: Annotated[
        int, Field(ge=0, le=NUMBER_MAX, description="The pos or version of an earlier answer; 0 begins.")
    ]
    entity_id: Id | None = None
    region: Region = None
    types: _Names | None = None
    fields: Fields = None
    limit: Limit = 50


class GetEntityHistory(Arguments):
    """What happened to one entity, removed ones too."""

    entity_id: Id
    from_version: Annotated[int, Field(ge=1, le=NUMBER_MAX)] = 1
    fields: FieldsBriefly = None
    limit: Limit = 50


class EventItem(BaseModel):
    """One recorded step. `patch` is a JSON merge patch over the entity's fields; `outside` says that words in it came from outside."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    pos: int
    entity_id: str
    version: int
    type: str
    patch: dict[str, Json]
    outside: bool
    tick: int
    at_ms: int
    change_id: str | None = None
    causation: str | None = None


class EventPage(Read):
    """Events in the order of their positions; `next` goes on, whether or not there is more yet."""

    items: list[EventItem]
    next: int
    more: bool

    def outside(self) -> bool:
        """Whether one of them repeats words from outside."""
        return any(item.outside and item.patch for item in self.items)


class GetIntent(Arguments):
    """One NPC's intent."""

    npc_id: Id
    fresh: Fresh = False


class GetPredictions(Arguments):
    """One player's next actions."""

    player_id: Id
    limit: Limit = 3
    fresh: Fresh = False


class Prediction(BaseModel):
    """An action that a player may take next, and the answers that are ready for it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    action: str
    npc_id: str | None
    probability: float
    ready: bool
    expires_in_ms: int


class Predictions(Read):
    """What a player may do next, the likeliest first."""

    player_id: str
    items: list[Prediction]


class EntityUri(Arguments):
    """What a resource URI names."""

    id: Id


class RegionUri(Arguments):
    """The region whose events a resource URI names."""

    region: Id
