"""Owns the rules: what of a text's claims contradicts what is known, or what the text itself said before."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from body_broker.world.canon.model import FlagTerm, NodeTerm, Requires
from mcp_servers.storyteller.consistency.claims import (
    Acts,
    At,
    Claim,
    Code,
    Conflict,
    Dies,
    Quest,
    Read,
    Says,
    Unknown,
    Violation,
)
from mcp_servers.storyteller.consistency.knowledge import Held, Knowledge, is_functional

NARRATIVE = "narrative"


@dataclass(slots=True)
class Court:
    """Judges a text's claims in their order; what it said before is known from then on."""

    known: Knowledge
    text: str
    died: dict[str, Claim] = field(default_factory=dict[str, Claim])
    alive: set[str] = field(default_factory=set[str])
    seen_at: dict[tuple[str, str], list[tuple[int, At]]] = field(
        default_factory=dict[tuple[str, str], list[tuple[int, At]]]
    )
    placed: set[str] = field(default_factory=set[str])
    said: dict[tuple[str, str], Says] = field(default_factory=dict[tuple[str, str], Says])
    steps: dict[str, Quest] = field(default_factory=dict[str, Quest])
    unknown: set[str] = field(default_factory=set[str])

    def judge(self, read: Sequence[Read]) -> list[Violation]:
        """What contradicts, in the text's order, each claim once."""
        found: dict[tuple[Code, int], Violation] = {}
        for number, sentence in enumerate(read):
            # Where one sentence says that a quest is done and another is not, it says both at once.
            for claim in sorted(
                sentence.claims, key=lambda claim: not (isinstance(claim, Quest) and claim.step == "not_done")
            ):
                for violation in self._of(claim, number):
                    found.setdefault((violation.code, violation.start), violation)
        return sorted(found.values(), key=lambda violation: (violation.start, violation.end, violation.code))

    def _of(self, claim: Claim, number: int) -> Iterator[Violation]:
        match claim:
            case Acts():
                yield from self._acts(claim)
            case Dies():
                self._dies(claim)
            case At():
                yield from self._at(claim, number)
            case Says():
                yield from self._says(claim)
            case Quest():
                yield from self._quest(claim)
            case Unknown():
                yield from self._unknown(claim)

    def _violation(self, code: Code, claim: Claim, source: str, text: str) -> Violation:
        start, end = claim.span
        severity = "warning" if code == "unknown_entity" else "error"
        return Violation(code, severity, self.text[start:end], start, end, Conflict(source, text))

    def _quote(self, claim: Claim) -> str:
        return self.text[claim.span[0] : claim.span[1]]

    def _acts(self, claim: Acts) -> Iterator[Violation]:
        if claim.who in self.died:
            yield self._violation("dead_actor", claim, NARRATIVE, self._quote(self.died[claim.who]))
        elif claim.who not in self.alive:
            for held in self.known.known(claim.who, "status"):
                if held.value == "dead":
                    yield self._violation("dead_actor", claim, held.source, held.text)
                    return

    def _dies(self, claim: Dies) -> None:
        if claim.revived:
            self.alive.add(claim.who)
            self.died.pop(claim.who, None)
        else:
            self.died.setdefault(claim.who, claim)

    def _at(self, claim: At, number: int) -> Iterator[Violation]:
        time = claim.time or ""
        for other_number, other in self.seen_at.get((claim.who, time), ()):
            same_sentence_unsaid = time.startswith("#") and other_number == number
            if not same_sentence_unsaid and self.known.apart(claim.place, other.place):
                yield self._violation("two_places", claim, NARRATIVE, self._quote(other))
                return
        self.seen_at.setdefault((claim.who, time), []).append((number, claim))
        if claim.who in self.placed:
            return
        self.placed.add(claim.who)
        yield from self._placed_elsewhere(claim)

    def _placed_elsewhere(self, claim: At) -> Iterator[Violation]:
        """Canon's own word of where somebody is at the moment of the text's beginning."""
        held = self.known.known(claim.who, "located_at")
        if held and all(isinstance(h.value, str) and self.known.apart(claim.place, h.value) for h in held):
            yield self._violation("two_places", claim, held[0].source, held[0].text)

    def _says(self, claim: Says) -> Iterator[Violation]:
        if claim.predicate == "parent":
            yield from self._parent(claim)
            return
        if not is_functional(self.known, claim.predicate):
            return
        held = self._against(claim, self.known.known(claim.subject, claim.predicate))
        before = self.said.setdefault((claim.subject, claim.predicate), claim)
        if held is not None:
            yield self._violation("functional_fact", claim, held.source, held.text)
        elif before is not claim and self._contradicts(before, claim):
            yield self._violation("functional_fact", claim, NARRATIVE, self._quote(before))

    def _contradicts(self, before: Says, claim: Says) -> bool:
        """Whether the text says otherwise than it did before; who was alive may die."""
        if not before.holds or claim.predicate == "status":
            return False
        return self._against(claim, [Held(before.value, NARRATIVE, "")]) is not None

    def _against(self, claim: Says, held: Sequence[Held]) -> Held | None:
        """A known value that the claim contradicts."""
        if not held:
            return None
        if claim.holds:
            agrees = any(self._same(claim, each) for each in held)
            return None if agrees else held[0]
        return next((each for each in held if self._same(claim, each)), None)

    def _same(self, claim: Says, held: Held) -> bool:
        if claim.predicate in {"home", "birthplace"} and isinstance(claim.value, str) and isinstance(held.value, str):
            return not self.known.apart(claim.value, held.value)
        return claim.value == held.value

    def _parent(self, claim: Says) -> Iterator[Violation]:
        """`daughter of X` contradicts where both parents are known and neither is X."""
        both = [h for name in ("mother", "father") for h in self.known.known(claim.subject, name)[:1]]
        matches = any(h.value == claim.value for h in both)
        if (claim.holds and len(both) == 2 and not matches) or (not claim.holds and matches):  # noqa: PLR2004 - mother and father
            yield self._violation("functional_fact", claim, both[0].source, "; ".join(h.text for h in both))

    def _unknown(self, claim: Unknown) -> Iterator[Violation]:
        if claim.name not in self.unknown:
            self.unknown.add(claim.name)
            yield self._violation("unknown_entity", claim, "canon", f"Nothing in canon is called {claim.name}.")

    def _quest(self, claim: Quest) -> Iterator[Violation]:
        node = self.known.nodes.get(claim.node)
        if claim.step != "not_done" and node is not None:
            unmet = self._unmet(node.requires) or self._excluded(claim, node.exclusive_group)
            if unmet is not None:
                yield self._violation("quest_precondition", claim, *unmet)
        yield from self._too_early(claim)
        self.steps[claim.node] = claim

    def _too_early(self, claim: Quest) -> Iterator[Violation]:
        """What was told before this, and needs it: it was done too early, or without it."""
        for other in list(self.steps.values()):
            node = self.known.nodes.get(other.node)
            needed = node is not None and any(
                isinstance(t, NodeTerm) and t.node == claim.node for t in node.requires.all
            )
            if needed and other.step != "not_done" and claim.node not in self.steps:
                text = f"{self.known.label(other.node)} needs {self.known.label(claim.node)} done before it; the text says: {self._quote(claim)}"
                yield self._violation("quest_precondition", other, f"plot: {other.node}", text)

    def _excluded(self, claim: Quest, group: str | None) -> tuple[str, str] | None:
        for node in self.known.nodes.values():
            if (
                group is not None
                and node.exclusive_group == group
                and node.id != claim.node
                and self._node(node.id) is True
            ):
                return f"plot: {claim.node}", f"{node.title} is done, and excludes {self.known.label(claim.node)}."
        return None

    def _unmet(self, requires: Requires) -> tuple[str, str] | None:
        """A requirement that is known not to be met; what is not known does not count."""
        for term in requires.all:
            if self._holds(term) is False:
                return self._said_of(term, "is required and not done")
        if requires.any and all(self._holds(term) is False for term in requires.any):
            return self._said_of(requires.any[0], "or another is required, and none is done")
        for term in requires.none:
            if self._holds(term) is True:
                return self._said_of(term, "is done and excludes it")
        return None

    def _said_of(self, term: object, what: str) -> tuple[str, str]:
        if isinstance(term, NodeTerm):
            said = self.steps.get(term.node)
            quoted = f" The text says: {self._quote(said)}" if said else ""
            return f"plot: {term.node}", f"{self.known.label(term.node)} {what}.{quoted}"
        if isinstance(term, FlagTerm):
            return f"flag: {term.flag}", f"The flag {term.flag} {what}."
        return "plot", f"A requirement {what}."

    def _holds(self, term: object) -> bool | None:
        """Whether a term holds; None where that is not known."""
        if isinstance(term, NodeTerm):
            return self._node(term.node)
        if isinstance(term, FlagTerm):
            flags = self.known.progress.flags
            return flags[term.flag] == term.value if term.flag in flags else None
        if isinstance(term, Requires):
            return _nested(term, self._holds)
        return None

    def _node(self, node: str) -> bool | None:
        if node in self.steps:
            return {"done": True, "not_done": False}.get(self.steps[node].step)
        if node in self.known.progress.done:
            return True
        return False if node in self.known.progress.not_done else None


def _nested(requires: Requires, holds: Callable[[object], bool | None]) -> bool | None:
    """All, any and none of terms, three-valued."""
    every = [holds(term) for term in requires.all]
    some = [holds(term) for term in requires.any]
    none = [holds(term) for term in requires.none]
    if False in every or True in none or (some and all(each is False for each in some)):
        return False
    return None if None in (*every, *none) or (some and True not in some) else True
