"""Owns how a change is shown: lines that would be gone and lines that would come, bounded, off the event loop. Pure."""

from __future__ import annotations

import asyncio
import difflib
from collections.abc import Iterator

import orjson

from body_broker.calls import Json
from body_broker.text import shortened
from mcp_servers.admin.changes.kind import TEXT_MAX

_LINES_COMPARED_MAX = 2_000
"""Longer texts are shown one after the other: finding what they share costs the square of their lines."""
_CONTEXT = 2


async def difference(before: str, after: str, *, limit: int = TEXT_MAX) -> str:
    """What of a text would be gone (-) and what would come (+), with some lines around."""
    return shortened(await asyncio.to_thread(_difference, before, after), limit)


def _difference(before: str, after: str) -> str:
    old, new = before.splitlines(), after.splitlines()
    if max(len(old), len(new)) > _LINES_COMPARED_MAX:
        return "\n".join([*(f"- {line}" for line in old), *(f"+ {line}" for line in new)])
    return "\n".join(_lines(old, new))


def _lines(old: list[str], new: list[str]) -> Iterator[str]:
    for number, line in enumerate(difflib.unified_diff(old, new, lineterm="", n=_CONTEXT)):
        if number < 2:  # noqa: PLR2004 - the two lines that would name files
            continue
        yield "…" if line.startswith("@@") else f"{line[0]} {line[1:]}"


def prefixed(sign: str, text: str, *, limit: int = TEXT_MAX) -> str:
    """Every line of a text as gone (-) or coming (+), its beginning where it is long."""
    return "\n".join(f"{sign} {line}" for line in shortened(text, limit).splitlines())


def pretty(value: Json) -> str:
    """A JSON value in lines, always the same ones."""
    return orjson.dumps(value, option=orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS).decode()


def brief(value: Json, *, limit: int = 60) -> str:
    """A JSON value on one line, cut."""
    text = orjson.dumps(value, option=orjson.OPT_SORT_KEYS).decode()
    return text if len(text) <= limit else f"{text[: limit - 1]}…"
