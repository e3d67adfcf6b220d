"""Owns whether a world file is sound: its shape, then that everything it names is there. All faults at once, each by its place."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from pydantic import ValidationError

from body_broker.errors import BadInput
from body_broker.text import canonical_json, clean
from body_broker.world.canon.model import Fact, PlotGraph, Predicate
from body_broker.world.files import naming
from body_broker.world.files.model import (
    ENTITIES_MAX,
    FACTS_MAX,
    FORMAT,
    LORE_MAX,
    PLOTS_MAX,
    PREDICATES_MAX,
    SECTIONS,
    Entry,
    LoreEntry,
    WorldFile,
)
from body_broker.world.files.naming import Part
from body_broker.world.files.reading import Place, Source, Texts, path_of, read_sources
from body_broker.world.model import Kind

KNOWLEDGE_BYTES_MAX = 4_096
"""JSON bytes of what a lore document has beside title and text; the lore refuses more."""
PROBLEMS_MAX = 1_000
"""Problems told one by one; the rest is counted."""

STARTER = Path(__file__).parents[1] / "starter"
"""The starter world that comes with the package."""

NEXT_STEP = "Correct each place that is named; docs/world.md has the format, docs/world.schema.json its JSON Schema."


@dataclass(frozen=True, slots=True)
class World:
    """A world as its files say it, sound and whole.

    Attributes:
        entities: With their kinds, in the order of the files.
        lore: Each entry with its text in `text` and no `file`.
        warnings: What is odd in it and may be a slip.
    """

    entities: list[tuple[Kind, Entry]] = field(default_factory=list[tuple[Kind, Entry]])
    predicates: list[Predicate] = field(default_factory=list[Predicate])
    facts: list[Fact] = field(default_factory=list[Fact])
    plots: list[PlotGraph] = field(default_factory=list[PlotGraph])
    lore: list[LoreEntry] = field(default_factory=list[LoreEntry])
    warnings: list[str] = field(default_factory=list[str])

    def counts(self) -> dict[str, int]:
        """How many of each there are, by section."""
        kinds = [kind for kind, _ in self.entities]
        found = {section: kinds.count(kind) for kind, section in SECTIONS.items()}
        rest = {"predicates": self.predicates, "facts": self.facts, "plots": self.plots, "lore": self.lore}
        return found | {name: len(cast("list[object]", entries)) for name, entries in rest.items()}


def open_world(path: Path) -> World:
    """The world at a path: a JSON file, or a folder of them that together are one; blocking.

    Raises:
        NotFound: There is nothing there.
        BadInput: Something is wrong with it; `details["problems"]` names every fault by file and JSON path.
    """
    world, problems = examine(path)
    if problems:
        rest = f", and {len(problems) - 1} more" if problems[1:] else ""
        told = problems[:PROBLEMS_MAX]
        if len(problems) > PROBLEMS_MAX:
            told.append(f"... and {len(problems) - PROBLEMS_MAX} more")
        raise BadInput(
            f"The world file cannot be used: {problems[0]}{rest}.", next_step=NEXT_STEP, details={"problems": told}
        )
    return world


def examine(path: Path) -> tuple[World, list[str]]:
    """What can be understood of a world, and everything that is wrong with it; blocking.

    Raises:
        NotFound: There is nothing there.
        BadInput: A folder without a JSON file.
    """
    sources, problems = read_sources(path)
    parts: list[Part] = []
    ids: dict[str, str] = {}
    unread = bool(problems)
    for source in sources:
        part, found = _parsed(source)
        problems += found
        ids |= dict(_raw_ids(source.content))
        if part is not None:
            parts.append(part)
        unread = unread or part is None
    # What a file gives that could not be read is not missing for that.
    if not unread:
        problems += naming.problems(parts, ids)
    world = World(
        entities=[(kind, entry) for part in parts for kind, _, entry in part.file.each_entity()],
        predicates=[each for part in parts for each in part.file.predicates],
        facts=[each for part in parts for each in part.file.facts],
        plots=[each for part in parts for each in part.file.plots],
        warnings=list(naming.warnings(parts, ids)),
    )
    return world, problems + list(_read_lore(parts, world)) + list(_too_many(world))


def _read_lore(parts: Iterable[Part], world: World) -> Iterator[str]:
    """Give the world its lore, texts and all; what is wrong with it."""
    texts = Texts()
    for part in parts:
        for number, entry in enumerate(part.file.lore):
            whole = _with_text(part.source, entry, texts)
            if isinstance(whole, str):
                yield f"{part.at('lore', number)}: {whole}"
            else:
                world.lore.append(whole)
            if texts.left < 0:
                return


def _parsed(source: Source) -> tuple[Part | None, list[str]]:
    """What fits the format, and what does not; None where too little does to go on."""
    try:
        return Part(source, WorldFile.model_validate(source.content)), []
    except ValidationError as error:
        errors = error.errors(include_url=False, include_input=False, include_context=False)
    said: dict[str, list[str]] = {}
    for each in errors:
        place = _real(source.content, each["loc"], each["type"])
        said.setdefault(source.at(path_of(place)), []).append(each["msg"].removeprefix("Value error, "))
    problems = [f"{place}: {', or: '.join(dict.fromkeys(messages))}" for place, messages in said.items()]
    rest, kept = _without_bad(source.content, [each["loc"] for each in errors])
    try:
        return Part(source, WorldFile.model_validate(rest), kept), problems
    except ValidationError:
        return None, problems


def _real(content: Mapping[str, Any], place: Place, fault: str) -> Place:
    """A place without the names of the forms that a value was tried against, which are not in the file."""
    at: Any = content
    for depth, part in enumerate(place):
        if not (isinstance(at, dict) and part in at) and not (isinstance(at, list) and isinstance(part, int)):
            return place[: depth + 1] if fault == "missing" else place[:depth]
        at = cast("dict[int | str, Any]", at)[part]
    return place


def _without_bad(
    content: Mapping[str, Any], places: Iterable[tuple[int | str, ...]]
) -> tuple[dict[str, Any], dict[str, list[int]]]:
    """The file without the entries at these places, so that one does not hide what else is wrong; and the numbers of those left."""
    bad: dict[tuple[str, ...], set[int]] = {}
    found: dict[str, Any] = dict(content) | {"format": FORMAT}
    if isinstance(found.get("entities"), dict):
        found["entities"] = dict(found["entities"])
    for place in places:
        depth = 2 if place[:1] == ("entities",) else 1
        keys = tuple(str(part) for part in place[:depth])
        if len(place) > depth and isinstance(place[depth], int):
            bad.setdefault(keys, set()).add(cast("int", place[depth]))
        elif keys != ("format",):  # a section that is none
            holder = found if len(keys) == 1 else found["entities"]
            holder.pop(keys[-1], None)
    kept: dict[str, list[int]] = {}
    for keys, numbers in bad.items():
        holder = found if len(keys) == 1 else found["entities"]
        entries: list[Any] = holder.get(keys[-1], [])
        left = kept[".".join(keys)] = [n for n in range(len(entries)) if n not in numbers]
        holder[keys[-1]] = [entries[n] for n in left]
    return found, kept


def _raw_ids(content: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Ids that the file gives, also those of entries that do not fit: naming one of them is not the fault."""
    entities = content.get("entities")
    if not isinstance(entities, dict):
        return
    for kind, section in SECTIONS.items():
        entries = cast("dict[str, Any]", entities).get(section)
        for entry in cast("list[Any]", entries) if isinstance(entries, list) else []:
            named = cast("dict[str, Any]", entry).get("id") if isinstance(entry, dict) else None
            if isinstance(named, str):
                yield named, kind


def _with_text(source: Source, entry: LoreEntry, texts: Texts) -> LoreEntry | str:
    """The entry with its text in it; or what is wrong with it."""
    if (entry.text is None) == (entry.file is None):
        return "needs either a text or a file"
    if len(canonical_json(entry.knowledge())) > KNOWLEDGE_BYTES_MAX:
        return f"has more than {KNOWLEDGE_BYTES_MAX} bytes beside title and text"
    if not entry.title.strip():
        return "has no title"
    if entry.file is None:
        return texts.fault(entry.text or "") or entry
    found = texts.of_file(source, entry.file)
    if isinstance(found, str):
        return f"file {clean(entry.file, limit=100)!r} {found}"
    text, form = found
    return texts.fault(text) or entry.model_copy(update={"text": text, "file": None, "format": form})


def _too_many(world: World) -> Iterator[str]:
    """Several files together may break a bound that none of them does."""
    for name, count, most in (
        ("entities", len(world.entities), ENTITIES_MAX),
        ("predicates", len(world.predicates), PREDICATES_MAX),
        ("facts", len(world.facts), FACTS_MAX),
        ("plots", len(world.plots), PLOTS_MAX),
        ("lore", len(world.lore), LORE_MAX),
    ):
        if count > most:
            yield f"{name}: there are {count}, and a world may have {most}"
