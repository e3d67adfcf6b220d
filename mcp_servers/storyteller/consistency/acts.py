"""Owns who does what where in a sentence: subjects with their verbs, who dies, and where somebody is at what time."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from mcp_servers.storyteller.consistency import lexicon as words
from mcp_servers.storyteller.consistency.claims import Acts, At, Claim, Dies, Span, Unknown
from mcp_servers.storyteller.consistency.units import Unit, tags

_SOME = "[poku]"
_SUBJECT = re.compile(rf"{_SOME}(?:(?:,C?|C){_SOME}){{0,5}}")
_DOES = re.compile(r"(?:,[^,.;Q?]{1,14},)?R{0,2}(?:V|BR?G|HR?[Vv])")
_IS = re.compile(r"(?:,[^,.;Q?]{1,14},)?R{0,2}(?:V|BR?G|HR?[Vv]|B|S|H)")
_SAID_BY = re.compile(rf"[Q,](V){_SOME}(?:C{_SOME})?(?!')")
_IN_CAME = re.compile(r"^(?:P|R|A)[^.;,Q?]{0,10}?(V)([pou])(?=[.;,C])")
_WITH = re.compile(r"(V)R?(P)([pou])(?!')")
_MET = re.compile(r"(V)([pou])(?!')")
_CLEFT = re.compile(r"^rB([pou])w(?:V|BR?G)")
_SEEN = re.compile(r"(V)([pou])R?[vG]")
_WHERE = re.compile(r"(P)(D?A?)([lou])(?!')")
_ENTERS = re.compile(r"(V)(D?A?)([lou])(?!')")
_FIRST_WHERE = re.compile(r"^(?:J|R,?)?(P)(D?A?)([lou]),?([pou])(?:R{0,2})(?:V|BR?G|S)")
_CAME = words.word_set("stood sat came walked waited knelt ran went stepped crept rose leaned leant crouched")
_ENTERING = frozenset({"entered", "enters", "reached", "reaches"})
_DEAD = words.word_set("dead died dies drowned perished murdered slain killed")
_KILLS = words.word_set("killed kills murdered murders slew slays strangled poisoned stabbed beheaded")
_CALENDAR = frozenset({"in", "on", "at"})
_CLAUSE = frozenset(".;?Q")
_LEGACY = words.word_set("his her behind everything nothing all some many several no half")
_RELATIVE = words.word_set("that where what which whom whose how why who")
_MOMENTS = words.word_set(
    "night morning evening day dawn dusk midnight noon hour moment afternoon week year time instant"
)


@dataclass(frozen=True, slots=True)
class Subject:
    """A name with its predicate: unit of the name, first and last unit of the verb (excluded)."""

    name: int
    verb: int
    end: int


def acts(of: Sequence[Unit], until: int) -> Iterator[Claim]:
    """Who acts, in units before `until`."""
    line = tags(of)[:until]
    seen: set[int] = set()
    for name, end in (*_doing(of, line), *_met(of, line)):
        if name not in seen:
            seen.add(name)
            yield from _actor(of[name], (name, end))


def _actor(unit: Unit, span: Span) -> Iterator[Claim]:
    if unit.low in words.PRONOUNS:
        return  # whoever is told of by name and then by `she` may be told of as they lived
    if unit.key is not None:
        yield Acts(unit.key, span)
    elif unit.tag == "u":
        yield Unknown(unit.text, span)


def _doing(of: Sequence[Unit], line: str) -> Iterator[tuple[int, int]]:
    for subject in subjects(of, line, _DOES):
        verb = of[subject.end - 1]
        follows = of[subject.end].low if subject.end < len(of) else ""
        leaves = verb.low in {"left", "leaves"} and (
            follows in _LEGACY or line[subject.end : subject.end + 1] == "#" or "H" in line[subject.verb : subject.end]
        )
        had = any(unit.low == "had" for unit in of[subject.verb : subject.end])
        if not leaves and not had and not (verb.tag == "V" and follows == "by"):
            yield subject.name, subject.end
    for found in _SAID_BY.finditer(line):
        if of[found.start(1)].low in words.SPEAKS and (line[found.start()] == "Q" or "Q" in line[: found.start()]):
            yield found.start(1) + 1, found.end()
    if cleft := _CLEFT.match(line):  # it was X who came
        yield cleft.start(1), cleft.end()
    found = _IN_CAME.match(line)
    if found and of[found.start(1)].low in _CAME:
        yield found.start(2), found.end(2)


def _met(of: Sequence[Unit], line: str) -> Iterator[tuple[int, int]]:
    """Who is talked with, met, or seen to act: they live too."""
    for found in _WITH.finditer(line):
        if (
            of[found.start(1)].low in words.TALKS_WITH
            and of[found.start(2)].low == "with"
            and _plainly(line, found.start(1))
        ):
            yield found.start(3), found.end(3)
    for found in _MET.finditer(line):
        if of[found.start(1)].low in {"met", "meets"} and _plainly(line, found.start(1)):
            yield found.start(2), found.end(2)
    for found in _SEEN.finditer(line):
        if of[found.start(1)].low in words.SEES and _plainly(line, found.start(1)):
            yield found.start(2), found.end()


def _plainly(line: str, verb: int) -> bool:
    return not set(line[max(0, verb - 2) : verb]) & set("HMX")


def subjects(of: Sequence[Unit], line: str, verb: re.Pattern[str] = _IS) -> Iterator[Subject]:
    """Names that are the subject of a verb, one by one where several share it."""
    at = 0
    while found := _SUBJECT.search(line, at):
        at = found.end()
        after = verb.match(line, found.end())
        if after is None:
            continue
        names = [n for n in range(found.start(), found.end()) if line[n] in "poku"]
        if not _begins(of, found.start()):
            # The first names belong to what is before; after a comma the last one may begin anew.
            names = names[-1:] if len(names) > 1 and line[names[-1] - 1] == "," else []
        for name in names:
            yield Subject(name, found.end(), after.end())


def _begins(of: Sequence[Unit], at: int) -> bool:
    """Whether a name there can be a subject by what stands before it."""
    if at == 0:
        return True
    before = of[at - 1]
    if before.low in _RELATIVE or _described(of, at):
        return False
    return before.tag not in "VSvGB'XHMKwc" and before.low not in words.NO_SUBJECT_AFTER and before.low != "of"


def _described(of: Sequence[Unit], at: int) -> bool:
    """Whether a noun stands right before: `the coat Abel wore` tells of a coat. `At the door Abel stopped` does not."""
    noun = at - 1
    if of[noun].tag not in "nx" or of[noun].low in _MOMENTS:
        return False
    first = _first_of(of, noun)
    if first == 0 or of[first - 1].tag != "D":
        return of[noun].tag == "n" and first > 0
    while first > 3 and of[first - 2].low == "of" and of[first - 3].tag in "nx":  # noqa: PLR2004 - `the top of the stairs`
        first = _first_of(of, first - 3)
        if of[first - 1].tag != "D":
            break
    return not (first > 1 and of[first - 2].tag in "PX" and (first == 2 or of[first - 3].tag in ",;CJRP"))  # noqa: PLR2004 - `at the door`


def _first_of(of: Sequence[Unit], noun: int) -> int:
    """Where the words begin that say which noun is meant."""
    first = noun
    while first > 0 and of[first - 1].tag in "Ac#nxh'" and noun - first < 4:  # noqa: PLR2004 - `the small old green coat`
        first -= 1
    return first


def deaths(of: Sequence[Unit], until: int) -> Iterator[Claim]:
    """Who dies, is dead, is killed; and who returns from it."""
    line = tags(of)[:until]
    for at, unit in enumerate(of[:until]):
        if unit.key is None or unit.tag not in "po":
            continue
        rest = [u.low for u in of[at + 1 : min(until, at + 5)]]
        if set(rest) & words.NEGATION:
            continue
        if rest[:1] and rest[0] in {"died", "dies", "drowned", "perished"}:
            yield Dies(unit.key, (at, at + 2))
        elif line[at + 1 : at + 2] == "B" and len(rest) > 1 and rest[1] in _DEAD:
            yield Dies(unit.key, (at, at + 3))
        elif at and of[at - 1].low in _KILLS and _plainly(line, at - 1) and line[at + 1 : at + 2] != "'":
            yield Dies(unit.key, (at - 1, at + 1))
        elif set(rest) & words.REVIVED or "from the dead" in " ".join(rest) or "to life" in " ".join(rest):
            yield Dies(unit.key, (at, at + 1), revived=True)


def places(of: Sequence[Unit], until: int, times: Sequence[tuple[int, str]]) -> Iterator[At | Unknown]:
    """Where each person is, with the time that the text gives it."""
    line = tags(of)[:until]
    if (found := _FIRST_WHERE.match(line)) and of[found.start(1)].low in words.AT_PLACE:
        yield from _where(of, found.start(4), found.start(3), (0, found.end()), times)
    taken = list(subjects(of, line))
    starts = sorted(subject.name for subject in taken)
    for subject in taken:
        if "X" in line[subject.verb : subject.end + 2]:
            continue
        end = _clause_end(line, subject, starts)
        yield from _placed(of, line[:end], subject, times)


def _clause_end(line: str, subject: Subject, starts: Sequence[int]) -> int:
    for at in range(subject.end, len(line)):
        if line[at] in _CLAUSE or (at in starts and at > subject.end):
            return at
    return len(line)


def _placed(
    of: Sequence[Unit], line: str, subject: Subject, times: Sequence[tuple[int, str]]
) -> Iterator[At | Unknown]:
    verb = of[subject.end - 1]
    entered = _ENTERS.match(line, subject.end - 1)
    if entered and verb.low in _ENTERING:
        yield from _where(of, subject.name, entered.start(3), (subject.name, entered.end()), times)
        return
    for found in _WHERE.finditer(line, subject.end):
        preposition = of[found.start(1)].low
        there = preposition in words.AT_PLACE and not (preposition == "at" and verb.low in words.LOOKING_AT)
        goes = preposition in words.TO_PLACE and verb.low in words.GONE_TO
        after_name = "p" in line[subject.end : found.start(1)] and verb.tag == "V" and not there
        if (there or goes) and not after_name and not set(line[subject.end : found.start(1)]) & set("VWwMG"):
            where = _where(of, subject.name, found.start(3), (subject.name, found.end()), times)
            owns = "H" in line[subject.verb : subject.end]  # what somebody has there does not say where they are
            yield from (claim for claim in where if not owns or isinstance(claim, Unknown))


def _where(
    of: Sequence[Unit], who: int, place: int, span: Span, times: Sequence[tuple[int, str]]
) -> Iterator[At | Unknown]:
    key, where = of[who].key, of[place]
    if where.tag == "u":
        if of[place - 1].low not in _CALENDAR or not where.text.isupper():
            yield Unknown(where.text, (place, place + 1))
    elif key is not None and where.key is not None:
        yield At(key, where.key, span, _time_at(of, span, times))


def _time_at(of: Sequence[Unit], span: Span, times: Sequence[tuple[int, str]]) -> str | None:
    """The time of a place: the one of its sentence, or of its own clause where there are several."""
    if not times:
        return None
    if len({key for _, key in times}) == 1:
        at, key = times[0]
        between = {unit.low for unit in of[min(at, span[1]) : max(at, span[0])]}
        return None if between & words.LATER else key
    cuts = [n for n, unit in enumerate(of) if unit.tag in ";,CJ" or unit.low in {"then", "while"}]
    begin = max((n for n in cuts if n < span[1] - 1 and n <= span[0]), default=-1)
    end = min((n for n in cuts if n >= span[1]), default=len(of))
    keys = {key for at, key in times if begin < at < end}
    return keys.pop() if len(keys) == 1 else None
