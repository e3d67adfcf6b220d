"""Owns how agents are told of the operations: the registered table in short, and what an error says to an unknown one."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any, cast

from body_broker.errors import BadInput
from body_broker.text import clean
from body_broker.world.model import Kind
from body_broker.world.operation import RULES, Op
from body_broker.world.operations import OPERATIONS


@cache
def table() -> Mapping[str, Any]:
    """Every operation: what it does, for which kinds, its payload's fields, and whether it needs expect_version; then the rules."""
    return {
        "operations": {op.name: _row(op) for op in OPERATIONS.values()},
        "rules": dict(RULES),
        "note": "A field with ? may be left out. An op that needs_version is refused without expect_version.",
    }


def check_op(name: str, kind: Kind | None) -> Op:
    """The operation of this name, where it fits an entity of this kind.

    Args:
        name: As somebody asked for it.
        kind: Of the entity; None where it is not there.

    Raises:
        BadInput: There is none, or it is not for that kind; those that are stand in `details["ops"]`.
    """
    op = OPERATIONS.get(name)
    fitting = [
        each.name for each in OPERATIONS.values() if kind is None or (kind in each.kinds and each.apply is not None)
    ]
    if op is not None and (kind is None or kind in op.kinds):
        return op
    what = "is no op" if op is None else f"is no op for kind {kind}"
    raise BadInput(
        f"{clean(name, limit=40)!r} {what}.",
        next_step=f"Ops{'' if kind is None else f' for kind {kind}'} are: {', '.join(fitting)}. game://operations has their payloads.",
        details={"ops": fitting},
    )


def _row(op: Op) -> dict[str, Any]:
    schema = op.payload.model_json_schema()
    required = set(schema.get("required", ()))
    fields = cast("dict[str, Any]", schema.get("properties", {}))
    return {
        "does": op.does,
        "kinds": sorted(op.kinds),
        "payload": {name if name in required else f"{name}?": _briefly(field) for name, field in fields.items()},
        "needs_version": op.needs_version,
    }


def _briefly(schema: Mapping[str, Any]) -> str:
    """A field's JSON Schema in a few words."""
    if "enum" in schema:
        return " | ".join(map(str, schema["enum"]))
    if "anyOf" in schema:
        return " | ".join(dict.fromkeys(_briefly(each) for each in schema["anyOf"] if each.get("type") != "null"))
    found = str(schema.get("type", "any"))
    if found == "array":
        found = f"[{_briefly(schema.get('items', {}))}]"
    if "minimum" in schema and "maximum" in schema:
        found += f" {schema['minimum']}..{schema['maximum']}"
    return found
