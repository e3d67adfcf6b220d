"""Owns who holds what and who stands where in a world file: nothing holds itself, and what is said twice is said the same way."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from body_broker.world.files.model import Entry, region_of
from body_broker.world.model import Kind


@dataclass(frozen=True, slots=True)
class Placed:
    """An entity, where it stands in its file, and its fields with their defaults."""

    kind: Kind
    entry: Entry
    where: str
    data: dict[str, Any]


def rings(entities: Sequence[Placed]) -> Iterator[str]:
    """Items that hold themselves, by way of each other or at once."""
    holders = _holders(entities)
    for each in entities:
        if each.kind == "item" and (ring := _ring(each.entry.id, holders)):
            yield f"{each.where}.holder: it holds itself: {' in '.join(ring)}"


def _holders(entities: Sequence[Placed]) -> dict[str, str | None]:
    return {each.entry.id: each.data["holder"] for each in entities if each.kind == "item"}


def _ring(start: str, holders: Mapping[str, str | None]) -> list[str]:
    """From an item to what holds it, and on, until it comes round to it; empty where it does not."""
    way = [start]
    seen = {start}
    while (holder := holders.get(way[-1])) is not None and holder not in seen:
        way.append(holder)
        seen.add(holder)
    return [*way, start] if holder == start else []


def oddities(entities: Sequence[Placed]) -> Iterator[str]:
    """Inventories and holders that disagree, and who stands in a place of another region."""
    present = [each for each in entities if not each.entry.removed]
    yield from _inventories(present)
    regions = {each.entry.id: region_of(each.entry) for each in present if each.kind == "place"}
    for each in present:
        place: str | None = each.data.get("place")
        there = regions.get(place) if place is not None else None
        if there is not None and region_of(each.entry) != there:
            yield f"{each.where}.region: it is in {region_of(each.entry)!r}, but {place!r} is in {there!r}"


def _inventories(entities: Sequence[Placed]) -> Iterator[str]:
    holders = _holders(entities)
    carriers: dict[str, set[str]] = defaultdict(set)
    actors = [each for each in entities if each.kind in {"npc", "player"}]
    for each in actors:
        for number, item in enumerate(cast("list[str]", each.data["inventory"])):
            carriers[item].add(each.entry.id)
            if item in holders and holders[item] != each.entry.id:
                yield f"{each.where}.inventory[{number}]: the holder of {item!r} is {holders[item]!r}"
    people = {each.entry.id for each in actors}
    for each in entities:
        holder = holders.get(each.entry.id)
        if holder is not None and each.data["place"] is not None:
            yield f"{each.where}: it has a holder and a place; one of them is where it is"
        if holder in people and holder not in carriers[each.entry.id]:
            yield f"{each.where}.holder: {holder!r} does not have it in its inventory"
