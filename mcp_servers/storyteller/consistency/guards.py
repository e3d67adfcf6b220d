"""Owns when a sentence is not to be taken at its word: speech, questions, hearsay, what is only supposed, dreams, earlier times."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from mcp_servers.storyteller.consistency import lexicon as words
from mcp_servers.storyteller.consistency.claims import Reason
from mcp_servers.storyteller.consistency.units import Unit

_THEY_SAY = re.compile(
    r"\b(?:they|people|some|folk|men|everyone|many|it is|it was|as|so|rumou?r|legend|gossip|story|word) (?:\w+ )?(?:say|says|said|claim|claimed"
    r"|whisper|whispered|tell|told|believe|believed|has it|had it|goes|went|thought|hold|held)\b"
)
_OR_SO = re.compile(r"\b(?:or )?so (?:\S+ ){1,3}(?:claimed|claims|said|says|believed|thought|swore|insisted|told)\b")
_AS_IF = re.compile(r"\b(?:as if|as though|like a|even if|if only|in case|instead of|rather than|for fear)\b")
_EARLIER = re.compile(
    r"\b(?:years?|months?|weeks?|days?|winters?|summers?|decades?|long|nights?) (?:ago|before|earlier)\b|\bin (?:those|the old) days\b"
    r"|\bwhen (?:he|she|it|\w+) was (?:alive|young|a child|a boy|a girl)\b|\bbefore (?:his|her|the|\w+ 's) (?:death|drowning|murder|burial|end)\b"
    r"|\bbefore (?:he|she|\w+) (?:died|drowned|was killed|was murdered)\b|\b(?:in|of|during) (?:his|her) (?:youth|life|lifetime|childhood)\b"
    r"|\buntil (?:he|she|\w+) (?:died|drowned|was killed|was murdered)\b|\bonce upon\b|\bused to\b|\bin (?:former|better|happier) (?:days|times|years)\b|\bwhile (?:he|she|\w+) (?:still )?lived\b"
    r"|\blast (?:year|winter|summer|spring|autumn|month|week)\b"
)
_WILL = re.compile(
    r"\b(?:will|would|shall|could|might|may|should|must|(?:was|were|is|are) to|going to|meant to|wanted to|hoped to|planned to|about to)\b"
)
_PICTURED = re.compile(
    r"^(?:in|on) (?:the|a|an|this|that|his|her|their|one) (?:\w+ )?(?:photograph|photo|portrait|painting|picture|drawing|mural|recording|film)\b"
    r"|\b(?:sat|sits|stood|stands|posed|poses) for (?:the|a|this|that|his|her) (?:\w+ )?(?:photograph|portrait|painting|picture|drawing|statue)\b"
)
_NOW = re.compile(r"^(?:now|today|tonight|at last)\b")


@dataclass(slots=True)
class Mood:
    """What of earlier sentences lasts: a dream until somebody wakes, another time until the paragraph ends."""

    paragraph: int = -1
    dreaming: bool = False
    earlier: bool = False
    ghosts: set[str] = field(default_factory=set[str])

    def enter(self, paragraph: int) -> None:
        """Another paragraph ends both."""
        if paragraph != self.paragraph:
            self.paragraph, self.dreaming, self.earlier = paragraph, False, False


@dataclass(frozen=True, slots=True)
class Guard:
    """Which of a sentence's units may claim something: those before `until`; and why not all of it is taken at its word."""

    until: int
    reason: Reason | None


def line_of(of: Sequence[Unit]) -> str:
    """The units in lower case, with single blanks."""
    return " ".join(unit.low.replace(" ", "_") for unit in of)


def guard(of: Sequence[Unit], mood: Mood) -> Guard:
    """How far a sentence is to be taken at its word; a dream or an earlier time that it begins is noted in the mood."""
    line = line_of(of)
    lows = [unit.low for unit in of]
    if mood.dreaming and any(low in words.WAKES for low in lows):
        mood.dreaming = False
        return Guard(0, "dream")
    if mood.dreaming or any(low in words.DREAM for low in lows):
        mood.dreaming = True
        return Guard(0, "dream")
    if _NOW.search(line):
        mood.earlier = False
    if mood.earlier or _EARLIER.search(line) or any(low in words.EARLIER for low in lows[_as_soon_as(lows) :]):
        mood.earlier = (
            mood.earlier or lows[0] in words.EARLIER or bool(_EARLIER.match(line) or _EARLIER.search(line[:40]))
        )
        return Guard(0, "earlier")
    if of[-1].tag == "?":
        return Guard(0, "question")
    return _asserted(of, line, lows)


def _as_soon_as(lows: Sequence[str]) -> int:
    """1 where the sentence begins as `once it was over, ...` does: that is no earlier time."""
    return int(lows[0] == "once" and lows[1:2] != [","] and "," in lows)


def _asserted(of: Sequence[Unit], line: str, lows: Sequence[str]) -> Guard:
    if lows[0] in words.PREFIXED or any(low in {"if", "unless", "whether"} for low in lows):
        return Guard(0, "hypothetical")
    if _PICTURED.search(line):
        return Guard(0, "earlier")
    if _THEY_SAY.search(line) or _OR_SO.search(line):
        return Guard(0, "hearsay")
    cut, reason = len(of), None
    if found := _AS_IF.search(line):
        cut, reason = line[: found.start()].count(" "), "hypothetical"
    for at, low in enumerate(lows):
        if low in words.HEARSAY or (
            low in {"that", "how"} and at and lows[at - 1] in words.SPEAKS | {"heard", "hears"}
        ):
            # Who believes or tells is taken at the text's word; what they believe is not.
            cut, reason = min(cut, at + 1), "hearsay"
            break
    if lows[0] in {"according", "legend", "rumour", "rumor", "in"} and reason == "hearsay":
        cut = 0
    if reason is None and any(unit.tag == "Q" for unit in of):
        reason = "speech"
    if reason is None and (will := _WILL.search(line)):
        # What somebody was to do is not done; what stands before it is.
        cut, reason = min(cut, line[: will.start()].count(" ")), "hypothetical"
    return Guard(cut, reason)
