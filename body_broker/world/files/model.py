"""Owns the format of a world file, body-broker/world/1: its sections and their bounds. The published JSON Schema is made from it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints

from body_broker.calls import Json
from body_broker.world import kinds
from body_broker.world.canon.model import Fact, PlotGraph, Predicate
from body_broker.world.kinds import Data, Id, Ref
from body_broker.world.model import Kind

FORMAT = "body-broker/world/1"

FILE_BYTES_MAX = 64 * 1024 * 1024
"""UTF-8 bytes of one JSON file, and of all files of a folder together."""
ENTITIES_MAX = 20_000
FACTS_MAX = 50_000
PREDICATES_MAX = 1_000
PLOTS_MAX = 500
LORE_MAX = 20_000
LORE_TEXT_MAX = 8 * 1024 * 1024
"""UTF-8 bytes of a document's text as the lore stores it; the lore refuses more."""
LORE_TEXTS_MAX = 64 * 1024 * 1024
"""UTF-8 bytes of all texts of a world; the lore takes no more at a time."""

LORE_ORIGIN = "world/"
"""What the origin of a document begins with that came from a world file; the rest is its id there."""

SECTIONS: Mapping[Kind, str] = {
    "region": "regions",
    "place": "places",
    "faction": "factions",
    "npc": "npcs",
    "player": "players",
    "item": "items",
    "quest": "quests",
    "flag": "flags",
}
"""The section of each kind, in the order in which they are written."""


class _Named(Data):
    id: Annotated[Id, Field(description="One name space over all kinds.")]
    removed: Annotated[bool, Field(description="It is gone for good; kept because others may name it.")] = False


class _Located(_Named):
    region: Annotated[Ref | None, Field(description="The region that it is in.")] = None


class RegionEntry(kinds.Region, _Named):
    """A region of the file."""


class PlaceEntry(kinds.Place, _Located):
    """A place of the file."""


class FactionEntry(kinds.Faction, _Located):
    """A faction of the file."""


class NpcEntry(kinds.Npc, _Located):
    """An NPC of the file."""


class PlayerEntry(kinds.Player, _Located):
    """A player of the file."""


class ItemEntry(kinds.Item, _Located):
    """An item of the file."""


class QuestEntry(kinds.Quest, _Located):
    """A quest of the file."""


class FlagEntry(kinds.Flag, _Located):
    """A flag of the file."""


class Entities(Data):
    """Everything that has a state, by kind."""

    regions: list[RegionEntry] = Field(default_factory=list[RegionEntry], max_length=ENTITIES_MAX)
    places: list[PlaceEntry] = Field(default_factory=list[PlaceEntry], max_length=ENTITIES_MAX)
    factions: list[FactionEntry] = Field(default_factory=list[FactionEntry], max_length=ENTITIES_MAX)
    npcs: list[NpcEntry] = Field(default_factory=list[NpcEntry], max_length=ENTITIES_MAX)
    players: list[PlayerEntry] = Field(default_factory=list[PlayerEntry], max_length=ENTITIES_MAX)
    items: list[ItemEntry] = Field(default_factory=list[ItemEntry], max_length=ENTITIES_MAX)
    quests: list[QuestEntry] = Field(default_factory=list[QuestEntry], max_length=ENTITIES_MAX)
    flags: list[FlagEntry] = Field(default_factory=list[FlagEntry], max_length=ENTITIES_MAX)


class LoreEntry(Data):
    """A document of the lore, which agents search.

    Attributes:
        id: What a later load knows it by; unique in its index.
        text: What it says; or `file` instead.
        file: A file with its text, relative to the folder of the world file; .md is Markdown, .txt is text.
        format: Of `text`.
        index: shared, or persona:NAME for one persona's own lore.
        spoiler_level: 0 is for everybody.
        known_by: Ids of who may be told; left out is everybody.
        metadata: What else it can be searched by.
    """

    id: Annotated[str, Field(min_length=1, max_length=250)]
    title: Annotated[str, Field(min_length=1, max_length=200)]
    text: Annotated[str, Field(min_length=1, max_length=LORE_TEXT_MAX)] | None = None
    file: Annotated[str, Field(min_length=1, max_length=300)] | None = None
    format: Literal["text", "markdown"] = "markdown"
    index: Annotated[str, StringConstraints(pattern="^(?:shared|persona:[a-z0-9][a-z0-9_-]{0,63})$")] = "shared"
    spoiler_level: Annotated[int, Field(ge=0, le=100)] | None = None
    known_by: Annotated[list[Ref], Field(min_length=1, max_length=100)] | None = None
    region: Ref | None = None
    metadata: dict[str, Json] = Field(default_factory=dict[str, Json], max_length=1_000)

    def knowledge(self) -> dict[str, Json]:
        """What the lore keeps beside title and text."""
        limits: dict[str, Json] = {
            "spoiler_level": self.spoiler_level,
            "known_by": self.known_by,
            "region": self.region,
        }
        return self.metadata | {name: value for name, value in limits.items() if value is not None}


class WorldFile(Data):
    """A world, or one file of a folder that together are one."""

    schema_: Annotated[str | None, Field(alias="$schema", max_length=300, description="For editors; not read.")] = None
    format: Literal["body-broker/world/1"]
    entities: Entities = Entities()
    predicates: list[Predicate] = Field(default_factory=list[Predicate], max_length=PREDICATES_MAX)
    facts: list[Fact] = Field(default_factory=list[Fact], max_length=FACTS_MAX)
    plots: list[PlotGraph] = Field(default_factory=list[PlotGraph], max_length=PLOTS_MAX)
    lore: list[LoreEntry] = Field(default_factory=list[LoreEntry], max_length=LORE_MAX)

    def each_entity(self) -> Iterator[tuple[Kind, int, _Named]]:
        """Kind, place in its section, and entry, of every entity."""
        for kind, section in SECTIONS.items():
            entries: list[_Named] = getattr(self.entities, section)
            for number, entry in enumerate(entries):
                yield kind, number, entry


Entry = _Named
"""An entity as a file has it."""


def region_of(entry: Entry) -> str | None:
    """The region that an entry names."""
    return entry.region if isinstance(entry, _Located) else None


def data_of(entry: Entry, *, stated: bool = False) -> dict[str, Any]:
    """An entity's data without id and region: with its defaults, or only the fields that the file states."""
    data = entry.model_dump(mode="json", exclude={"id", "region", "removed"})
    return {name: value for name, value in data.items() if name in entry.model_fields_set} if stated else data


def schema() -> dict[str, Any]:
    """The published JSON Schema (draft 2020-12) of a world file."""
    made = WorldFile.model_json_schema(by_alias=True)
    made.pop("description", None)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"World file, {FORMAT}",
    } | {name: value for name, value in made.items() if name != "title"}
