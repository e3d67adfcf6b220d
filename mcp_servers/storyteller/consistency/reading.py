"""Owns reading a text sentence by sentence: what each claims, where in the text, and why it was not understood."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace

from mcp_servers.storyteller.consistency import lexicon as words
from mcp_servers.storyteller.consistency.acts import acts, deaths, places
from mcp_servers.storyteller.consistency.claims import At, Claim, Dies, Read
from mcp_servers.storyteller.consistency.grammar import understood, why_not
from mcp_servers.storyteller.consistency.guards import Mood, guard, line_of
from mcp_servers.storyteller.consistency.names import Names
from mcp_servers.storyteller.consistency.quests import quests
from mcp_servers.storyteller.consistency.sentences import Sentence, sentences
from mcp_servers.storyteller.consistency.times import Clock
from mcp_servers.storyteller.consistency.told import Phrase, phrased, strangers, told
from mcp_servers.storyteller.consistency.units import Unit, units


@dataclass(slots=True)
class Reader:
    """Reads one text; what one sentence leaves for the next is here.

    Attributes:
        occupations: Words that say what somebody does; `is a fool` says nothing that canon could know.
        spoken_of: The one person of the sentence before, whom `he` or `she` then means.
    """

    names: Names
    phrases: Sequence[Phrase] = ()
    occupations: Collection[str] = ()
    mood: Mood = field(default_factory=Mood)
    clock: Clock = field(default_factory=Clock)
    spoken_of: str | None = None

    def read(self, text: str) -> list[Read]:
        """Every sentence of the text."""
        return [self._sentence(sentence, text) for sentence in sentences(text)]

    def _sentence(self, sentence: Sentence, text: str) -> Read:
        if sentence.paragraph != self.mood.paragraph:
            self.spoken_of = None
        self.mood.enter(sentence.paragraph)
        of = units(sentence, self.names, text)
        meant = self._resolve(of)
        held = guard(of, self.mood)
        times = self.clock.times(line_of(of))
        self._ghosts(of)
        claims = [self._settled(claim) for claim in self._claims(of, held.until, times)]
        found = Read(sentence.start, sentence.end, reason=held.reason, meant=meant, places=tuple(_places(of)))
        found.named = frozenset(unit.key for unit in of if unit.key is not None)
        if found.reason is None and sentence.cut:
            found.reason = "long"
        if found.reason is None and not understood(of, claims):
            found.reason = why_not(of)
        found.claims = [
            replace(claim, span=(of[claim.span[0]].start, of[claim.span[1] - 1].end))
            for claim in claims
            if claim.span[1]
        ]
        return found

    def _claims(self, of: Sequence[Unit], until: int, times: Sequence[tuple[int, str]]) -> Iterator[Claim]:
        if not until:
            return
        yield from phrased(of, until, self.phrases)
        for claim in told(of, until):
            if claim.predicate == "occupation" and claim.value not in self.occupations:
                continue
            yield claim
            yield from strangers(of, claim)
        yield from quests(of, until)
        yield from deaths(of, until)
        yield from (claim for claim in acts(of, until) if getattr(claim, "who", None) not in self.mood.ghosts)
        yield from places(of, until, times)

    def _settled(self, claim: Claim) -> Claim:
        if isinstance(claim, Dies) and claim.revived:
            self.mood.ghosts.add(claim.who)
        return replace(claim, time=self.clock.unsaid) if isinstance(claim, At) and claim.time is None else claim

    def _resolve(self, of: Sequence[Unit]) -> bool:
        """Let `he`, `she`, `his` and `her` mean the one person of the sentence before, where this one names nobody first.

        Returns:
            Whether any of them now means somebody.
        """
        named = [unit for unit in of if unit.tag in "pok"]
        first = of.index(named[0]) if named else len(of)
        for unit in of[:first]:
            if self.spoken_of and unit.low in words.PRONOUNS:
                unit.tag, unit.key = "p", self.spoken_of
            elif self.spoken_of and unit.low in words.POSSESSIVES and unit.tag == "D":
                unit.tag, unit.key = "h", self.spoken_of
        self._own(of)
        people = {unit.key for unit in of if unit.tag in "poh"}
        unsure = any(unit.tag in "ku" for unit in of)
        self.spoken_of = people.pop() if len(people) == 1 and not unsure else None
        return any(unit.key and unit.low in words.PRONOUNS | words.POSSESSIVES for unit in of)

    def _own(self, of: Sequence[Unit]) -> None:
        """Let `his` and `her` after a name mean who is named, where the sentence speaks of nobody else."""
        keys = {unit.key for unit in of if unit.tag in "pokuh"}
        if len(keys) != 1 or None in keys or any(unit.low in words.PEOPLE for unit in of):
            return
        (key,) = keys
        first = next(n for n, unit in enumerate(of) if unit.tag in "poh")
        for unit in of[first + 1 :]:
            if unit.tag == "D" and unit.low in words.POSSESSIVES:
                unit.tag, unit.key = "h", key

    def _ghosts(self, of: Sequence[Unit]) -> None:
        """Whose ghost, body or portrait is spoken of: what they do from here on is not theirs."""
        lows = [unit.low for unit in of]
        for at, unit in enumerate(of):
            if unit.key is None or unit.tag not in "po":
                continue
            after = lows[at + 1 : at + 4]
            owns = after[:1] == ["'s"] and any(low in words.GHOSTLY for low in after[1:])
            of_them = at > 1 and lows[at - 1] == "of" and lows[at - 2] in words.GHOSTLY
            if owns or of_them:
                self.mood.ghosts.add(unit.key)


def _places(of: Sequence[Unit]) -> Iterator[str]:
    """The places of a sentence; what is known by name alone is one where a preposition stands before it."""
    for at, unit in enumerate(of):
        before = next((each.tag for each in reversed(of[:at]) if each.tag not in "DA"), "")
        if unit.key is not None and (unit.tag == "l" or (unit.tag == "o" and before == "P")):
            yield unit.key
