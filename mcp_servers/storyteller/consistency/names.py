"""Owns the names that canon knows and finding them in a sentence: whole names, parts that mean one alone, titles before them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from mcp_servers.storyteller.consistency.lexicon import NOT_NAMES, TITLES
from mcp_servers.storyteller.consistency.sentences import Word, sentences

Kind = Literal["person", "place", "faction", "quest", "item", "other"]
"""What something is; `other` is known by name alone, and may be anything."""

NAME_WORDS_MAX = 8
_ARTICLES = frozenset({"the", "a", "an"})
_LINKS = frozenset({"of", "the", "de", "von", "van", "and", "in", "on", "at", "to", "for"})


@dataclass(frozen=True, slots=True)
class Named:
    """Somebody or something that canon knows.

    Attributes:
        key: Its id, or the name it goes by where it has none.
        label: How people write it.
    """

    key: str
    label: str
    kind: Kind


@dataclass(slots=True)
class Names:
    """Every name that canon knows."""

    by_key: dict[str, Named] = field(default_factory=dict[str, Named])
    _whole: dict[tuple[str, ...], set[str]] = field(default_factory=lambda: defaultdict(set))
    _parts: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    _heads: set[str] = field(default_factory=set[str])

    def copy(self) -> Names:
        """Another one to add to."""
        return Names(
            dict(self.by_key),
            defaultdict(set, {name: set(keys) for name, keys in self._whole.items()}),
            defaultdict(set, {part: set(keys) for part, keys in self._parts.items()}),
            set(self._heads),
        )

    def add(self, named: Named, aliases: Iterable[str] = ()) -> None:
        """Know somebody or something, under its label and other names; who is known as `other` may become more than that."""
        known = self.by_key.get(named.key)
        if known is None or known.kind == "other":
            self.by_key[named.key] = named
        for name in (named.label, *aliases):
            words = _words(name)
            if not words:
                continue
            for form in _forms(words):
                self._whole[form].add(named.key)
                self._heads.add(form[0])
            for word in words:
                if word[0].isupper() and word not in TITLES and word.lower() not in _ARTICLES:
                    self._parts[word].add(named.key)

    def whole(self, words: Sequence[Word], at: int) -> tuple[int, str | None] | None:
        """How many words from there on are a known name, and whose; None for whose where several have it."""
        if words[at].text not in self._heads:
            return None
        texts = [word.text for word in words[at : at + NAME_WORDS_MAX]]
        for count in range(len(texts), 0, -1):
            if keys := self._whole.get(tuple(texts[:count])):
                return count, next(iter(keys)) if len(keys) == 1 else None
        return None

    def part(self, word: str) -> tuple[bool, str | None]:
        """Whether a word is part of a known name, and whose where it means one person alone."""
        keys = self._parts.get(word)
        if not keys:
            return False, None
        owners = {key for key in keys if self.by_key[key].kind in ("person", "other")}
        only = next(iter(keys)) if len(keys) == 1 and owners else None
        return True, only

    def is_known(self, text: str) -> bool:
        """Whether a text is a whole name, of one or of several."""
        return any(form in self._whole for form in _forms(_words(text) or ("",)))

    def find(self, text: str) -> str | None:
        """Whose name a text is; None where nobody's or several have it."""
        if text in self.by_key:
            return text
        words = [word for sentence in sentences(text) for word in sentence.words]
        for skipped in range(2 if len(words) > 1 and words[0].low in _ARTICLES else 1):
            found = self.whole(words, skipped) if words else None
            if found is not None and found[0] == len(words) - skipped:
                return found[1]
        return self.part(words[0].text)[1] if len(words) == 1 else None


def _words(name: str) -> tuple[str, ...]:
    return tuple(word.text for sentence in sentences(name) for word in sentence.words)[:NAME_WORDS_MAX]


def _forms(words: tuple[str, ...]) -> list[tuple[str, ...]]:
    """How a name may be written: without its title, and without its article where it is capitalised.

    An article before words in lower case stays: the gentleman is not any gentleman.
    """
    if len(words) == 1:
        return [words]
    if words[0].lower() in _ARTICLES:
        if any(word[0].isupper() for word in words[1:]):
            return [words[1:]]
        return [(words[0].lower(), *words[1:]), (words[0].capitalize(), *words[1:])]
    bare = words[2:] if words[1] == "." else words[1:]
    return [words, bare] if words[0] in TITLES and len(bare) > 1 else [words]


def is_capitalised(word: Word) -> bool:
    """Whether a word is written as names are."""
    first = word.text[0]
    return first.isupper() and len(word.text) > 1 and not (word.text.isupper() and len(word.text) > 1)


def unknown_run(words: Sequence[Word], at: int, names: Names) -> int:
    """How many words from there on are one capitalised name, with `of the` and the like inside it; a known name ends it."""
    end = at + 1
    while end < len(words) and end - at < NAME_WORDS_MAX:
        if names.whole(words, end) is not None or names.part(words[end].text)[0]:
            break
        if is_capitalised(words[end]) and words[end].text not in NOT_NAMES:
            end += 1
        elif words[end].low in _LINKS and end + 1 < len(words) and _linked(words, end):
            end += 2 if is_capitalised(words[end + 1]) else 3
        else:
            break
    return min(end, len(words)) - at


def _linked(words: Sequence[Word], at: int) -> bool:
    """`of Lamps`, `of the Lamps`: only what names commonly hold."""
    if words[at].low not in {"of", "de", "von", "van"}:
        return False
    if is_capitalised(words[at + 1]):
        return True
    return words[at + 1].low == "the" and at + 2 < len(words) and is_capitalised(words[at + 2])
