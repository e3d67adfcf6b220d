"""Owns a whole check: a text and what is known in, violations and coverage out. No store; the same in is the same out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import cast

from mcp_servers.storyteller.consistency.claims import Dies, Read, Reason, Says, Unknown, Violation
from mcp_servers.storyteller.consistency.knowledge import (
    OBJECT_KINDS,
    Held,
    Knowledge,
    key_of,
    key_of_name,
    name_subject,
    name_value,
)
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
    """

    violations: list[Violation]
    sentences: int
    not_understood: list[Read]
    reasons: Mapping[Reason, int]

    @property
    def understood(self) -> int:
        """Sentences of which every word was understood."""
        return self.sentences - len(self.not_understood)

    @property
    def consistent(self) -> bool | None:
        """False with any violation; True only where every sentence was understood; None says that it is not known."""
        if self.violations:
            return False
        return True if self.sentences and not self.not_understood else None


def check(text: str, known: Knowledge) -> Checked:
    """Hold a text against what is known."""
    read = read_text(text, known)
    _beware_of_the_dead(read, known)
    not_understood = [sentence for sentence in read if sentence.reason is not None]
    return Checked(
        violations=Court(known, text).judge(read),
        sentences=len(read),
        not_understood=not_understood,
        reasons=Counter(sentence.reason for sentence in not_understood if sentence.reason),
    )


def _beware_of_the_dead(read: Sequence[Read], known: Knowledge) -> None:
    """What is done to somebody dead may be done to a body or to the living: a sentence that names one is not understood.

    What it says of them still is.
    """
    dead = {subject for (subject, predicate), held in known.values.items() if predicate == "status" and _dead(held)}
    for sentence in read:
        told = {getattr(claim, "subject", getattr(claim, "who", None)) for claim in sentence.claims}
        if sentence.reason is None and sentence.named & dead - told:
            sentence.reason = "words"
        dead |= {claim.who for claim in sentence.claims if isinstance(claim, Dies) and not claim.revived}


def _dead(held: Sequence[Held]) -> bool:
    return any(each.value == "dead" for each in held)


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


def with_lore(known: Knowledge, lore: Mapping[str, object]) -> Knowledge:
    """What is known, and what the caller says is so: by name a text, texts, or values by predicate."""
    if not lore:
        return known
    more = known.copy()
    for name, told in lore.items():
        values = cast("Mapping[str, object]", told) if isinstance(told, Mapping) else dict[str, object]()
        for predicate in values or {"": ""}:
            name_subject(more, name, predicate, _aliases(values))
    for name, told in lore.items():
        if isinstance(told, Mapping):
            _hold_values(more, name, cast("Mapping[str, object]", told))
    for name, told in lore.items():
        for text in _texts(told):
            _hold_text(more, name, text)
    return more


def _aliases(values: Mapping[str, object]) -> list[str]:
    return _texts(values.get("alias")) + _texts(values.get("aliases"))


def _texts(told: object) -> list[str]:
    if isinstance(told, str):
        return [told]
    each = cast("list[object]", told) if isinstance(told, list) else []
    return [text for text in each if isinstance(text, str)]


def _hold_values(known: Knowledge, name: str, values: Mapping[str, object]) -> None:
    for predicate, value in values.items():
        if predicate in {"alias", "aliases"} or not isinstance(value, str | bool | int | float):
            continue
        if predicate in OBJECT_KINDS and isinstance(value, str):
            name_value(known, value, predicate)
        held = key_of(known, predicate, value)
        said = Held(held, f"existing_lore: {name}", f"{name}: {predicate} = {value}")
        known.hold(key_of_name(known, name), predicate, said)


def _hold_text(known: Knowledge, name: str, text: str) -> None:
    """What the caller's own text claims is canon for this check; names in it are known."""
    for unknown in unknown_names(text, known):
        known.names.add(Named(unknown, unknown, "other"))
    source = f"existing_lore: {name}"
    for sentence in read_text(text, known):
        for claim in sentence.claims:
            quote = text[claim.span[0] : claim.span[1]]
            if isinstance(claim, Says) and claim.holds:
                known.hold(claim.subject, claim.predicate, Held(claim.value, source, quote))
            elif isinstance(claim, Dies) and not claim.revived:
                known.hold(claim.who, "status", Held("dead", source, quote))
