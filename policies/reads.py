"""Owns what a policy looks at: found in its JSON form, so that a decision can be remembered by just that."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import cast

from body_broker.calls import Json

_CONTEXT: Json = {"Var": "context"}
_ARGUMENTS: Json = {".": {"left": _CONTEXT, "attr": "arguments"}}


@dataclass(slots=True)
class Reads:
    """What a policy reads.

    Attributes:
        context: Attributes of the context.
        arguments: Names of arguments, such as `change.op`.
        whole: It uses the context or all arguments as one value, so nothing can be left out.
        entities: Type and id of every entity it names outside its action scope.
    """

    context: set[str] = field(default_factory=set[str])
    arguments: set[str] = field(default_factory=set[str])
    whole: bool = False
    entities: set[tuple[str, str]] = field(default_factory=set[tuple[str, str]])


def read_by(policy: Json) -> Reads:
    """What one policy (its JSON form) reads."""
    found = Reads()
    for part in ("principal", "resource", "conditions"):
        _walk(policy[part], found)
    return found


def reads_approval(condition: Json) -> bool:
    """Whether one condition of a policy looks at the approval."""
    found = Reads()
    _walk(condition, found)
    return "approval" in found.context


def actions_named(policy: Json) -> Iterator[str]:
    """The actions and groups that the action scope names; none where it is open."""
    scope = policy["action"]
    for entity in scope.get("entities") or filter(None, [scope.get("entity")]):
        yield entity["id"]


def _walk(node: Json, found: Reads) -> None:
    if isinstance(node, list):
        for item in cast("list[Json]", node):
            _walk(item, found)
    elif isinstance(node, dict):
        _visit(cast("dict[str, Json]", node), found)


def _visit(node: dict[str, Json], found: Reads) -> None:
    for operator in (".", "has"):
        access = node.get(operator)
        if isinstance(access, dict) and _attribute(cast("dict[str, Json]", access), found):
            return
    if node == _CONTEXT:
        found.whole = True
    for key in ("entity", "__entity"):
        entity = node.get(key)
        if isinstance(entity, dict) and "id" in entity:
            found.entities.add((cast("str", entity["type"]), cast("str", entity["id"])))
    for inner in node.values():
        _walk(inner, found)


def _attribute(access: dict[str, Json], found: Reads) -> bool:
    """Whether this is an access to the context, which is then noted."""
    if access.get("left") == _ARGUMENTS:
        found.arguments.add(access["attr"])
    elif access.get("left") != _CONTEXT:
        return False
    elif access["attr"] == "arguments":
        found.whole = True
    else:
        found.context.add(access["attr"])
    return True
