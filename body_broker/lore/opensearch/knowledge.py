"""Owns what a document must be known by (spoiler and knowledge limits, metadata) as an OpenSearch can filter by it. Pure.

What a filter means is lore_may_tell's and jsonb's word (0006_vectors.sql, postings.py); every hit is checked against them again.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import cast

from body_broker.calls import Json
from body_broker.lore.index import Filter
from body_broker.text import digest

_TERM_CHARACTERS_MAX = 200


def limits(knowledge: Mapping[str, Json]) -> dict[str, Json]:
    """The fields of an entry that limit who may find it."""
    found: dict[str, Json] = {
        "spoils_nothing": "spoiler_level" not in knowledge,
        "known_to_all": "known_by" not in knowledge,
        "known_by": [_short(name) for name in _names(knowledge.get("known_by"))],
        "fields": sorted({_short(term) for name, value in knowledge.items() for term in _held(name, value)}),
    }
    level = knowledge.get("spoiler_level")
    if isinstance(level, int | float) and not isinstance(level, bool) and math.isfinite(level):
        found["spoiler_level"] = level
    return found


def clauses(where: Filter) -> list[Json]:
    """The clauses of a query that let through what the filter does."""
    found: list[Json] = []
    if where.source is not None:
        found.append({"term": {"canon": where.source == "canon"}})
    if where.documents:
        found.append({"terms": {"document": list(where.documents)}})
    if where.spoiler_max is not None:
        found.append(
            _either({"term": {"spoils_nothing": True}}, {"range": {"spoiler_level": {"lte": where.spoiler_max}}})
        )
    if where.known_to is not None:
        found.append(_either({"term": {"known_to_all": True}}, {"term": {"known_by": _short(where.known_to)}}))
    found += [
        {"term": {"fields": _short(term)}} for name, value in where.fields.items() for term in _terms(name, value)
    ]
    return found


def _either(*wanted: Json) -> Json:
    return {"bool": {"should": list(wanted), "minimum_should_match": 1}}


def _names(value: Json) -> list[str]:
    """What jsonb's `?` finds in a value."""
    named = cast("Iterable[Json]", value) if isinstance(value, list | dict) else [value]
    return [name for name in named if isinstance(name, str)]


def _held(name: str, value: Json) -> Iterator[str]:
    """The terms of a document's value; for jsonb a list of its own holds each scalar in it as if that stood alone."""
    yield from _terms(name, value)
    if isinstance(value, list):
        for inner in cast("list[Json]", value):
            if not isinstance(inner, list | dict):
                yield from _terms(name, inner)


def _terms(path: str, value: Json) -> Iterator[str]:
    """What a value that contains this one has too: each name and each scalar in it, with where it stands."""
    if isinstance(value, dict):
        yield f"{path}{{}}"
        for name, inner in cast("dict[str, Json]", value).items():
            yield from _terms(f"{path}.{name}", inner)
    elif isinstance(value, list):
        yield f"{path}[]"
        for inner in cast("list[Json]", value):
            yield from _terms(f"{path}[]", inner)
    else:
        whole = isinstance(value, float) and value.is_integer()  # for jsonb 1.0 is 1
        yield f"{path}={int(value) if whole else value!r}"


def _short(term: str) -> str:
    return term if len(term) <= _TERM_CHARACTERS_MAX else digest(term)
