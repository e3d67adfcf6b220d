"""Owns the rules: what of a text's claims contradicts what is known, or what the text itself said before."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from body_broker.world.canon.model import FlagTerm, NodeTerm, PlotNode, Requires, Scalar
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
from mcp_servers.storyteller.consistency.knowledge import FROM_CALLER, Held, Knowledge, is_functional

NARRATIVE = "narrative"
_PLACES = frozenset({"home", "birthplace"})


@dataclass(slots=True)
class Court:
    """Judges a text's claims in their order; what it said before is known from then on.

    Attributes:
        doubted: Numbers of sentences that say what is neither contradicted nor known to fit.
    """

    known: Knowledge
    text: str
    died: dict[str, Claim] = field(default_factory=dict[str, Claim])
    alive: set[str] = field(default_factory=set[str])
    seen_at: dict[tuple[str, str], dict[str, tuple[int, At]]] = field(
        default_factory=dict[tuple[str, str], dict[str, tuple[int, At]]]
    )
    placed: set[str] = field(default_factory=set[str])
    said: dict[tuple[str, str], dict[tuple[Scalar, bool], Says]] = field(
        default_factory=dict[tuple[str, str], dict[tuple[Scalar, bool], Says]]
    )
    first: dict[tuple[str, str], Says] = field(default_factory=dict[tuple[str, str], Says])
    doubted: set[int] = field(default_factory=set[int])
    sentence: int = 0
    steps: dict[str, Quest] = field(default_factory=dict[str, Quest])
    unknown: set[str] = field(default_factory=set[str])

    def judge(self, read: Sequence[Read]) -> list[Violation]:
        """What contradicts, in the text's order, each claim once."""
        found: dict[tuple[Code, int], Violation] = {}
        for number, sentence in enumerate(read):
            self.sentence = number
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
        seen = self.seen_at.setdefault((claim.who, time), {})
        for other_number, other in seen.values():
            same_sentence_unsaid = time.startswith("#") and other_number == number
            if not same_sentence_unsaid and self.known.apart(claim.place, other.place):
                yield self._violation("two_places", claim, NARRATIVE, self._quote(other))
                return
        seen.setdefault(claim.place, (number, claim))
        if claim.who in self.placed:
            return
        self.placed.add(claim.who)
        yield from self._placed_elsewhere(claim)

    def _placed_elsewhere(self, claim: At) -> Iterator[Violation]:
        """Canon's own word of where somebody is at the moment of the text's beginning."""
        held = self.known.known(claim.who, "located_at")
        apart = [isinstance(h.value, str) and self.known.apart(claim.place, h.value) for h in held]
        if any(apart) and not all(apart):
            self._doubt()
        if held and all(apart):
            yield self._violation("two_places", claim, held[0].source, held[0].text)

    def _says(self, claim: Says) -> Iterator[Violation]:
        if claim.predicate == "parent":
            yield from self._parent(claim)
            return
        functional = is_functional(self.known, claim.predicate)
        held = self._against(claim, self.known.known(claim.subject, claim.predicate)) if functional else None
        before = self._before(claim, functional=functional)
        self.said.setdefault((claim.subject, claim.predicate), {}).setdefault((claim.value, claim.holds), claim)
        if claim.holds:
            self.first.setdefault((claim.subject, claim.predicate), claim)
        if held is not None:
            yield self._violation("functional_fact", claim, held.source, held.text)
        elif before is not None:
            yield self._violation("functional_fact", claim, NARRATIVE, self._quote(before))
        elif claim.predicate == "status" and claim.holds and claim.value == "alive" and claim.subject in self.died:
            yield self._violation("functional_fact", claim, NARRATIVE, self._quote(self.died[claim.subject]))

    def _before(self, claim: Says, *, functional: bool) -> Says | None:
        """What the text said otherwise before; who was alive may die, and only that is judged elsewhere."""
        said = self.said.get((claim.subject, claim.predicate), {})
        if claim.predicate in _PLACES:  # of which a text can name only those that are known
            other = (each for each in said.values() if each.holds != claim.holds and self._same(claim, each))
            opposite = next(other, None)
        else:
            opposite = said.get((claim.value, not claim.holds))
        first = self.first.get((claim.subject, claim.predicate))
        if opposite is not None or first is None or not functional or not claim.holds or claim.predicate == "status":
            return opposite
        return None if self._same(claim, first) else first

    def _against(self, claim: Says, held: Sequence[Held]) -> Held | None:
        """A known value that the claim contradicts; where canon itself has one that agrees beside it, that is doubtful."""
        agrees = [each for each in held if self._same(claim, each)]
        if not claim.holds:
            return agrees[0] if agrees else None
        differs = [each for each in held if not self._same(claim, each)]
        if not agrees or not differs:
            return differs[0] if differs else None
        theirs = next((each for each in differs if _of_caller(each) or all(map(_of_caller, agrees))), None)
        if theirs is None:
            self._doubt()
        return theirs

    def _doubt(self) -> None:
        self.doubted.add(self.sentence)

    def _same(self, claim: Says, held: Held | Says) -> bool:
        if claim.predicate in _PLACES and isinstance(claim.value, str) and isinstance(held.value, str):
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
        if not self._surely(claim, node):
            self._doubt()
        if claim.step != "not_done" and node is not None:
            unmet = self._unmet(node.requires) or self._excluded(claim, node.exclusive_group)
            if unmet is not None:
                yield self._violation("quest_precondition", claim, *unmet)
        yield from self._too_early(claim)
        self.steps[claim.node] = claim

    def _surely(self, claim: Quest, node: PlotNode | None) -> bool:
        """Whether all that a step needs is known to be so; for what was not done, that nothing says it was."""
        if claim.step == "not_done":
            return self._node(claim.node) is not True
        if node is None or _nested(node.requires, self._holds) is not True:
            return False
        rivals = (each for each in self.known.nodes.values() if each.exclusive_group == node.exclusive_group)
        return node.exclusive_group is None or all(
            self._node(each.id) is False for each in rivals if each.id != node.id
        )

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


def _of_caller(held: Held) -> bool:
    return held.source.startswith(FROM_CALLER)


def _nested(requires: Requires, holds: Callable[[object], bool | None]) -> bool | None:
    """All, any and none of terms, three-valued."""
    every = [holds(term) for term in requires.all]
    some = [holds(term) for term in requires.any]
    none = [holds(term) for term in requires.none]
    if False in every or True in none or (some and all(each is False for each in some)):
        return False
    return None if None in (*every, *none) or (some and True not in some) else True
