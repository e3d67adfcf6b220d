"""Owns what a caller says is so for one check: names, values and texts of `existing_lore`, and counting what of it no rule can use."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

from body_broker.world.canon.model import Scalar
from body_broker.world.canon.predicates import STANDARD
from mcp_servers.storyteller.consistency import lexicon as words
from mcp_servers.storyteller.consistency.checking import read_text, unknown_names
from mcp_servers.storyteller.consistency.claims import Claim, Dies, Read, Says
from mcp_servers.storyteller.consistency.knowledge import (
    FROM_CALLER,
    OBJECT_KINDS,
    Held,
    Knowledge,
    key_of,
    key_of_name,
    name_subject,
    name_value,
)
from mcp_servers.storyteller.consistency.names import Named
from mcp_servers.storyteller.consistency.units import number_of

_STATUS = frozenset({"alive", "dead", "missing", "destroyed"})


def with_lore(known: Knowledge, lore: Mapping[str, object]) -> Knowledge:
    """What is known, and what the caller says is so: by name a text, texts, or values by predicate.

    What of it no rule can use is counted in `lore_not_understood`.
    """
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
        else:
            more.lore_not_understood += _no_texts(told)
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


def _no_texts(told: object) -> int:
    """How much of what should be texts is none."""
    each = cast("list[object]", told) if isinstance(told, list) else [told]
    return sum(not isinstance(text, str) for text in each)


def _hold_values(known: Knowledge, name: str, values: Mapping[str, object]) -> None:
    for predicate, told in values.items():
        if predicate in {"alias", "aliases"}:
            known.lore_not_understood += _no_texts(told)
            continue
        value = _value(known, predicate, told)
        if value is None:
            known.lore_not_understood += 1
            continue
        if predicate in OBJECT_KINDS and isinstance(value, str):
            name_value(known, value, predicate)
        said = Held(key_of(known, predicate, value), f"{FROM_CALLER}{name}", f"{name}: {predicate} = {value}")
        known.hold(key_of_name(known, name), predicate, said)


def _value(known: Knowledge, predicate: str, told: object) -> Scalar | None:
    """The value as the rules compare it; None where they cannot."""
    if (predicate not in STANDARD and predicate not in known.predicates) or not isinstance(
        told, str | bool | int | float
    ):
        return None
    low = told.strip().lower() if isinstance(told, str) else ""
    match predicate:
        case "age":
            number = number_of(low) if isinstance(told, str) else told
            return None if isinstance(number, bool) else number
        case "eye_colour" | "hair_colour":
            return words.COLOURS.get(low)
        case "status":
            return low if low in _STATUS else None
        case _ if predicate in OBJECT_KINDS or predicate == "occupation":
            return told if low else None
        case _:
            return told


def _hold_text(known: Knowledge, name: str, text: str) -> None:
    """What the caller's own text claims is canon for this check; names in it are known."""
    for unknown in unknown_names(text, known):
        known.names.add(Named(unknown, unknown, "other"))
    source = f"{FROM_CALLER}{name}"
    for sentence in read_text(text, known):
        known.lore_not_understood += not _held_whole(sentence)
        for claim in filter(_holds, sentence.claims):
            quote = text[claim.span[0] : claim.span[1]]
            if isinstance(claim, Says):
                known.hold(claim.subject, claim.predicate, Held(claim.value, source, quote))
            elif isinstance(claim, Dies):
                known.hold(claim.who, "status", Held("dead", source, quote))


def _held_whole(sentence: Read) -> bool:
    """Whether all that a sentence says is now known: not what happens in it, where somebody is, or what is not so."""
    return sentence.reason is None and bool(sentence.claims) and all(map(_holds, sentence.claims))


def _holds(claim: Claim) -> bool:
    return (isinstance(claim, Says) and claim.holds) or (isinstance(claim, Dies) and not claim.revived)
