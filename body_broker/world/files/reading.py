"""Owns getting a world's JSON from disk: one file or a folder of them, bounded, with every fault named by its place. Blocking."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from body_broker.errors import BadInput, NotFound
from body_broker.text import clean, is_clean
from body_broker.world.files.model import FILE_BYTES_MAX, LORE_TEXT_MAX

DEPTH_MAX = 32
FILES_MAX = 500
_MIB = 1024 * 1024
_TEXTS = {".md": "markdown", ".markdown": "markdown", ".txt": "text"}


@dataclass(frozen=True, slots=True)
class Source:
    """One JSON file as it was read.

    Attributes:
        name: Of the file, where there are several; empty for the only one.
        folder: What `file` of a lore entry is relative to.
        content: Its JSON object, its texts without invisible characters.
    """

    name: str
    folder: Path
    content: dict[str, Any]

    def at(self, place: str) -> str:
        """A place in this file, as problems name it."""
        return f"{self.name}: {place}" if self.name else place


class _Fault(Exception):
    """What is wrong with a file's JSON."""


def read_sources(path: Path) -> tuple[list[Source], list[str]]:
    """The JSON files at a path, and what is wrong with those that cannot be read as JSON.

    Args:
        path: A file, or a folder whose own .json files together are one world.

    Raises:
        NotFound: There is nothing at that path.
        BadInput: A folder holds no JSON file, or too many.
    """
    if path.is_dir():
        files = sorted(file for file in path.glob("*.json") if not file.name.startswith("."))
        if not files or len(files) > FILES_MAX:
            raise BadInput(
                f"The folder {clean(path.name)} holds {len(files)} JSON files.",
                next_step=f"A world is one JSON file, or 1 to {FILES_MAX} in one folder; docs/world.md has the format.",
            )
    elif path.is_file():
        files = [path]
    else:
        raise NotFound(f"There is no file or folder {clean(path.name)}.", next_step="Check the path.")
    found: list[Source] = []
    problems: list[str] = []
    left = FILE_BYTES_MAX
    for file in files:
        name = clean(file.name, limit=100)
        try:
            data = _bytes(file, left)
            left -= len(data)
            found.append(Source(name if path.is_dir() else "", file.parent, _object(data)))
        except _Fault as fault:
            problems.append(f"{name}: {fault}")
    return found, problems


def read_text(source: Source, file: str) -> tuple[str, str] | str:
    """The text of a lore entry's `file` and its format; or what is wrong with it."""
    path = source.folder / file
    form = _TEXTS.get(path.suffix.lower())
    if form is None:
        return "is no .md or .txt file"
    try:
        if not path.resolve().is_relative_to(source.folder.resolve()):
            return "lies outside the folder of the world file"
        data = _bytes(path, LORE_TEXT_MAX)
        text = data.decode("utf-8-sig").replace("\r\n", "\n")
    except _Fault as fault:
        return str(fault)
    except UnicodeDecodeError:
        return "is not UTF-8 text"
    except (OSError, ValueError, RuntimeError):  # a name that no file can have, a ring of links
        return "cannot be read"
    return (clean(text), form) if clean(text).strip() else "holds no text"


def _bytes(file: Path, limit: int) -> bytes:
    if file.exists() and not file.is_file():  # a pipe would be waited for
        raise _Fault("is no file")
    try:
        with file.open("rb") as opened:
            data = opened.read(limit + 1)  # its size may be a lie
    except FileNotFoundError:
        raise _Fault("is not there") from None
    except OSError:
        raise _Fault("cannot be read") from None
    if len(data) > limit:
        raise _Fault(f"is too large: a world may have {FILE_BYTES_MAX // _MIB} MiB, a text {LORE_TEXT_MAX} bytes")
    return data


def _object(data: bytes) -> dict[str, Any]:
    try:
        found: object = json.loads(data.decode("utf-8-sig"), object_pairs_hook=_pairs, parse_constant=_no_number)
    except UnicodeDecodeError as error:
        raise _Fault(f"is not UTF-8 text (byte {error.start})") from None
    except json.JSONDecodeError as error:
        raise _Fault(f"is not JSON (line {error.lineno}, column {error.colno})") from None
    except RecursionError:
        raise _Fault(f"is nested deeper than {DEPTH_MAX} levels") from None
    except ValueError:  # a whole number of thousands of digits
        raise _Fault("holds a number that is too long") from None
    if not isinstance(found, dict):
        raise _Fault("is no JSON object")
    return cast("dict[str, Any]", _cleaned(cast("object", found), 1))


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(name for n, (name, _) in enumerate(pairs) if name in dict(pairs[:n]))
        raise _Fault(f"has {clean(twice, limit=80)!r} twice in one object")
    return found


def _no_number(text: str) -> float:
    raise _Fault(f"holds {text}, which is no number")


def _cleaned(value: Any, depth: int) -> Any:  # any JSON value
    """The value with its texts clean; numbers that no JSON can hold and names with invisible characters are refused."""
    if depth > DEPTH_MAX:
        raise _Fault(f"is nested deeper than {DEPTH_MAX} levels")
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, float) and not math.isfinite(value):
        raise _Fault("holds a number that is too large")
    if isinstance(value, list):
        return [_cleaned(each, depth + 1) for each in cast("list[Any]", value)]
    if isinstance(value, dict):
        return dict(_fields(cast("dict[str, Any]", value), depth))
    return value


def _fields(value: dict[str, Any], depth: int) -> Iterator[tuple[str, Any]]:
    for name, each in value.items():
        if not is_clean(name):
            raise _Fault(f"has a name with invisible characters: {clean(name, limit=80)!r}")
        yield name, _cleaned(each, depth + 1)
