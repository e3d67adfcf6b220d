"""Owns doubt: sentences that were read whole and may still mean more than a rule can judge. They only ever take a `true` away."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from mcp_servers.storyteller.consistency.claims import Acts, At, Claim, Dies, Read, Reason, Says
from mcp_servers.storyteller.consistency.knowledge import Held, Knowledge, is_functional

_OF_THE_DEAD = frozenset({"status", "mother", "father", "parent", "birthplace", "killed_by"})
"""What is said of the dead as of the living; a home, a spouse, an age they have no more."""
_AS_CANON_SAYS = frozenset({"status", "mother", "father", "parent", "spouse", "killed_by"})
"""What more hangs on than one value, so that a new one is never simply possible."""
_HOURS_MAX = 50
"""Hours of one person's day that are compared; somebody with more is not understood."""
_FAR_APART = frozenset({"midnight", "dawn", "noon", "dusk"})


def beware(read: Sequence[Read], known: Knowledge) -> None:
    """Take as not understood what might be about somebody dead, who dies, at an hour with two names, or of a kind that canon must say."""
    doubts = _Doubts(known, dead={who for who in known.people_of("status") if _gone(known.known(who, "status"))})
    for sentence in read:
        reason = doubts.about(sentence)
        sentence.reason = sentence.reason or reason


def _gone(held: Sequence[Held]) -> bool:
    return any(each.value != "alive" for each in held)


@dataclass(slots=True)
class _Doubts:
    """What earlier sentences leave to be wary of.

    Attributes:
        dead: Who is dead, or may be, by canon or by the text so far.
        near: Whether the text named any of them yet: a pronoun may mean them.
        hours: By person and day, where they are at which hours.
    """

    known: Knowledge
    dead: set[str]
    near: bool = False
    hours: dict[tuple[str, str], list[tuple[str, str]]] = field(
        default_factory=dict[tuple[str, str], list[tuple[str, str]]]
    )

    def about(self, sentence: Read) -> Reason | None:
        """Why a sentence is not to be taken for understood, if it is not."""
        self.dead |= {claim.who for claim in sentence.claims if isinstance(claim, Dies)}
        gone = self.dead | self.known.doubtful
        self.near = self.near or bool(sentence.named & gone)
        if self.near and sentence.meant:
            return "pronoun"
        placed = [claim.place for claim in sentence.claims if isinstance(claim, At)]
        said = [claim.value for claim in sentence.claims if isinstance(claim, Says)]
        wary = (
            not (sentence.named & gone) <= self._told_of(sentence)
            or any(self._strange(claim) for claim in sentence.claims)
            or any(place not in [*placed, *said] for place in sentence.places)
            or len(set(sentence.places)) > 1
        )
        unsure_hour = sum(self._hour(claim) for claim in sentence.claims if isinstance(claim, At))
        return "words" if wary or unsure_hour else None

    def _told_of(self, sentence: Read) -> set[str]:
        """Those of the dead of whom the sentence says nothing but what may be said of them, or who act: a rule sees that."""
        told: set[str] = set()
        other: set[str] = set()
        acting = {claim.who for claim in sentence.claims if isinstance(claim, Acts)}
        for claim in sentence.claims:
            fits = isinstance(claim, Dies) or (isinstance(claim, Says) and claim.predicate in _OF_THE_DEAD)
            (told if fits else other).add(_subject(claim))
            if isinstance(claim, Says) and claim.predicate in {"mother", "father", "parent"}:
                told.add(str(claim.value))
        return (told - other | acting) - self.known.doubtful

    def _strange(self, claim: Claim) -> bool:
        """Whether a claim is of a kind that is true only where canon says the same."""
        if isinstance(claim, Dies):
            return claim.revived or not _gone(self.known.known(claim.who, "status"))
        if not isinstance(claim, Says):
            return False
        held = self._held(claim)
        same = any(each.value == claim.value for each in held)
        if claim.predicate in _AS_CANON_SAYS:
            return not claim.holds or not same
        return claim.subject == claim.value or (not is_functional(self.known, claim.predicate) and not same)

    def _held(self, claim: Says) -> Sequence[Held]:
        names = ("mother", "father") if claim.predicate == "parent" else (claim.predicate,)
        return [each for name in names for each in self.known.known(claim.subject, name)]

    def _hour(self, claim: At) -> bool:
        """Whether somebody is elsewhere at an hour that may be the same by another name."""
        if claim.time is None or claim.time[:1] in "#&":
            return False
        day, hour = claim.time.split("/", 1)
        told = self.hours.setdefault((claim.who, day), [])
        unsaid = self.hours.get((claim.who, ""), []) if day and not day.startswith("+") else []
        unsure = len(told) >= _HOURS_MAX
        for other_hour, place in (*told, *unsaid):
            far = hour != other_hour and {hour, other_hour} <= _FAR_APART
            unsure = unsure or (not far and self.known.apart(claim.place, place))
        if not unsure and (hour, claim.place) not in told:
            told.append((hour, claim.place))
        return unsure


def _subject(claim: Claim) -> str:
    return getattr(claim, "subject", getattr(claim, "who", ""))
