"""Owns which of an operation's arguments policies can see: scalars and lists of strings, nested ones as `change.op`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal, cast

from pydantic import BaseModel

from body_broker.calls import Json

DEPTH_MAX = 3

CedarType = Literal["String", "Long", "Bool", "Set<String>"]
_SCALARS: Mapping[Json, CedarType] = {"string": "String", "integer": "Long", "boolean": "Bool"}


@dataclass(frozen=True, slots=True)
class Attribute:
    """One visible argument.

    Attributes:
        path: Its keys from the outermost; `("change", "op")` is the Cedar attribute `"change.op"`.
        type: Its Cedar type.
        required: Whether it is always there: neither it nor anything around it may be null or left out.
    """

    path: tuple[str, ...]
    type: CedarType
    required: bool

    @property
    def name(self) -> str:
        """The attribute's name in policies."""
        return ".".join(self.path)

    def pick(self, arguments: Mapping[str, Json]) -> Json:
        """The value at this path; None where it is null or not there, which policies see as absent."""
        value: Json = arguments.get(self.path[0])
        for key in self.path[1:]:
            value = cast("dict[str, Json]", value).get(key) if isinstance(value, dict) else None
        return value


def attributes_of(model: type[BaseModel]) -> tuple[Attribute, ...]:
    """What policies see of a model's instances, by name. Floats, lists of anything else, open dicts, unions of different
    types and what lies deeper than DEPTH_MAX are invisible.
    """
    schema = model.model_json_schema()
    found = _flatten(schema, schema.get("$defs", {}), (), required=True)
    return tuple(found[name] for name in sorted(found))


def _flatten(
    node: dict[str, Json], definitions: dict[str, Json], path: tuple[str, ...], *, required: bool
) -> dict[str, Attribute]:
    if "$ref" in node:
        node = definitions[node["$ref"].removeprefix("#/$defs/")]
    if variants := node.get("anyOf") or node.get("oneOf"):
        solid = [variant for variant in variants if variant.get("type") != "null"]
        required = required and len(solid) == len(variants)
        return _common([_flatten(variant, definitions, path, required=required) for variant in solid], path)
    if node.get("type") == "object" and len(path) < DEPTH_MAX:
        return _properties(node, definitions, path, required=required)
    found = _type(node)
    if found is None or not path:
        return {}
    return {".".join(path): Attribute(path, found, required)}


def _properties(
    node: dict[str, Json], definitions: dict[str, Json], path: tuple[str, ...], *, required: bool
) -> dict[str, Attribute]:
    found: dict[str, Attribute] = {}
    for key, inner in node.get("properties", {}).items():
        present = key in node.get("required", ()) or "default" in inner
        found |= _flatten(inner, definitions, (*path, key), required=required and present)
    return found


def _type(node: dict[str, Json]) -> CedarType | None:
    if node.get("type") == "array":
        items = cast("dict[str, Json]", node.get("items") or {})
        return "Set<String>" if items.get("type") == "string" else None
    return _SCALARS.get(node.get("type"))


def _common(variants: list[dict[str, Attribute]], path: tuple[str, ...]) -> dict[str, Attribute]:
    """What a union shows: attributes of one type wherever they occur; required only where every variant has them."""
    if any(".".join(path) in variant for variant in variants) and len({tuple(variant) for variant in variants}) > 1:
        return {}  # a scalar here, an object there: no policy could rely on either
    found: dict[str, Attribute] = {}
    for name in {name for variant in variants for name in variant}:
        held = [variant[name] for variant in variants if name in variant]
        if len({attribute.type for attribute in held}) == 1:
            always = len(held) == len(variants) and all(attribute.required for attribute in held)
            found[name] = replace(held[0], required=always)
    return found
