"""Owns text as people are shown it: nothing in it unseen, moved or out of sight, and in pieces of a size."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass

# Control, format (bidi, zero-width, tags), private, unassigned, lone surrogates, odd line ends.
_UNSEEN = frozenset({"Cc", "Cf", "Co", "Cn", "Cs", "Zl", "Zp"})
# What draws nothing (joiners, fillers, variation selectors, blanks of scripts), and marks that strike other letters out.
_BLANK = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180d\u180f\u2800\u3164\ufe00-\ufe0f\uffa0\U00016fe4\U0001d159\U000e0100-\U000e01ef"
    "\u0334-\u0338\u20d0-\u20f0]"
)
_MARKS = frozenset({"Mn", "Me"})
_MARKS_MAX = 3
# Long runs push what follows out of sight. At the beginning of a line blanks are indentation, up to a screen's width.
_RUN = re.compile(r"\n(?:[ \t]*\n){3,}[ \t]*|(?<=[^ \t\n])[ \t]{16,}|(?:(?<=\n)|\A)[ \t]{81,}")
_LINE_MAX = 72
"""Columns of foreign text in a terminal: no line of it is broken by the terminal itself, to begin where ours do."""


@dataclass(frozen=True, slots=True)
class Shown:
    r"""Text as people are shown it.

    Attributes:
        text: Every character that could not be seen, or that moves others, is written out as \u and its code.
        hidden: How many these were.
    """

    text: str
    hidden: int = 0

    def parts(self, size: int) -> tuple[str, ...]:
        """The text in pieces of at most that `weight`, cut at line ends where there are any; nothing is left out."""
        found: list[str] = []
        begin = line = held = 0
        for at, c in enumerate(self.text):
            added = weight(c)
            if held + added > size:
                cut = line if line - begin > (at - begin) // 2 else at
                found.append(self.text[begin:cut])
                begin, held = cut, weight(self.text[cut:at])
            held += added
            if c == "\n":
                line = at + 1
        rest = self.text[begin:]
        return (*found, rest) if rest or not found else tuple(found)

    def lines(self) -> list[str]:
        """The text as lines for a terminal, each behind a bar: none of them can pass for a line of ours."""
        return [f"  {bar} {line}" for each in self.text.split("\n") for bar, line in _broken(each)]


def weight(text: str) -> int:
    """How long a text is at most as others count it: in UTF-16 units, with what HTML escapes escaped."""
    units = len(text) if text.isascii() else len(text.encode("utf-16-le", "surrogatepass")) // 2
    return units + 4 * text.count("&") + 3 * (text.count("<") + text.count(">"))


def _broken(line: str) -> Iterator[tuple[str, str]]:
    """One line in pieces that no terminal breaks, each with its bar."""
    bar, begin, width = "|", 0, 0
    for at, c in enumerate(line):
        wide = 8 if c == "\t" else 2 if unicodedata.east_asian_width(c) in "WF" else 1
        if width + wide > _LINE_MAX:
            yield bar, line[begin:at]
            bar, begin, width = ":", at, 0
        width += wide
    yield bar, line[begin:]


def visible(text: str) -> Shown:
    """The text with nothing in it that the reader cannot see: hidden, bidirectional and odd blank characters are written out."""
    if text.isascii() and text.isprintable() and not _RUN.search(text):
        return Shown(text)
    out: list[str] = []
    at = hidden = 0
    for run in _RUN.finditer(text):
        hidden += _write(text[at : run.start()], out) + len(run[0])
        out += map(_escaped, run[0])
        at = run.end()
    hidden += _write(text[at:], out)
    return Shown("".join(out), hidden)


def _write(text: str, out: list[str]) -> int:
    """Add the text as it is shown; how many characters of it were written out."""
    hidden = marks = 0
    for c in text:
        category = unicodedata.category(c)
        marks = marks + 1 if category in _MARKS else 0
        if marks > _MARKS_MAX or _is_hidden(c, category):
            hidden += 1
            out.append(_escaped(c))
            marks = min(marks, _MARKS_MAX) if marks > _MARKS_MAX else 0
        else:
            out.append(c)
    return hidden


def _is_hidden(c: str, category: str) -> bool:
    if c in "\n\t":
        return False
    return category in _UNSEEN or (category == "Zs" and c != " ") or _BLANK.match(c) is not None


def _escaped(c: str) -> str:
    data = c.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{int.from_bytes(data[i : i + 2]):04x}" for i in range(0, len(data), 2))
