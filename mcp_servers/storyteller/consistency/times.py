"""Owns the times that a text gives: hours of the clock within its days, and what happens at the same moment as what came before."""

from __future__ import annotations

import re
from dataclasses import dataclass

from mcp_servers.storyteller.consistency.units import number_of

_CLOCK = re.compile(
    r"\b(?:at|as|when) (?:the )?(?:exactly |precisely )?(?:(?:stroke of |clock struck |clock strikes |bell struck |bells rang )?"
    r"(midnight|noon|dawn|dusk|sunset|sunrise|nightfall|daybreak|midday)"
    r"|(?:stroke of |clock struck |clock strikes )?(half past |quarter past |quarter to )?([a-z]+|\d{1,2}(?::\d\d)?) o'clock"
    r"|(?:stroke of |clock struck |clock strikes )(half past )?([a-z]+|\d{1,2})|(half past |quarter past |quarter to )([a-z]+|\d{1,2})|(\d{1,2}:\d\d))\b"
)
_SAME = re.compile(
    r"\bat (?:\w+ )?(?:the same|that|that very|that same|that exact|the very same|this very) (?:time|moment|hour|instant|minute)\b|\bmeanwhile\b|\bsimultaneously\b"
)
_BEGINNING = 2
_WHILE = re.compile(r"^(?:while|as) ")
_NEW_DAY = re.compile(
    r"\b(?:the|on the) (?:next|following) (?:day|morning|night|evening|afternoon)\b|\b(?:a|some|many|several|\w+) (?:days?|nights?|weeks?|fortnights?|months?|years?|winters?|summers?)"
    r" (?:later|after|(?:had |have |has )?(?:passed|pass|passes|elapsed|(?:went|gone|go|goes|rolled|slipped|crept|dragged) (?:by|past|on)))\b|\bon the morrow\b|\bthe sun (?:set and rose|rose and set)\b|\btomorrow\b|\byesterday\b|\bthe (?:day|night|morning) (?:after|before)\b|\banother (?:day|night)\b|\bevery (?:day|night)\b"
)
_DAY = re.compile(
    r"\bon (?:the )?(monday|tuesday|wednesday|thursday|friday|saturday|sunday|(?:first|second|third|fourth|fifth|sixth|seventh|last) (?:day|night|morning|evening))\b"
)


@dataclass(slots=True)
class Clock:
    """Which day of the text it is, and what time the sentence before had."""

    day: str = ""
    days: int = 0
    before: str | None = None
    sentence: int = 0

    def times(self, line: str) -> list[tuple[int, str]]:
        """Times that a sentence gives: the unit each begins at, and its key; equal keys are one time."""
        self.sentence += 1
        if _NEW_DAY.search(line):
            self.days += 1
            self.day = f"+{self.days}"
        elif found := _DAY.search(line):
            self.day = found[1]
        found = [(line[: m.start()].count(" "), f"{self.day}/{_hour(m)}") for m in _CLOCK.finditer(line)]
        if not found and (same := _SAME.search(line)):
            at = line[: same.start()].count(" ")
            # In the middle of a sentence it joins what is before and after; at its beginning, the sentence before.
            found = [(0, f"&{self.sentence}") if at > _BEGINNING else (at, self.before or f"#{self.sentence}")]
        if not found and _WHILE.match(line):
            # What happens while something else does has one time; nothing else of the text has it.
            found = [(0, f"&{self.sentence}")]
        self.before = found[-1][1] if len({key for _, key in found}) == 1 else f"#{self.sentence}"
        return found

    @property
    def unsaid(self) -> str:
        """The time of what a sentence gives no time: the next sentence may say that it was the same."""
        return f"#{self.sentence}"


def _hour(found: re.Match[str]) -> str:
    word, past, hour, half, struck, part, parted, digits = found.groups()
    if word:
        return "noon" if word == "midday" else word
    said = hour or struck or parted or digits or ""
    number = number_of(said)
    return f"{past or half or part or ''}{said if number is None else number}".removesuffix(":00")
