"""Owns writing the world out again as a world file: loaded into a new data dir it is the same world."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson

from body_broker.errors import BadInput, Conflict
from body_broker.storage.postgres import Pool
from body_broker.text import clean
from body_broker.world import kinds
from body_broker.world.canon import store
from body_broker.world.canon.model import Canon
from body_broker.world.files.model import FORMAT, SECTIONS, LoreEntry
from body_broker.world.model import Entity
from body_broker.world.reading import World, world_now


async def snapshot(pool: Pool) -> tuple[World, Canon]:
    """Entities and canon as they were at one moment."""
    async with pool.acquire() as connection, connection.transaction(isolation="repeatable_read", readonly=True):
        return await world_now(connection), await store.read_canon(connection)


def written(entities: Mapping[str, Entity], canon: Canon, lore: Sequence[LoreEntry]) -> dict[str, Any]:
    """The world as the JSON object of a world file.

    What was removed is in it and marked, because others may name it. Every field is stated, so that a load also puts back what has changed since.
    """
    sections: dict[str, list[dict[str, Any]]] = {section: [] for section in SECTIONS.values()}
    for each in sorted(entities.values(), key=lambda e: e.id):
        region = {} if each.kind == "region" else {"region": each.region}
        gone = {"removed": True} if each.removed else {}
        sections[SECTIONS[each.kind]].append({"id": each.id} | gone | region | _whole(each))
    return {
        "format": FORMAT,
        "entities": {section: entries for section, entries in sections.items() if entries},
        "predicates": [each.model_dump(mode="json") for each in canon.predicates],
        "facts": [each.model_dump(mode="json") for each in canon.facts],
        "plots": [each.model_dump(mode="json", exclude={"version"}) for each in canon.plots],
        "lore": [each.model_dump(mode="json", exclude_defaults=True) for each in lore],
    }


def _whole(entity: Entity) -> dict[str, Any]:
    """Its data with every field; where a game's own engine left something else, that as it is."""
    try:
        return kinds.check(entity.kind, entity.data)
    except BadInput:
        return dict(entity.data)


def write_file(file: Path, content: Mapping[str, Any], *, force: bool) -> int:
    """The bytes written: the whole file or none of it; blocking.

    Raises:
        Conflict: It is there, and `force` was not given.
        BadInput: It cannot be written there.
    """
    if file.exists() and not force:
        raise Conflict(f"{clean(file.name)} is there already.", next_step="Give another name, or --force.")
    data = orjson.dumps(content, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)
    try:
        handle, beside = tempfile.mkstemp(prefix=f".{file.name[:50]}-", dir=file.parent)
    except OSError as error:
        raise _unwritable(file) from error
    try:
        with os.fdopen(handle, "wb") as opened:
            opened.write(data)
            opened.flush()
            os.fsync(opened.fileno())
        Path(beside).chmod(0o644)
        Path(beside).replace(file)
    except OSError as error:
        with contextlib.suppress(OSError):
            Path(beside).unlink()
        raise _unwritable(file) from error
    return len(data)


def _unwritable(file: Path) -> BadInput:
    return BadInput(f"{clean(file.name)} cannot be written.", next_step="Check the folder and its permissions.")
