"""Owns what an upstream's words mean as definitions: canonical, without what changes by itself, and as text that people can compare."""

from __future__ import annotations

import difflib
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol, cast

import orjson

from body_broker.calls import Json
from body_broker.errors import Unavailable
from body_broker.text import is_clean, shortened
from mcp_servers.upstreams.model import Definition, Kind

_SHOWN_MAX = 12_000
_LINE_MAX = 400
_LINES_MAX = 5_000
# What changes without meaning: a resource's size, when it was changed, and what servers note beside (MCP's `_meta`), which the hub
# neither shows nor acts on. Everything else counts, known to us or not.
_VOLATILE = frozenset({"_meta", "size"})
_VOLATILE_HINTS = frozenset({"lastModified"})
_NAMED_BY: Mapping[Kind, str] = {"tool": "name", "prompt": "name", "resource": "uri", "template": "uriTemplate"}


class Offered(Protocol):
    """What a link brings of everything that an upstream lists, as it came."""

    @property
    def tools(self) -> Sequence[Json]:
        """Its tools."""
        ...

    @property
    def prompts(self) -> Sequence[Json]:
        """Its prompts."""
        ...

    @property
    def resources(self) -> Sequence[Json]:
        """Its resources."""
        ...

    @property
    def templates(self) -> Sequence[Json]:
        """Its resource templates."""
        ...


def definitions_of(offer: Offered) -> tuple[Definition, ...]:
    """Every definition in what an upstream lists.

    Raises:
        Unavailable: It lists what is no definition, or two under one name: nobody could say which of them is called.
    """
    found: dict[tuple[Kind, str], Definition] = {}
    lists: tuple[tuple[Kind, Sequence[Json]], ...] = (
        ("tool", offer.tools),
        ("prompt", offer.prompts),
        ("resource", offer.resources),
        ("template", offer.templates),
    )
    for kind, rows in lists:
        for raw in rows:
            definition = _definition(kind, raw)
            if (kind, definition.name) in found:
                raise _unfit("two definitions under one name")
            found[kind, definition.name] = definition
    return tuple(found.values())


def difference(old: Definition | None, new: Definition | None) -> str:
    """What changed, as a unified diff for people; characters that cannot be seen are shown as escapes, long texts are cut."""
    before, after = _lines(old), _lines(new)
    lines = difflib.unified_diff(before, after, "accepted", "seen now", n=2, lineterm="")
    return shortened("\n".join(lines), _SHOWN_MAX)


def _definition(kind: Kind, raw: Json) -> Definition:
    row = cast("dict[str, Json]", raw) if isinstance(raw, dict) else {}
    name = row.get(_NAMED_BY[kind])
    if not isinstance(name, str) or not name:
        raise _unfit("a definition without a name")
    body = {key: value for key, value in row.items() if key not in _VOLATILE}
    hints = body.get("annotations")
    if isinstance(hints, dict):
        known = cast("dict[str, Json]", hints)
        body["annotations"] = {key: value for key, value in known.items() if key not in _VOLATILE_HINTS}
    try:
        found = Definition(kind, name, body)
        _ = found.digest
    except (
        orjson.JSONEncodeError,
        RecursionError,
        ValueError,
    ) as error:  # half a surrogate pair, too deep, too many digits
        raise _unfit("a definition that is no JSON") from error
    return found


def _unfit(what: str) -> Unavailable:
    return Unavailable(
        f"An upstream server lists {what}, so nothing that it says now is taken.",
        next_step="Tell the people who run that server.",
    )


def _lines(definition: Definition | None) -> list[str]:
    if definition is None:
        return []
    found: list[str] = []
    for line in _readable({"kind": definition.kind, **definition.body}, ""):
        if len(found) >= _LINES_MAX:  # comparing takes the square of it
            found.append("[more lines are not compared here; the digest covers them]")
            break
        found.append(line)
    return found


def _readable(value: Json, path: str) -> Iterator[str]:
    """One line a leaf, `path: text`; a text of several lines has one for each, so that a changed word shows as one line."""
    if isinstance(value, dict) and value:
        for key, inner in sorted(cast("dict[str, Json]", value).items()):
            yield from _readable(inner, f"{path}.{_seen(key)}" if path else _seen(key))
    elif isinstance(value, list) and value:
        for number, inner in enumerate(cast("list[Json]", value)):
            yield from _readable(inner, f"{path}[{number}]")
    elif isinstance(value, str):
        for line in value.split("\n"):
            for at in range(0, max(len(line), 1), _LINE_MAX):
                yield f"{path}: {_seen(line[at : at + _LINE_MAX])}"
    else:
        yield f"{path}: {orjson.dumps(value).decode()}"


def _seen(text: str) -> str:
    """The text with every character that cannot be seen, or that turns the line, as an escape."""
    escaped = text.replace("\\", "\\\\")
    if is_clean(escaped) and "\t" not in escaped and "\n" not in escaped and escaped.isprintable():
        return escaped
    return "".join(c if c == " " or (c.isprintable() and not unicodedata.combining(c)) else _escape(c) for c in escaped)


def _escape(character: str) -> str:
    code = ord(character)
    return f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}"  # noqa: PLR2004 - where \u ends
