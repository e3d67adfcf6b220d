"""Owns holding JSON to somebody's schema: nothing is fetched for it, and no schema keeps this process busy.

What costs without bound is not checked here (patterns, what was left unevaluated): grammars of engines and the hub's own models do
that. Everything else is counted, and given up after so many steps.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping
from contextvars import ContextVar
from typing import Any, cast

import orjson
from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError
from jsonschema.validators import extend  # pyright: ignore[reportUnknownVariableType]  # jsonschema's hints
from referencing import Registry
from referencing.exceptions import Unresolvable

from body_broker.calls import Json

STEPS_MAX = 20_000
"""Steps for one value: milliseconds, a few tens of them at the worst."""
_PRINTED_BYTES = 64
"""So many bytes of a value or a schema count as a step: an error that is found has both of them in its text."""
_REFERENCE = 8
_NOWHERE: Registry[Any] = Registry()
_LEFT: ContextVar[list[int]] = ContextVar("body_broker_steps_left")
_SCOPES = frozenset({"$schema", "$id", "$anchor", "$dynamicAnchor"})
"""Dropped: by the first a part of a schema would choose other keywords than these, by the rest each reference reads all of it anew."""
Keyword = Callable[[Any, Any, Any, Any], Iterable[ValidationError] | None]


class TooCostly(Exception):
    """Whether the value obeys cannot be found out here."""


def _unchecked(*_given: object) -> None:
    """A keyword that says nothing here."""


def _unique(_validator: Any, wanted: Any, instance: Any, _schema: Any) -> Iterable[ValidationError]:  # jsonschema's own
    """No two alike; by their text, for comparing each with each is a square."""
    if wanted and isinstance(instance, list):
        items = cast("list[Any]", instance)
        if len({orjson.dumps(item, option=orjson.OPT_SORT_KEYS) for item in items}) < len(items):
            yield ValidationError("has two that are alike")


def _counted(keyword: str, follow: Keyword) -> Keyword:
    def counted(
        validator: Any, value: Any, instance: Any, schema: Any
    ) -> Iterable[ValidationError] | None:  # jsonschema's own
        left = _LEFT.get()
        left[0] -= _steps(value) + _steps(instance) + (_REFERENCE if keyword == "$ref" else 1)
        if left[0] < 0:
            raise TooCostly
        if keyword == "additionalProperties" and "patternProperties" in schema:
            return None  # which they are, patterns say
        return follow(validator, value, instance, schema)

    return counted


def _steps(part: Any) -> int:  # any JSON
    if isinstance(part, dict | list):
        return len(cast("list[Any]", part)) + len(orjson.dumps(part)) // _PRINTED_BYTES
    return len(part) // _PRINTED_BYTES if isinstance(part, str) else 0


_KEYWORDS = cast("dict[str, Keyword]", cast("Any", Draft202012Validator).VALIDATORS)
_UNBOUND = ("pattern", "patternProperties", "unevaluatedItems", "unevaluatedProperties", "$dynamicRef")
_Checks = cast(
    "Any",
    extend(
        Draft202012Validator,
        {keyword: _counted(keyword, follow) for keyword, follow in (_KEYWORDS | {"uniqueItems": _unique}).items()}
        | dict.fromkeys(_UNBOUND, _unchecked),
    ),
)
_FORM = cast("Any", extend(Draft202012Validator, {"uniqueItems": _unique}))(Draft202012Validator.META_SCHEMA)


def is_schema(schema: Mapping[str, Json]) -> bool:
    """Whether it is a JSON Schema; a hundredth of a second for a long one."""
    try:
        return next(iter(_FORM.iter_errors(schema)), None) is None
    except (RecursionError, TypeError):
        return False


class Schema:
    """A JSON Schema that values are held to.

    Args:
        schema: One for which `is_schema` holds, else anything may be raised.
    """

    def __init__(self, schema: Mapping[str, Json]) -> None:
        self._checks = _Checks(_without_scopes(schema), registry=_NOWHERE)

    def problems(self, value: Json, most: int) -> list[ValidationError]:
        """What is wrong with a value, at most so many of them.

        Raises:
            TooCostly: It cannot be found out.
        """
        kept = _LEFT.set([STEPS_MAX])
        try:
            return list(itertools.islice(self._checks.iter_errors(value), most))
        except (Unresolvable, RecursionError, orjson.JSONEncodeError) as error:
            raise TooCostly from error
        finally:
            _LEFT.reset(kept)


def _without_scopes(part: Any) -> Any:  # any part of a schema
    if isinstance(part, Mapping):
        found = cast("Mapping[str, Any]", part)
        return {
            name: _without_scopes(value)
            for name, value in found.items()
            if name not in _SCOPES or not isinstance(value, str)
        }
    return [_without_scopes(each) for each in cast("list[Any]", part)] if isinstance(part, list) else part
