"""Owns a whole check: a text and what is known in, violations and coverage out. No store; the same in is the same out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

from mcp_servers.storyteller.consistency.claims import Read, Reason, Unknown, Violation
from mcp_servers.storyteller.consistency.doubts import beware
from mcp_servers.storyteller.consistency.knowledge import Knowledge
from mcp_servers.storyteller.consistency.names import Named
from mcp_servers.storyteller.consistency.reading import Reader
from mcp_servers.storyteller.consistency.rules import Court
from mcp_servers.storyteller.consistency.sentences import sentences
from mcp_servers.storyteller.consistency.told import phrases_of
from mcp_servers.storyteller.consistency.units import units


@dataclass(frozen=True, slots=True)
class Checked:
    """What a check found.

    Attributes:
        sentences: How many the text has.
        not_understood: Those of which not every word was understood.
        reasons: How many for each reason.
        lore_not_understood: Sentences and values of the caller's lore that could not be used.
    """

    violations: list[Violation]
    sentences: int
    not_understood: list[Read]
    reasons: Mapping[Reason, int]
    lore_not_understood: int = 0

    @property
    def understood(self) -> int:
        """Sentences of which every word was understood."""
        return self.sentences - len(self.not_understood)

    @property
    def consistent(self) -> bool | None:
        """False with any violation; True only where every sentence and all lore was understood; None says that it is not known."""
        if self.violations:
            return False
        return True if self.sentences and not self.not_understood and not self.lore_not_understood else None


def check(text: str, known: Knowledge) -> Checked:
    """Hold a text against what is known."""
    read = read_text(text, known)
    beware(read, known)
    court = Court(known, text)
    violations = court.judge(read)
    for number in court.doubted:
        read[number].reason = read[number].reason or "words"
    not_understood = [sentence for sentence in read if sentence.reason is not None]
    return Checked(
        violations=violations,
        sentences=len(read),
        not_understood=not_understood,
        reasons=Counter(sentence.reason for sentence in not_understood if sentence.reason),
        lore_not_understood=known.lore_not_understood,
    )


def read_text(text: str, known: Knowledge) -> list[Read]:
    """What a text claims, sentence by sentence."""
    return Reader(known.names, phrases_of(known.canon.predicates), known.occupations).read(text)


def unknown_names(text: str, known: Knowledge) -> list[str]:
    """Names that a text uses as known and nobody knows, each once, in its order."""
    claims = (claim for sentence in read_text(text, known) for claim in sentence.claims)
    return list(dict.fromkeys(claim.name for claim in claims if isinstance(claim, Unknown)))


def named_in(text: str, known: Knowledge) -> set[str]:
    """The keys of everybody and everything that a text names, in speech too."""
    found: set[str] = set()
    for sentence in sentences(text):
        unquoted = replace(sentence, quoted=())
        found |= {unit.key for unit in units(unquoted, known.names, text) if unit.key is not None}
    return found


def with_names(known: Knowledge, names: Collection[str]) -> Knowledge:
    """What is known, and these names beside: somebody wrote of them."""
    more = known.copy()
    for name in names:
        more.names.add(Named(name, name, "other"))
    return more
