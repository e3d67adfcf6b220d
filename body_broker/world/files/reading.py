"""Owns getting a world's JSON from disk: one file or a folder of them, bounded, with every fault named by its place. Blocking."""

from __future__ import annotations

import json
import math
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from body_broker.errors import BadInput, NotFound
from body_broker.text import clean, is_clean
from body_broker.world.files.model import FILE_BYTES_MAX, LORE_TEXT_MAX, LORE_TEXTS_MAX

DEPTH_MAX = 32
FILES_MAX = 500
_MIB = 1024 * 1024
_WHOLE_MIN, _WHOLE_MAX = -(2**63), 2**64 - 1  # JSON is written with 64 bits a number
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


Place = tuple[int | str, ...]
"""The way to a value in JSON."""


class _Fault(Exception):
    """What is wrong with a file's JSON."""


@dataclass
class Texts:
    """The texts of one world's lore entries: each file is read once, and all together are bounded.

    Attributes:
        left: Bytes that further texts may have; below 0 where there were too many.
    """

    left: int = field(default_factory=lambda: LORE_TEXTS_MAX)
    _read: dict[Path, tuple[str, str] | str] = field(default_factory=dict[Path, "tuple[str, str] | str"])

    def of_file(self, source: Source, file: str) -> tuple[str, str] | str:
        """The text of an entry's file and its format; or what is wrong with it."""
        path = source.folder / file
        if path not in self._read:
            self._read[path] = _read_text(source, path)
        return self._read[path]

    def fault(self, text: str) -> str | None:
        """What is wrong with a clean text as the lore would store it; it is counted."""
        size = len(unicodedata.normalize("NFC", text).encode())  # composing may also lengthen it
        self.left -= size
        if size > LORE_TEXT_MAX:
            return f"has more than {LORE_TEXT_MAX} bytes of text"
        if self.left < 0:
            return f"with it the texts of this world have more than {LORE_TEXTS_MAX // _MIB} MiB; those after it were not read"
        return None if text.strip() else "text holds no text"


def path_of(place: Place) -> str:
    """A place in JSON: entities.npcs[3].place."""
    found = ""
    for part in place:
        found += f"[{part}]" if isinstance(part, int) else f".{clean(part, limit=60)}"
    return found.removeprefix(".") or "(the file)"


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


def _read_text(source: Source, path: Path) -> tuple[str, str] | str:
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
    return cast("dict[str, Any]", _cleaned(cast("object", found), ()))


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) == len(pairs):
        return found
    seen: set[str] = set()
    for name, _ in pairs:
        if name in seen:
            raise _Fault(f"has {clean(name, limit=80)!r} twice in one object")
        seen.add(name)
    return found


def _no_number(text: str) -> float:
    raise _Fault(f"holds {text}, which is no number")


def _cleaned(value: Any, place: Place) -> Any:  # any JSON value
    """The value with its texts clean; numbers that no JSON can hold and names with invisible characters are refused."""
    if len(place) >= DEPTH_MAX:
        raise _Fault(f"is nested deeper than {DEPTH_MAX} levels")
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, float) and not math.isfinite(value):
        raise _Fault(f"{path_of(place)}: holds a number that is too large")
    if isinstance(value, int) and not _WHOLE_MIN <= value <= _WHOLE_MAX:
        raise _Fault(f"{path_of(place)}: holds a whole number of more than 64 bits")
    if isinstance(value, list):
        return [_cleaned(each, (*place, n)) for n, each in enumerate(cast("list[Any]", value))]
    if isinstance(value, dict):
        return dict(_fields(cast("dict[str, Any]", value), place))
    return value


def _fields(value: dict[str, Any], place: Place) -> Iterator[tuple[str, Any]]:
    for name, each in value.items():
        if not is_clean(name):
            raise _Fault(f"has a name with invisible characters: {clean(name, limit=80)!r}")
        yield name, _cleaned(each, (*place, name))
