"""Owns reading what people and agents bring: text, Markdown, JSON Lines; anything else is refused by name before anything is stored."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import orjson

from body_broker.errors import BadInput, NotFound, TooLarge
from body_broker.lore.model import (
    DOCUMENT_BYTES_MAX,
    IMPORT_BYTES_MAX,
    IMPORT_DOCUMENTS_MAX,
    KNOWLEDGE_BYTES_MAX,
    SPOILER_LEVEL_MAX,
    TITLE_CHARACTERS_MAX,
    Draft,
    Format,
)
from body_broker.text import clean, is_clean

_FORMATS: dict[str, Format] = {".txt": "text", ".text": "text", ".md": "markdown", ".markdown": "markdown"}
_LINES = frozenset({".jsonl", ".ndjson"})
_READABLE = "Lore is UTF-8 text (.txt), Markdown (.md) or JSON Lines (.jsonl with title and text on every line)."
_NAME_MAX = 300
_MIB = 1024 * 1024


def read_paths(
    paths: Sequence[Path], *, title: str | None = None, metadata: Mapping[str, Any] | None = None
) -> list[Draft]:
    """Every document of these files and folders, or an error that names the first that is none; blocking.

    Folders are read whole, without following links, in the order of their names; what is hidden in them is passed over.

    Args:
        paths: Files and folders.
        title: The title, where there is exactly one document.
        metadata: Of every document; a JSON Lines document's own fields go before it.

    Raises:
        NotFound: A file is not there.
        BadInput: A file is no lore, or cannot be read, or two documents go by one name.
        TooLarge: A document, or all together, are more than the limits.
    """
    drafts: list[Draft] = []
    total = 0
    for path, name in _files(paths):
        found = _read(path, name)
        total += sum(len(draft.body.encode()) for draft in found)
        drafts += found
        _within_limits(len(drafts), total)
    if not drafts:
        raise BadInput("There is no file to import.", next_step=_READABLE)
    if title is not None and len(drafts) > 1:
        raise BadInput("A title is given, but there is more than one document.", next_step="Leave the title out.")
    if title is None and not metadata:
        return drafts
    return [make_draft(d.origin, title or d.title, d.body, d.form, {**(metadata or {}), **d.knowledge}) for d in drafts]


def make_draft(
    origin: str, title: str, body: str, form: Format = "text", knowledge: dict[str, Any] | None = None
) -> Draft:
    """A document that may be stored: line ends are newlines, characters composed (NFC), invisible ones gone.

    Raises:
        BadInput: It has no text or no title, or its spoiler_level or known_by cannot be read.
        TooLarge: It is more than 8 MiB.
    """
    stored = clean(unicodedata.normalize("NFC", body.replace("\r\n", "\n").replace("\r", "\n")))
    line = " ".join(clean(unicodedata.normalize("NFC", title)).split())[:TITLE_CHARACTERS_MAX]
    name = clean(origin, limit=_NAME_MAX)
    if not stored.strip():
        raise BadInput(f"{name} holds no text.", next_step=_READABLE)
    if not line:
        raise BadInput(f"{name} has no title.", next_step="Give it one.")
    if len(stored.encode()) > DOCUMENT_BYTES_MAX:
        raise _too_large(name)
    known: dict[str, Any] = {_named(key, name): _cleaned(value, name) for key, value in (knowledge or {}).items()}
    if len(orjson.dumps(known)) > KNOWLEDGE_BYTES_MAX:
        raise TooLarge(f"The fields of {name} beside title and text have more than {KNOWLEDGE_BYTES_MAX} bytes.")
    _check_limits(known, name)
    return Draft(name, line, stored, form, known)


def _check_limits(known: dict[str, Any], name: str) -> None:
    """Who may be told of it is read by the search, so it must be readable."""
    level, names = known.get("spoiler_level", 0), known.get("known_by", [])
    if type(level) is not int or not 0 <= level <= SPOILER_LEVEL_MAX:
        raise BadInput(f"The spoiler_level of {name} is no whole number from 0 to {SPOILER_LEVEL_MAX}.")
    if "known_by" in known and (not isinstance(names, list) or not names or not all(isinstance(n, str) for n in names)):  # pyright: ignore[reportUnknownVariableType] - JSON
        raise BadInput(f"The known_by of {name} is no list of names.", next_step="Leave it out where all may be told.")


def _named(key: str, name: str) -> str:
    if not is_clean(key):
        raise BadInput(f"A field of {name} has invisible characters in its name.")
    return key


def _cleaned(value: Any, name: str) -> Any:  # any JSON value
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, list):
        return [_cleaned(each, name) for each in cast("list[Any]", value)]
    if isinstance(value, dict):
        return {_named(key, name): _cleaned(each, name) for key, each in cast("dict[str, Any]", value).items()}
    return value


def _files(paths: Sequence[Path]) -> Iterator[tuple[Path, str]]:
    for path in paths:
        if path.is_dir():
            for folder, folders, names in os.walk(path):
                folders[:] = sorted(name for name in folders if not name.startswith("."))
                files = [Path(folder) / name for name in sorted(names) if not name.startswith(".")]
                yield from ((file, clean(str(file.relative_to(path)))) for file in files if not file.is_symlink())
        elif path.exists():
            yield path, clean(path.name)
        else:
            raise NotFound(f"There is no file {clean(path.name)}.", next_step="Check the path.")


def _read(path: Path, name: str) -> list[Draft]:
    kind = path.suffix.lower()
    if kind not in _FORMATS and kind not in _LINES:
        raise BadInput(f"{name} is not a kind of file that lore is read from.", next_step=_READABLE)
    limit = IMPORT_BYTES_MAX if kind in _LINES else DOCUMENT_BYTES_MAX
    try:
        if not path.is_file():
            raise BadInput(f"{name} is not a file.", next_step=_READABLE)
        with path.open("rb") as file:
            data = file.read(limit + 1)  # its size may be a lie, or change
    except OSError as error:
        raise BadInput(f"{name} cannot be read.", next_step="Check its permissions.") from error
    if len(data) > limit:
        raise _too_large(name, limit)
    text = _decoded(data, name)
    if kind in _LINES:
        return list(_lines(text, name))
    form = _FORMATS[kind]
    return [make_draft(name, _title_of(text, path, form), text, form)]


def _decoded(data: bytes, name: str) -> str:
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadInput(
            f"{name} is not UTF-8 text (byte {error.start}).", next_step=f"Save it as UTF-8. {_READABLE}"
        ) from error
    if "\0" in text:
        raise BadInput(f"{name} is binary, not text (a NUL at character {text.index(chr(0))}).", next_step=_READABLE)
    return text


def _title_of(text: str, path: Path, form: Format) -> str:
    if form == "markdown":
        for line in text.splitlines()[:50]:
            if line.startswith("# ") and line[2:].strip():
                return line[2:]
    return path.stem.replace("_", " ").replace("-", " ").strip().capitalize() or path.name


def _lines(text: str, name: str) -> Iterator[Draft]:
    seen: dict[str, int] = {}
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        where = f"{name} line {number}"
        fields = _object(line, where)
        title, body, key = fields.pop("title", None), fields.pop("text", None), fields.pop("id", None)
        if not isinstance(title, str) or not isinstance(body, str):
            raise BadInput(f"{where} needs a title and a text, both strings.", next_step=_READABLE)
        if key is not None and not isinstance(key, str | int):
            raise BadInput(f"{where} has an id that is neither a string nor a whole number.")
        origin = f"{name}#{title if key is None else key}"
        if origin in seen:
            raise BadInput(
                f"{where} has the title or id of line {seen[origin]}.", next_step="Give each line an id of its own."
            )
        seen[origin] = number
        try:
            yield make_draft(origin, title, body, "text", fields)
        except BadInput as error:
            raise type(error)(f"{where}: {error.message}", next_step=error.next_step) from error


def _object(line: str, where: str) -> dict[str, Any]:
    try:
        found = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise BadInput(f"{where} is not JSON.", next_step=_READABLE) from error
    if not isinstance(found, dict):
        raise BadInput(f"{where} is not a JSON object.", next_step=_READABLE)
    return found  # pyright: ignore[reportUnknownVariableType] - JSON keys are strings


def _within_limits(documents: int, total_bytes: int) -> None:
    if documents > IMPORT_DOCUMENTS_MAX:
        raise TooLarge(f"There are more than {IMPORT_DOCUMENTS_MAX} documents.", next_step="Import them in parts.")
    if total_bytes > IMPORT_BYTES_MAX:
        raise TooLarge(
            f"All documents together have more than {IMPORT_BYTES_MAX // _MIB} MiB.",
            next_step="Import them in parts.",
        )


def _too_large(name: str, limit: int = DOCUMENT_BYTES_MAX) -> TooLarge:
    return TooLarge(
        f"{name} has more than {limit // _MIB} MiB; a document may have {DOCUMENT_BYTES_MAX // _MIB}, a .jsonl file {IMPORT_BYTES_MAX // _MIB}.",
        next_step="Split it, for example by chapters, and import the parts.",
    )
