"""Owns what a sentence says of somebody: age, eyes, hair, home, kin, belonging, by a pattern each over its tags."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from body_broker.world.canon.model import OBJECT, SUBJECT, Predicate, Scalar
from mcp_servers.storyteller.consistency import lexicon as words
from mcp_servers.storyteller.consistency.claims import Says, Unknown
from mcp_servers.storyteller.consistency.units import Unit, looked, number_of, tags, years_of

Sure = Callable[[Sequence[Unit], "re.Match[str]"], bool]


@dataclass(frozen=True, slots=True)
class Way:
    """One way of saying a thing: a pattern over tags, with groups s (subject), o (object), x (not); and words that must be there.

    Attributes:
        predicate: What it says; empty where the words decide.
        lows: What the words at groups must be, by group.
        sure: A last look at what stands around it.
    """

    predicate: str
    pattern: re.Pattern[str]
    lows: dict[str, frozenset[str]] = field(default_factory=dict[str, frozenset[str]])
    sure: Sure | None = None


def _way(predicate: str, pattern: str, sure: Sure | None = None, **lows: str) -> Way:
    return Way(predicate, re.compile(pattern), {name: frozenset(said.split()) for name, said in lows.items()}, sure)


def _years(of: Sequence[Unit], found: re.Match[str]) -> bool:
    """A number after `is` is an age where nothing is counted by it."""
    rest = [unit.low for unit in of[found.end() : found.end() + 2]]
    if rest[:1] in (["years"], ["year"]):
        return len(rest) > 1 and rest[1] in {"old", "of"}
    return not rest or rest[0] in {".", ",", ";", "and", "but", "now", "when", "that", "today", "then", "-"}


def _grown(of: Sequence[Unit], found: re.Match[str]) -> bool:
    number = number_of(of[found.start("o")].low)
    return number is not None and number > 12  # noqa: PLR2004 - `at nine, Mara` is an hour


def _of_itself(of: Sequence[Unit], found: re.Match[str]) -> bool:
    """A colour that something gave (`red with weeping`), or that two share, is not claimed."""
    end = found.end("o")
    after = of[end] if end < len(of) else None
    return after is None or not (after.low in {"with", "from", "and", "in", "like", "as"} or after.tag == "c")


def _by_nature(of: Sequence[Unit], found: re.Match[str]) -> bool:
    end = found.end("o")
    return end == len(of) or of[end].low not in {"with", "from", "and"} or tags(of[end : end + 2]) == "CA"


_S, _HIS = "(?P<s>[po])", "(?P<s>[poh])'?"
_O = "(?P<o>[pou])"
_PLACE = "(?P<o>[lou])(?!')"
_NOT = "(?P<x>X)?"
_OF = "of"
_LIVES = "lives lived dwells dwelt resides resided lodges lodged"
_HOUSE = "home house lodgings cottage"

WAYS: tuple[Way, ...] = (
    _way("age", rf"{_S}(?:,?w)?BR?{_NOT}R?(?P<o>#)", _years),
    _way("age", rf"{_S}(?P<v>x)(?P<o>#)x", v="("),
    _way("age", rf"^P(?P<o>#)x(?P<p>P)x{_S}", p=_OF),
    _way("age", rf"{_S},g?(?P<o>#),"),
    _way("age", rf"{_S},?g(?P<o>#)"),
    _way("age", rf"(?P<o>y){_S}"),
    _way("age", rf"(?P<o>#)-?Y{_S}"),
    _way("age", rf"^(?P<p>P)(?P<o>#),{_S}", _grown, p="at"),
    _way("age", rf"{_S}B{_NOT}DA?n(?P<p>P)(?P<o>#)", p=_OF),
    _way("age", rf"{_HIS}(?P<w>x)B{_NOT}R?(?P<o>#)", w="age"),
    _way("", rf"{_S}'[Ac]?(?P<o>c)(?P<e>E)"),
    _way("", r"(?P<s>h)[Ac]?(?P<o>c)(?P<e>E)"),
    _way("", rf"{_HIS}(?P<e>E)BR?{_NOT}R?A?(?P<o>c)", _of_itself),
    _way("", rf"{_S}H{_NOT}D?[Ac]?(?P<o>c)(?P<e>E)"),
    _way("", rf"{_S},?(?P<p>P)[Dh]?A?(?P<o>c)(?P<e>E)", p="with"),
    _way("", rf"{_S}R?[VS]R?P?(?P<p>P)A?(?P<o>c)(?P<e>E)", p="with"),
    _way("", rf"(?P<o>c)(?P<e>E)(?P<p>P){_S}", p=_OF),
    _way("", rf"(?P<o>e){_S}"),
    _way("", rf"{_S}B{_NOT}(?P<o>e)"),
    _way("", rf"{_S},(?P<o>e)[,C]"),
    _way("", rf"{_HIS}(?P<e>E)[VSvx](?P<o>c)", _of_itself),
    _way("", rf"{_S}B{_NOT}DA?(?P<o>e)n"),
    _way("", rf"{_HIS}(?P<e>E),A?(?P<o>c)", _by_nature),
    _way("", r"(?P<p>P)(?P<s>h)A?(?P<o>c)(?P<e>E)", p="with"),
    _way("home", rf"{_S}(?:,w)?H?R?(?P<v>S)(?P<p>P)D?A?{_PLACE}", v=_LIVES, p="in at on"),
    _way("home", rf"{_HIS}(?P<v>[nxR])[BSV]{_NOT}P?D?A?{_PLACE}", v=_HOUSE),
    _way("home", rf"{_S}V[Dh](?P<v>[nxR])PD?A?{_PLACE}", v="home"),
    _way("birthplace", rf"{_S},?B?{_NOT}(?P<v>x)(?P<p>P)D?A?{_PLACE}", v="born", p="in at on"),
    _way("birthplace", rf"(?P<v>x)(?P<p>P)D?A?(?P<o>[lou]),{_S}", v="born", p="in at on"),
    _way("birthplace", rf"{_S}B{_NOT}D(?P<v>x)(?P<p>P)D?A?{_PLACE}", v="native", p=_OF),
    _way("kin", rf"{_HIS}(?P<k>K)BR?{_NOT}{_O}(?!')"),
    _way("kin", rf"{_HIS}(?P<k>K),?{_O}(?!')"),
    _way("kin", rf"{_O}BR?{_NOT}{_S}'(?P<k>K)"),
    _way("kin", rf"{_O},{_S}'(?P<k>K)"),
    _way("kin", rf"{_O}B{_NOT}D(?P<k>K)(?P<p>P){_S}(?!')", p=_OF),
    _way("kin", rf"{_O},D?(?P<k>K)(?P<p>P){_S}(?!')", p=_OF),
    _way("parent", rf"{_S}B{_NOT}D(?P<k>Z)(?P<p>P){_O}(?!')", p=_OF),
    _way("parent", rf"{_S},D?(?P<k>Z)(?P<p>P){_O}(?!')", p=_OF),
    _way("parent", rf"{_S}B{_NOT}{_O}'(?P<k>Z)"),
    _way("spouse", rf"{_S}B{_NOT}(?P<v>x)(?P<p>P){_O}(?!')", v="married", p="to"),
    _way("spouse", rf"{_S}(?P<v>x){_O}(?!')", v="married wed"),
    _way("member_of", rf"{_S}(?P<v>S)(?P<p>P)D?(?P<o>[fou])", v="belongs belonged", p="to"),
    _way("member_of", rf"{_S}(?P<v>V)D?(?P<o>f)(?!')", v="serves served"),
    _way("member_of", rf"{_S}B{_NOT}D(?P<v>x)(?P<p>P)D?(?P<o>[fou])", v="member agent brother sister", p=_OF),
    _way("owner", rf"(?P<s>[ilo])(?P<v>S)(?P<p>P){_O}(?!')", v="belongs belonged", p="to"),
    _way("owner", rf"{_O}(?P<v>S)D?(?P<s>[ilo])(?!')", v="owns owned"),
    _way("owner", rf"{_O}B{_NOT}D(?P<v>x)(?P<p>P)D?(?P<s>[ilo])(?!')", v="owner", p=_OF),
    _way("killed_by", rf"{_O}(?P<v>x){_S}(?!')", v="killed murdered slew poisoned strangled stabbed beheaded"),
    _way("killed_by", rf"{_S}B{_NOT}(?P<v>x)(?P<p>P){_O}(?!')", v="killed murdered slain poisoned strangled stabbed", p="by"),
    _way("status", rf"{_S}BR?{_NOT}R?(?P<o>x)(?=[.,;CJ]|$)", o="alive dead missing"),
    _way("occupation", rf"{_S}B{_NOT}D(?P<o>[xn])(?=[.,;CJP]|$)"),
    _way("occupation", rf"{_S},D(?P<o>[xn]),"),
)  # fmt: skip
_EYE_COLOURS_NOT = frozenset({"red", "pink", "white", "gold", "silver", "copper", "yellow"})


def told(of: Sequence[Unit], until: int) -> Iterator[Says]:
    """What units before `until` say of somebody."""
    line = tags(of)[:until]
    for way in WAYS:
        for found in way.pattern.finditer(line):
            if all(of[found.start(name)].low in lows for name, lows in way.lows.items()) and (
                way.sure is None or way.sure(of, found)
            ):
                yield from _says(of, way, found)


def _says(of: Sequence[Unit], way: Way, found: re.Match[str]) -> Iterator[Says]:
    """The claim, unless its subject or object is somebody's of somebody else."""
    first = found.start()
    if (first and (of[first - 1].tag in "'hX" or of[first - 1].low == "of")) or "M" in tags(
        of[max(0, first - 1) : first]
    ):
        return
    groups = found.groupdict()
    subject, thing = of[found.start("s")], of[found.start("o")]
    holds = not groups.get("x")
    predicate = way.predicate or _of_looks(of, found)
    if predicate == "kin":
        predicate = words.KIN[of[found.start("k")].low]
    value = _value(predicate, thing)
    if subject.key is None or value is None or (predicate == "eye_colour" and value in _EYE_COLOURS_NOT):
        return
    if [unit.low for unit in of[found.start() : found.end()]][-3:] == ["a", "black", "eye"]:
        return  # that heals
    if any(unit.low == "had" and n and way.predicate for n, unit in enumerate(of[found.start() : found.end()])):
        return
    yield Says(subject.key, predicate, value, (found.start(), _end(of, found.end(), predicate)), holds)


def strangers(of: Sequence[Unit], claim: Says) -> Iterator[Unknown]:
    """A name that canon does not know, given as somebody's kin, home or faction."""
    for at in range(*claim.span):
        if of[at].tag == "u" and of[at].text == claim.value:
            yield Unknown(of[at].text, (at, at + 1))


def _end(of: Sequence[Unit], end: int, predicate: str) -> int:
    """Where an age ends: with its `years old`."""
    while predicate == "age" and end < len(of) and of[end].low in {"years", "year", "old"}:
        end += 1
    return end if end == len(of) or of[end - 1].tag != "," else end - 1


def _of_looks(of: Sequence[Unit], found: re.Match[str]) -> str:
    if "e" in found.groupdict() and found["e"]:
        return "hair_colour" if of[found.start("e")].low == "hair" else "eye_colour"
    said = looked(of[found.start("o")].low)
    return said[0] if said else ""


def _value(predicate: str, thing: Unit) -> Scalar | None:
    if predicate == "age":
        return years_of(thing.low) if thing.tag == "y" else number_of(thing.low)
    if predicate in {"eye_colour", "hair_colour"}:
        said = looked(thing.low)
        return said[1] if said else words.COLOURS.get(thing.low)
    if predicate in {"status", "occupation"}:
        return thing.low
    return thing.key or (thing.text if thing.tag == "u" else None)


@dataclass(frozen=True, slots=True)
class Phrase:
    """A way that a world itself gives: words before, between and after subject and object."""

    predicate: str
    between: tuple[str, ...]
    after: tuple[str, ...]


def phrases_of(predicates: Sequence[Predicate]) -> list[Phrase]:
    """The ways of saying a thing that canon's own predicates give; those that begin with their subject."""
    found: list[Phrase] = []
    for predicate in predicates:
        for said in predicate.says:
            if said.startswith(SUBJECT) and OBJECT in said:
                between, _, after = said.removeprefix(SUBJECT).partition(OBJECT)
                found.append(
                    Phrase(predicate.name, tuple(between.lower().split()), tuple(after.lower().rstrip(".").split()))
                )
    return found


def phrased(of: Sequence[Unit], until: int, phrases: Sequence[Phrase]) -> Iterator[Says]:
    """What units before `until` say in a world's own words."""
    lows = [unit.low for unit in of[:until]]
    for at, unit in enumerate(of[:until]):
        if unit.key is None or (at and of[at - 1].tag in "'h"):
            continue
        for phrase in phrases:
            begin = at + 1 + len(phrase.between)
            if begin < until and tuple(lows[at + 1 : begin]) == phrase.between:
                begin += of[begin].tag == "D" and begin + 1 < until
                value = _value_of_words(of[begin])
                ends = begin + 1 + len(phrase.after)
                whole = of[begin].key is not None or bool(phrase.after) or ends >= until or of[ends].tag in ".,;CJ"
                if whole and tuple(lows[begin + 1 : ends]) == phrase.after:
                    yield Says(unit.key, phrase.predicate, value, (at, begin + 1 + len(phrase.after)))


def _value_of_words(unit: Unit) -> Scalar:
    number = number_of(unit.low)
    return unit.key or (number if number is not None else unit.low)
