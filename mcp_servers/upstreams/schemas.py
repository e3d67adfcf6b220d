"""Owns the JSON Schemas of others: what of one is shown and checked, and the checking, bounded in size, depth and work."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextvars import ContextVar
from functools import cache
from typing import Any, cast

from body_broker.calls import Json
from body_broker.text import canonical_json, clean, is_clean

BYTES_MAX = 64 * 1024
DEPTH_MAX = 32
STEPS_MAX = 5_000
"""How many keywords one check may look at, long ones more than once."""
_DESCRIPTION_MAX = 500
_NAME_MAX = 200
_VALUES_MAX = 500
_PROBLEMS_MAX = 5
_DEFINITIONS = ("$defs", "definitions")

# Every keyword that is kept is of one of these forms; any other, such as pattern, format, if or a remote reference, goes: the
# upstream checks for itself, and a schema that says less lets no more through the gate.
_SCHEMA = frozenset({"items", "additionalProperties", "not", "propertyNames"})
_SCHEMAS = frozenset({"anyOf", "oneOf", "allOf", "prefixItems"})
_COUNTS = ("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties")
_NUMBERS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")
_SAFE_NUMBER = 2**53
_TYPES = frozenset({"object", "array", "string", "number", "integer", "boolean", "null"})

_steps: ContextVar[list[int]] = ContextVar("steps of a check")


class UnsafeSchemaError(Exception):
    """A schema that nobody can be shown; its text is ours and says why."""


class TooMuchWorkError(Exception):
    """A check that would have taken more than `STEPS_MAX` steps."""


def safe_schema(raw: Json) -> dict[str, Json]:
    """What of an upstream's schema is shown and checked: known keywords in their right forms, references to its own definitions.

    Raises:
        UnsafeSchemaError: It is no schema of an object, larger or deeper than it may be, or a name in it cannot be shown.
    """
    if not isinstance(raw, dict):
        raise UnsafeSchemaError("its schema is no JSON object")
    schema = cast("dict[str, Json]", raw)
    if schema.get("type", "object") != "object":
        raise UnsafeSchemaError("its schema is not that of an object")
    if _too_deep(schema) or _bytes_of(schema) > BYTES_MAX:
        raise UnsafeSchemaError(f"its schema is larger than {BYTES_MAX // 1024} KiB or deeper than {DEPTH_MAX} levels")
    names: dict[str, str] = {}
    for where in _DEFINITIONS:
        for name in cast("dict[str, Json]", schema[where]) if isinstance(schema.get(where), dict) else ():
            names[f"#/{where}/{name.replace('~', '~0').replace('/', '~1')}"] = f"d{len(names)}"
    found = _Safe(names).schema(schema)
    definitions: dict[str, Json] = {}
    for where in _DEFINITIONS:
        if isinstance(schema.get(where), dict):
            for name, part in cast("dict[str, Json]", schema[where]).items():
                # With an anchor nobody puts it where it is used: definitions that use each other twice would double each time.
                new = names[f"#/{where}/{name.replace('~', '~0').replace('/', '~1')}"]
                whole = _Safe(names).schema(part)
                definitions[new] = (whole if isinstance(whole, dict) else {}) | {"$anchor": new}
    assert isinstance(found, dict)
    found["type"] = "object"
    return found | ({"$defs": definitions} if definitions else {})


class _Safe:
    """One walk over a schema.

    Args:
        names: What its definitions are called from now on, by how they are referred to.
    """

    def __init__(self, names: Mapping[str, str]) -> None:
        self._names = names

    def schema(self, part: Json) -> dict[str, Json] | bool:
        """A schema in it; what is none says nothing."""
        if isinstance(part, bool):
            return part
        if not isinstance(part, dict):
            return {}
        found: dict[str, Json] = {}
        for key, value in cast("dict[str, Json]", part).items():
            kept = self._keyword(key, value)
            if kept is not None:
                found[key] = kept
        if "patternProperties" in part:  # which are not looked at, so what they allow must not count as unknown
            found.pop("additionalProperties", None)
        return found

    def _open(self, part: Json) -> dict[str, Json]:
        """One of several schemas, as an object: whoever shows them joins them with others."""
        found = self.schema(part)
        return found if isinstance(found, dict) else {} if found else {"not": {}}

    def _keyword(self, key: str, value: Json) -> Json | None:
        """The value of one keyword as it is kept; None for one that goes."""
        if key in _SCHEMA:
            return self.schema(value) if isinstance(value, dict | bool) else None
        if key in _SCHEMAS:
            return [self._open(each) for each in cast("list[Json]", value)] if isinstance(value, list) else None
        if key in _PLAIN:
            return _PLAIN[key](value)
        if key == "properties":
            return self._properties(value)
        if key == "$ref" and isinstance(value, str) and value in self._names:
            return f"#/$defs/{self._names[value]}"
        return None

    def _properties(self, value: Json) -> Json | None:
        if not isinstance(value, dict):
            return None
        found = cast("dict[str, Json]", value)
        if any(len(name) > _NAME_MAX or not _is_line(name) for name in found):
            raise UnsafeSchemaError("a name in its schema is too long or holds invisible characters")
        return {name: self.schema(part) for name, part in found.items()}


def prepare() -> None:
    """Import what checks arguments; blocking, and without it the first call would block."""
    _checker()


def problems_of(schema: Mapping[str, Json], value: Json) -> list[str]:
    """What of a value does not fit a schema that `safe_schema` made: places and keywords, no value.

    Raises:
        TooMuchWorkError: Nobody can say it in time.
    """
    token = _steps.set([STEPS_MAX])
    found: list[str] = []
    try:
        for error in _checker()(schema).iter_errors(value):
            place = ".".join(clean(str(part), limit=64) for part in error.absolute_path)
            found.append(f"{place or 'the object'}: {_said(error)}")
            if len(found) >= _PROBLEMS_MAX:
                break
    except RecursionError as error:
        raise TooMuchWorkError from error
    finally:
        _steps.reset(token)
    return found


def _said(error: Any) -> str:  # jsonschema's ValidationError
    match error.validator:
        case "required":
            missing = [name for name in error.validator_value if name not in error.instance]
            return f"{clean(', '.join(missing), limit=200)} is missing"
        case "type":
            return f"must be {clean(' or '.join(_listed(error.validator_value)), limit=100)}"
        case "additionalProperties":
            known = error.schema.get("properties", {})
            more = sorted(name for name in error.instance if name not in known)
            return f"{clean(', '.join(more), limit=200)} is unknown"
        case "enum":
            return f"must be one of {clean(', '.join(map(str, error.validator_value)), limit=300)}"
        case "const" | "minimum" | "maximum" | "minLength" | "maxLength" | "minItems" | "maxItems" | "multipleOf":
            return f"must have {error.validator} {clean(str(error.validator_value), limit=100)}"
        case _:
            return f"does not fit {error.validator}"


@cache
def _checker() -> Any:  # jsonschema has no type for the class of a validator
    """Draft 2020-12 with the keywords that `safe_schema` keeps, each counted."""
    from jsonschema import Draft202012Validator, validators  # noqa: PLC0415 - slow to import, and only where a server is joined

    kept = _SCHEMA | _SCHEMAS | (_PLAIN.keys() - {"default", "description"}) | {"properties", "$ref"}
    known = cast("dict[str, Callable[..., Any]]", Draft202012Validator.VALIDATORS)
    make: Callable[..., Any] = cast("Any", validators).create
    return make(
        meta_schema={},
        validators={name: _counted(known[name]) for name in kept},
        type_checker=Draft202012Validator.TYPE_CHECKER,
    )


def _counted(keyword: Callable[..., Any]) -> Callable[..., Any]:
    def check(validator: Any, value: Json, instance: Json, schema: Json) -> Any:  # jsonschema's own class
        left = _steps.get()
        left[0] -= 1 + (len(cast("list[Any]", value)) // 8 if isinstance(value, list | dict) else 0)
        if left[0] < 0:
            raise TooMuchWorkError
        return keyword(validator, value, instance, schema)

    return check


def _bytes_of(schema: Json) -> int:
    try:
        return len(canonical_json(schema))
    except TypeError as error:  # orjson's own is one
        raise UnsafeSchemaError("its schema holds what JSON cannot be written with") from error


def _too_deep(value: Json, left: int = DEPTH_MAX) -> bool:
    if not isinstance(value, dict | list):
        return False
    parts = cast("list[Json]", list(cast("dict[str, Json]", value).values()) if isinstance(value, dict) else value)
    return left == 0 or any(_too_deep(part, left - 1) for part in parts)


def _count(value: Json) -> Json | None:
    return value if type(value) is int and 0 <= value < _SAFE_NUMBER else None


def _number(value: Json) -> Json | None:
    return value if type(value) in {int, float} and abs(value) < _SAFE_NUMBER else None


def _positive(value: Json) -> Json | None:
    return value if _number(value) is not None and value > 0 else None


def _types(value: Json) -> Json | None:
    found = _listed(value)
    return value if found and all(isinstance(each, str) and each in _TYPES for each in found) else None


def _listed(value: Json) -> list[Json]:
    return cast("list[Json]", value) if isinstance(value, list) else [value]


def _strings(value: Json) -> Json | None:
    if not isinstance(value, list):
        return None
    names = cast("list[Json]", value)
    return [each for each in names if isinstance(each, str) and len(each) <= _NAME_MAX and _is_line(each)]


def _values(value: Json) -> Json | None:
    """An enumeration of plain values; one with a value that a call could not hold is no enumeration to us."""
    found = _listed(value)
    return found if 0 < len(found) <= _VALUES_MAX and all(map(_is_plain, found)) else None


def _is_plain(value: Json) -> bool:
    if isinstance(value, str):
        return len(value) <= _DESCRIPTION_MAX and is_clean(value)
    return value is None or isinstance(value, bool) or _number(value) is not None


def _plain(value: Json) -> Json | None:
    return value if _is_plain(value) else None


def _words(value: Json) -> Json | None:
    return clean(value, limit=_DESCRIPTION_MAX) if isinstance(value, str) else None


def _is_line(text: str) -> bool:
    return bool(text) and is_clean(text) and "\n" not in text and "\t" not in text


_PLAIN: Mapping[str, Callable[[Any], Json | None]] = {
    **dict.fromkeys(_COUNTS, _count),
    **dict.fromkeys(_NUMBERS, _number),
    "multipleOf": _positive,
    "type": _types,
    "required": _strings,
    "enum": _values,
    "const": _plain,
    "default": _plain,
    "description": _words,
}
