"""Owns what each kind of entity is made of: its fields, their bounds, what they refer to. No store and no rules of the game."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from types import UnionType
from typing import Annotated, Any, Literal, Union, cast, get_args, get_origin

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, TypeAdapter, ValidationError

from body_broker.errors import BadInput
from body_broker.text import clean
from body_broker.world.model import ENTITY_ID, Entity, Kind

MEMORIES_MAX = 50
INVENTORY_MAX = 64
EXITS_MAX = 32
SAYING_MAX = 500
LEANINGS_MAX = 100
NUMBER_MAX = 2**53 - 1
"""Whole numbers beyond it are not the same to everybody who reads JSON."""

OUTSIDE_FIELDS = frozenset({"memories", "last_said"})
"""Where text from outside may lie; readers return these only to who asks for them by name."""


class Reference:
    """Marks a text field that holds another entity's id."""


Id = Annotated[str, StringConstraints(pattern=f"^(?:{ENTITY_ID.pattern})$")]
Ref = Annotated[Id, Reference]
Line = Annotated[str, Field(min_length=1, max_length=120), AfterValidator(clean)]
Prose = Annotated[str, Field(max_length=2_000), AfterValidator(clean)]
Slug = Annotated[str, StringConstraints(pattern="^[a-z0-9][a-z0-9_-]{0,39}$")]
Principal = Annotated[str, StringConstraints(pattern="^(?:tier|service|person):[a-z0-9][a-z0-9_.@-]{0,79}$")]
Coordinate = Annotated[float, Field(ge=-1_000_000, le=1_000_000)]
Position = Annotated[list[Coordinate], Field(min_length=2, max_length=2)]
Gauge = Annotated[int, Field(ge=0, le=100)]
Leaning = Annotated[int, Field(ge=-100, le=100)]
Leanings = Annotated[dict[Ref, Leaning], Field(max_length=LEANINGS_MAX)]
Scalar = (
    bool
    | Annotated[int, Field(ge=-NUMBER_MAX, le=NUMBER_MAX)]
    | Annotated[str, Field(max_length=200), AfterValidator(clean)]
)
Weather = Literal["clear", "overcast", "rain", "storm", "fog", "snow", "ash"]
TimeOfDay = Literal["dawn", "day", "dusk", "night"]
QuestState = Literal["locked", "available", "active", "done", "failed"]


class Data(BaseModel):
    """Base of the kinds: closed, bounded, no NaN."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)


class Remark(Data):
    """Something said or remembered.

    Attributes:
        by: Whose words they are: an entity's id, or whatever a game calls its player.
        outside: The text came from outside and is nobody's instruction.
        tick: When.
    """

    text: Annotated[str, Field(min_length=1, max_length=SAYING_MAX), AfterValidator(clean)]
    by: Line | None = None
    outside: bool = False
    tick: Annotated[int, Field(ge=0, le=NUMBER_MAX)] = 0


class Requirement(Data):
    """A field of another entity that must have this value."""

    entity: Ref
    field: Annotated[str, StringConstraints(pattern="^[a-z][a-z0-9_]{0,39}$")]
    equals: Scalar


class Thing(Data):
    """What every kind has."""

    name: Line
    description: Prose = ""
    tags: Annotated[list[Slug], Field(max_length=20)] = []


class Region(Thing):
    """A part of the map; the entities in it name it as their region."""

    weather: Weather = "clear"
    time_of_day: TimeOfDay = "night"
    danger: Annotated[int, Field(ge=0, le=10)] = 0


class Place(Thing):
    """Where somebody can be. `key` is the item that opens it while it is locked."""

    exits: Annotated[list[Ref], Field(max_length=EXITS_MAX)] = []
    position: Position | None = None
    locked: bool = False
    key: Ref | None = None
    dark: bool = False


class Actor(Thing):
    """Who acts: what an NPC and a player share."""

    faction: Ref | None = None
    place: Ref | None = None
    position: Position | None = None
    health: Gauge = 100
    alive: bool = True
    inventory: Annotated[list[Ref], Field(max_length=INVENTORY_MAX)] = []
    last_said: Remark | None = None


class Npc(Actor):
    """Somebody whom the game plays.

    Attributes:
        driver: The principal that may submit its intents, such as `tier:gold`.
        persona: The persona that it speaks with.
        disposition: How it leans to others, -100 to 100, by their ids.
        memories: The latest last.
    """

    role: Line | None = None
    mood: Slug = "calm"
    disposition: Leanings = {}
    driver: Principal | None = None
    persona: Slug | None = None
    memories: Annotated[list[Remark], Field(max_length=MEMORIES_MAX)] = []


class Player(Actor):
    """Somebody whom a person plays."""

    sanity: Gauge = 100


class Item(Thing):
    """A thing: somebody holds it, or it lies in a place, or neither."""

    holder: Ref | None = None
    place: Ref | None = None
    portable: bool = True
    destroyed: bool = False


class Faction(Thing):
    """A group. `stance` is how it leans to others, -100 to 100, by their ids."""

    stance: Leanings = {}


class Quest(Data):
    """A task for players. It becomes available or active only where all of `requires` holds."""

    title: Line
    description: Prose = ""
    tags: Annotated[list[Slug], Field(max_length=20)] = []
    state: QuestState = "locked"
    stages: Annotated[list[Slug], Field(max_length=50)] = []
    stage: Slug | None = None
    giver: Ref | None = None
    players: Annotated[list[Ref], Field(max_length=100)] = []
    requires: Annotated[list[Requirement], Field(max_length=20)] = []


class Flag(Data):
    """One value of the plot."""

    value: Scalar
    description: Prose = ""


KINDS: Mapping[Kind, type[Data]] = {
    "region": Region,
    "place": Place,
    "npc": Npc,
    "player": Player,
    "item": Item,
    "faction": Faction,
    "quest": Quest,
    "flag": Flag,
}


def check(kind: str, data: object) -> dict[str, Any]:
    """The data with its defaults filled in and its text cleaned.

    Raises:
        BadInput: The kind is unknown, or the data does not fit it; every place is named in `details["problems"]`.
    """
    if kind not in KINDS:
        raise BadInput(f"{clean(kind, limit=40)!r} is no kind of entity.", next_step=f"Use one of {', '.join(KINDS)}.")
    try:
        return KINDS[cast("Kind", kind)].model_validate(data).model_dump(mode="json")
    except ValidationError as error:
        problems = _problems(error, "data")
        raise BadInput(
            f"This is no {kind}: {problems[0]}" + (f" and {len(problems) - 1} more." if problems[1:] else "."),
            next_step="Correct the fields that `problems` names.",
            details={"problems": problems},
        ) from error


def problems_of_fields(kind: Kind, fields: Mapping[str, object]) -> list[str]:
    """What is wrong with values for single fields of a kind; empty where nothing is."""
    found: list[str] = []
    for name, value in fields.items():
        if name not in KINDS[kind].model_fields:
            found.append(f"{clean(name, limit=40)!r} is no field of a {kind}")
            continue
        try:
            _field(kind, name).validate_python(value)
        except ValidationError as error:
            found += _problems(error, name)
    return found


def clean_fields(kind: Kind, fields: Mapping[str, object]) -> dict[str, Any]:
    """Values of single fields as `check` would leave them.

    Raises:
        pydantic.ValidationError: One does not fit; `problems_of_fields` says it in words.
    """
    return {
        name: _field(kind, name).dump_python(_field(kind, name).validate_python(value), mode="json")
        for name, value in fields.items()
    }


def default_of(kind: Kind, field: str) -> Any:  # any JSON value
    """What a field is where the data does not have it."""
    return KINDS[kind].model_fields[field].get_default(call_default_factory=True)


def value_of(entity: Entity, field: str) -> Any:  # any JSON value
    """A field's value or its default; None for a field that the kind does not have."""
    if field in entity.data:
        return entity.data[field]
    return default_of(entity.kind, field) if field in KINDS[entity.kind].model_fields else None


def names_in(model: type[BaseModel], data: Mapping[str, Any]) -> set[str]:
    """The ids that checked data of any model names, by the marks in its fields' types."""
    return set(_references(model, data))


def references(kind: str, data: Mapping[str, Any]) -> set[str]:
    """The ids of other entities that checked data of this kind names; the region is not among them."""
    return names_in(KINDS[cast("Kind", kind)], data)


def name_of(entity: Entity) -> str:
    """What people call it: its name or title; its id where it has none."""
    named = entity.data.get("name") or entity.data.get("title")
    return named if isinstance(named, str) else entity.id


def text_in(kind: Kind, patch: Mapping[str, Any]) -> frozenset[str]:
    """The fields of a patch that hold free text now; ids, slugs and the words of a fixed list are none."""
    return frozenset(name for name, value in patch.items() if name not in _plain_fields(kind) and _has_words(value))


def marked_outside(before: frozenset[str], kind: Kind, patch: Mapping[str, Any], *, outside: bool) -> frozenset[str]:
    """The fields that hold text from outside once a patch is over the data.

    Args:
        before: Those that did.
        kind: Of the entity.
        patch: What changes.
        outside: Whether the patch's free text came from outside; what is said says that of itself too.
    """
    theirs = (
        text_in(kind, patch)
        if outside
        else frozenset(filter(lambda n: _is_said(patch[n]), OUTSIDE_FIELDS & patch.keys()))
    )
    return before.difference(patch) | theirs


def _is_said(value: object) -> bool:
    """Whether remarks do not say of themselves that they came from inside."""
    remarks = cast("list[object]", value) if isinstance(value, list) else [value]
    return any(
        each is not None and not (isinstance(each, Mapping) and cast("Mapping[str, Any]", each).get("outside") is False)
        for each in remarks
    )


def _has_words(value: object) -> bool:
    if isinstance(value, Mapping):
        found = cast("Mapping[str, object]", value)
        return any(map(_has_words, (*found.keys(), *found.values())))
    return (
        any(map(_has_words, cast("list[object]", value)))
        if isinstance(value, list)
        else isinstance(value, str) and value != ""
    )


@cache
def _plain_fields(kind: Kind) -> frozenset[str]:
    return frozenset(name for name, annotation in _shape(KINDS[kind]) if not _is_free(annotation))


def _is_free(annotation: object) -> bool:
    """Whether a type has text of any words: what the kinds clean of control characters."""
    if _is_model(annotation):
        return any(_is_free(inner) for _, inner in _shape(cast("type[BaseModel]", annotation)))
    if isinstance(annotation, AfterValidator):
        return annotation.func is clean
    return any(map(_is_free, get_args(annotation)))


@cache
def _field(kind: Kind, name: str) -> TypeAdapter[Any]:
    made: Any = _annotation(KINDS[kind].model_fields[name])
    return TypeAdapter(made, config=None if _is_model(made) else ConfigDict(strict=True, allow_inf_nan=False))


def _is_model(annotation: object) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


@cache
def _shape(model: type[BaseModel]) -> tuple[tuple[str, object], ...]:
    return tuple((name, _annotation(info)) for name, info in model.model_fields.items())


def _annotation(info: Any) -> object:  # pydantic's FieldInfo, generic in nothing
    return Annotated[info.annotation, *info.metadata] if info.metadata else info.annotation


def _references(model: type[BaseModel], data: Mapping[str, Any]) -> Iterator[str]:
    for name, annotation in _shape(model):
        yield from _named(annotation, data.get(name))


def _named(annotation: object, value: object) -> Iterator[str]:
    """The ids in a value, by the marks in its type."""
    arguments, origin = get_args(annotation), get_origin(annotation)
    if _is_model(annotation) and isinstance(value, Mapping):
        yield from _references(cast("type[BaseModel]", annotation), cast("Mapping[str, Any]", value))
    elif Reference in arguments and isinstance(value, str):
        yield value
    elif origin is list and isinstance(value, list):
        for each in cast("list[object]", value):
            yield from _named(arguments[0], each)
    elif origin is dict and isinstance(value, Mapping):
        for key in cast("Mapping[str, object]", value):
            yield from _named(arguments[0], key)
    elif origin in {Annotated, Union, UnionType}:
        for inner in arguments if origin is not Annotated else arguments[:1]:
            yield from _named(inner, value)


def _problems(error: ValidationError, root: str) -> list[str]:
    return [
        f"{'.'.join([root, *(clean(str(part), limit=40) for part in found['loc'])])}: {found['msg']}"
        for found in error.errors(include_url=False, include_input=False, include_context=False)
    ]
