"""Owns what is embedded of a passage: title, heading and text, in as many parts as its model can read. Pure."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence

from body_broker.lore.embedding.words import Text

TEXT = 1
"""Raised whenever something else of a passage is embedded: it is part of every model's name, so that all is embedded anew."""

Size = Callable[[Sequence[str]], list[int]]
"""How much of a model's room each text takes, in whatever the model counts: a letter may take several, or none."""

_SENTENCE = re.compile(r"(?<=[.!?…])[\"'”’)\]]*\s+|\n\s*\n|(?<=[。！？])")


def parts_of(text: Text, size: Size, room: int) -> list[str]:
    """The texts to embed for a passage: one, or several of like size that end with sentences, each under title and heading.

    Args:
        text: The passage.
        size: How the model counts.
        room: What one text may take.
    """
    head = f"{text.title}\n{text.heading}\n"
    whole = head + text.content
    if size([whole])[0] <= room:
        return [whole]
    while len(head) > 1 and size([head])[0] > room // 2:  # somebody gave a title or heading that fills the room
        head = f"{head[: len(head) // 2].rstrip()}\n"
    left = room - size([head])[0]
    pieces = [piece for sentence in _sentences(text.content) for piece in _fitting(sentence, size, left)]
    return [head + part for part in _packed(pieces, size(pieces), left)]


def _sentences(content: str) -> Iterator[str]:
    start = 0
    for found in _SENTENCE.finditer(content):
        if found.end() > start:
            yield content[start : found.end()]
        start = found.end()
    if content[start:].strip():
        yield content[start:]


def _fitting(sentence: str, size: Size, room: int) -> Iterator[str]:
    """The sentence, or what it is cut into where it alone does not fit: at blanks, else anywhere."""
    if len(sentence) <= 1 or size([sentence])[0] <= room:
        yield sentence
        return
    middle = sentence.rfind(" ", 1, len(sentence) // 2 + 1) + 1 or len(sentence) // 2
    yield from _fitting(sentence[:middle], size, room)
    yield from _fitting(sentence[middle:], size, room)


def _packed(pieces: Sequence[str], sizes: Sequence[int], room: int) -> Iterator[str]:
    goal = sum(sizes) / max(1, math.ceil(sum(sizes) / room))  # marks alone may have no size
    part, taken = "", 0
    for piece, taking in zip(pieces, sizes, strict=True):
        # Parts of like size: a last one of two words would be near to everything.
        if part and (taken + taking > room or taken + taking / 2 > goal):
            yield part
            part, taken = "", 0
        part, taken = part + piece, taken + taking
    yield part
