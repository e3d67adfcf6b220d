"""Owns what a sentence is made of for the rules: units (words, names, quotes), each with one tag, so that patterns are short."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from mcp_servers.storyteller.consistency import lexicon as words
from mcp_servers.storyteller.consistency.names import Names, is_capitalised, unknown_run
from mcp_servers.storyteller.consistency.sentences import Sentence, Word

KIND_TAGS = {"person": "p", "place": "l", "faction": "f", "quest": "q", "item": "i", "other": "o"}
VAGUE, UNKNOWN = "k", "u"
"""A name that several have or that is part of one; a name that canon does not know."""

_SIGNS = {",": ",", ";": ";", ":": ";", "—": "-", "–": "-", "-": "-", ".": ".", "!": ".", "…": ".", "?": "?"}
_EYED = re.compile(r"(\w+)-(eyed|haired)")
_AGED = re.compile(r"([a-z]+(?:-[a-z]+)?|\d+)-year-old")
_SUBORDINATE = frozenset(
    ["while", "when", "as", "because", "that", "where", "though", "although", "until", "since", "so", "if", "unless", "whether", "lest"]
)  # fmt: skip
_SINGLE = {
    "and": "C", "but": "J", "or": "J", "eyes": "E", "eye": "E", "hair": "E", "gaze": "E", "aged": "g", "year-old": "Y", "he": "r", "she": "r",
    "it": "r", "they": "r", "i": "r", "we": "r", "you": "r", "who": "w", "whom": "w", "which": "w", "whose": "w", "'s": "'",
}  # fmt: skip
_CLASSES: tuple[tuple[frozenset[str] | set[str] | dict[str, str], str], ...] = (
    (words.NEGATION, "X"), (words.BE, "B"), (words.HAVE, "H"), (words.MODAL, "M"), (_SUBORDINATE, "W"), (words.KIN, "K"),
    (words.CHILDREN, "Z"), (words.TIMES, "T"), (words.COLOURS, "c"), (words.DETERMINER, "D"), (words.PREPOSITION, "P"),
    (words.ACTS, "V"), (words.STATES, "S"), (words.ACTING, "G"), (words.ADVERBS, "R"), (words.ADJECTIVES, "A"), (words.NOUNS, "n"),
    (words.ACTS_BASE, "v"),
)  # fmt: skip


@dataclass(slots=True)
class Unit:
    """A word, a whole name or a whole quote: characters start to end of the text.

    Attributes:
        tag: One character; `units` says which.
        key: Whose name it is, or whom a pronoun means.
    """

    start: int
    end: int
    text: str
    tag: str
    key: str | None = None

    @property
    def low(self) -> str:
        """In lower case, with a straight apostrophe."""
        return self.text.lower().replace("’", "'")


def units(sentence: Sentence, names: Names, text: str) -> list[Unit]:
    """The sentence's units.

    Names: p person, l place, f faction, q quest, i item, o known by name alone, k vague, u unknown. Q is a quote. Words: V what
    the living do, G the same in -ing, v its infinitive, S a state, B is, H has, M would, X not, D determiner, A adjective,
    c colour, n noun, E eyes or hair, e green-eyed, K kin, Z child, y thirty-year-old, # number, T time, P preposition, R adverb,
    C and, J but, W while, w who, r pronoun, h his or her, g aged, ' possessive, x anything else; signs stand for themselves.
    """
    found: list[Unit] = []
    at, all_words = 0, sentence.words
    while at < len(all_words):
        word = all_words[at]
        quote = next(((a, b) for a, b in sentence.quoted if a <= word.start < b), None)
        if quote is not None:
            follows = next((word.low for word in all_words[at:] if word.start >= quote[1]), "")
            # A title in quotation marks is no speech.
            key = None if _is_called(text, quote, follows) else names.find(_inside(text, quote))
            if key and names.by_key[key].kind == "person" and follows in words.SPEAKS:
                key = None
            tag = KIND_TAGS[names.by_key[key].kind] if key else "Q"
            found.append(Unit(quote[0], quote[1], text[quote[0] : quote[1]], tag, key))
            while at < len(all_words) and all_words[at].start < quote[1]:
                at += 1
            continue
        unit, taken = _name(all_words, at, names, begins=_begins(found)) or (_plain(word, found), 1)
        found.append(unit)
        at += taken
    return found


def tags(of: Sequence[Unit]) -> str:
    """Their tags, one character each."""
    return "".join(unit.tag for unit in of)


def number_of(low: str) -> int | None:
    """A whole number written in digits or in words up to ninety-nine."""
    if low.isdigit() and low.isascii():
        return int(low) if len(low) <= 6 else None  # noqa: PLR2004 - no age, hour or count has more digits
    if low in words.NUMBERS:
        return words.NUMBERS[low]
    tens, _, ones = low.partition("-")
    if tens in words.NUMBERS and ones in words.NUMBERS and words.NUMBERS[tens] >= 20 and 0 < words.NUMBERS[ones] < 10:  # noqa: PLR2004 - as English counts
        return words.NUMBERS[tens] + words.NUMBERS[ones]
    return None


def looked(low: str) -> tuple[str, str] | None:
    """What `green-eyed` says: the predicate and the colour."""
    found = _EYED.fullmatch(low)
    if found is None or found[1] not in words.COLOURS:
        return None
    return "eye_colour" if found[2] == "eyed" else "hair_colour", words.COLOURS[found[1]]


def years_of(low: str) -> int | None:
    """What `thirty-four-year-old` says."""
    found = _AGED.fullmatch(low)
    return number_of(found[1]) if found else None


def _is_called(text: str, quote: tuple[int, int], follows: str) -> bool:
    """Whether what is quoted is spoken, by its last sign or by what follows it."""
    last = text[quote[1] - 2]
    return last in "!?" or (last == "," and follows in words.SPEAKS)


def _inside(text: str, quote: tuple[int, int]) -> str:
    return text[quote[0] + 1 : quote[1] - 1].strip(" .,!") if quote[1] - quote[0] <= 120 else ""  # noqa: PLR2004 - no title is longer


def _name(all_words: Sequence[Word], at: int, names: Names, *, begins: bool) -> tuple[Unit, int] | None:
    """The name that begins there, with the title before it."""
    word = all_words[at]
    whole = names.whole(all_words, at)
    if whole is not None:
        return _unit(all_words, at, whole[0], *_tag(whole[1], names)), whole[0]
    if word.text in words.TITLES and at + 1 < len(all_words):
        return _titled(all_words, at, names, begins=begins)
    if not is_capitalised(word) or word.text in words.NOT_NAMES:
        return None
    return _alone(all_words, at, names, begins=begins)


def _begins(before: Sequence[Unit]) -> bool:
    """Whether the next word begins a sentence, a heading, or what stands after a colon or a dash: a capital there says little."""
    return not any(unit.text[0].isalnum() for unit in before) or before[-1].tag in "Q;-"


def _titled(all_words: Sequence[Word], at: int, names: Names, *, begins: bool) -> tuple[Unit, int] | None:
    """A title with the name after it; a title alone says that somebody is meant, not who."""
    skip = 2 if all_words[at + 1].text == "." else 1
    after = _name(all_words, at + skip, names, begins=False) if at + skip < len(all_words) else None
    if after is not None:
        named, taken = after
        return _unit(all_words, at, taken + skip, named.tag, named.key), taken + skip
    return None if begins else (_unit(all_words, at, 1, VAGUE, None), 1)


def _alone(all_words: Sequence[Word], at: int, names: Names, *, begins: bool) -> tuple[Unit, int] | None:
    """A capitalised word that is no whole name: part of one, a common word that begins a sentence, or unknown."""
    word = all_words[at]
    known, key = names.part(word.text)
    if known and not (begins and key is None):
        return _unit(all_words, at, 1, *_tag(key, names)), 1
    count = unknown_run(all_words, at, names)
    if word.low in words.STARTERS or (begins and count == 1 and _common(word.low)):
        return None
    if word.low in words.NOUNS or word.text in words.TITLES:
        return _unit(all_words, at, 1, VAGUE, None), 1
    return _unit(all_words, at, count, UNKNOWN, None), count


def _common(low: str) -> bool:
    """Whether a word that begins a sentence is likely no name."""
    return (
        low in words.STARTERS
        or any(low in words_of for words_of, _ in _CLASSES)
        or low in _SINGLE
        or low.endswith(("ly", "ing", "ness", "tion", "ment", "ed", "s"))
        or number_of(low) is not None
    )


def _tag(key: str | None, names: Names) -> tuple[str, str | None]:
    return (VAGUE, None) if key is None else (KIND_TAGS[names.by_key[key].kind], key)


def _unit(all_words: Sequence[Word], at: int, count: int, tag: str, key: str | None) -> Unit:
    last = all_words[at + count - 1]
    return Unit(
        all_words[at].start,
        last.end,
        " ".join(w.text for w in all_words[at : at + count]).replace(" . ", ". "),
        tag,
        key,
    )


def _plain(word: Word, before: Sequence[Unit]) -> Unit:
    return Unit(word.start, word.end, word.text, _tag_of(word.low, before))


def _tag_of(low: str, before: Sequence[Unit]) -> str:
    if single := _SIGNS.get(low) or _SINGLE.get(low):
        return single
    if low in words.NOUNS and low in words.ACTS:
        return "V" if before and before[-1].tag in "pourR" else "n"
    if low != "one" and number_of(low) is not None:
        return "#"
    return next((tag for members, tag in _CLASSES if low in members), None) or _shaped(low)


def _shaped(low: str) -> str:
    """The tag of a word by its form."""
    if low.endswith("n't"):
        return "X"
    if looked(low):
        return "e"
    return "y" if years_of(low) is not None else "x"
