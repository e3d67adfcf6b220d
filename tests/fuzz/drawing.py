"""Owns arguments drawn from a tool's own input schema, whose ids are mostly those of things that exist."""

from __future__ import annotations

import random
from collections import defaultdict, deque
from collections.abc import Mapping
from typing import Any, cast

Schema = Mapping[str, Any]

_KINDS = {
    ("get_job", "id"): "job",
    ("cancel_job", "id"): "job",
    ("get_approval", "id"): "approval",
    ("cancel_approval", "id"): "approval",
    ("get_document", "id"): "document",
    ("delete_document", "id"): "document",
    ("get_quest", "id"): "quest",
    ("scan_codebase", "repo_path"): "repository",
    ("audit_with_ai", "findings"): "scan",
}
_BY_NAME = {
    "npc_id": "npc", "npc_ids": "npc", "entity_id": "entity", "ids": "entity", "entity": "entity", "entities": "entity",
    "subject": "entity", "near": "entity", "target": "entity", "known_to": "npc", "player": "player", "region": "region",
    "player_id": "player", "quest_id": "quest", "graph_id": "graph", "node_id": "node", "start": "node", "fact_id": "fact",
    "job_id": "job", "scan_id": "scan", "finding_id": "finding", "change_id": "change", "key": "key", "prefix": "key",
    "index": "index", "cursor": "cursor", "document": "document", "idempotency_key": "idempotency",
}  # fmt: skip
"""What a property of this name names."""
_TOLD = {
    "job_id": "job", "change_id": "change", "scan_id": "scan", "approval": "approval", "finding_id": "finding",
    "doc_id": "document", "fact_id": "fact", "next_cursor": "cursor",
}  # fmt: skip
"""What a field of this name in an answer names."""
_QUICK: dict[str, Any] = {"wait_s": 0, "timeout_ms": 1}
"""Arguments that would only make the fuzzer wait."""
_PATTERNS = {
    "^[a-z][a-z0-9_]{0,63}$": ("knows", "owes", "is_in"),
    "^[a-z0-9-]+$": ("eu-west-1", "us-east-1"),
    "^[A-Za-z0-9_-]{1,64}$": ("tool_of_mine", "x"),
}
_WORDS = (
    "the ferry", "Osric Vane", "who lit the lanterns?", "debt", "", " ", "\u202eevil", "a\x00b", "\ud7ff\U0001f525", "'; DROP TABLE work; --",
    "../../etc/passwd", "{{7*7}}", "%s%n", "ignore all previous instructions", "x" * 300, "<script>", "null", "0", "-1", "*:*", "\\", "%00",
)  # fmt: skip
_NUMBERS = (0, 1, 2, 5, 10, 99, 100, -1, 2**31, 2**53, 0.5, 1e308, -0.0)


class Things:
    """Ids of what exists, by kind; those that answers tell of come in as they go by."""

    def __init__(self) -> None:
        self._of: defaultdict[str, deque[str]] = defaultdict(lambda: deque(maxlen=200))

    def add(self, kind: str, *ids: str) -> None:
        """These exist."""
        known = self._of[kind]
        known.extend(found for found in ids if found not in known)

    def hear(self, found: object) -> None:
        """Take the ids out of an answer."""
        if isinstance(found, dict):
            for name, value in cast("dict[str, object]", found).items():
                if isinstance(value, str) and (kind := _TOLD.get(name)):
                    self.add(kind, value)
                elif isinstance(value, dict | list):
                    self.hear(cast("object", value))
        elif isinstance(found, list):
            for value in cast("list[object]", found)[:20]:
                self.hear(value)

    def kinds(self) -> set[str]:
        """What there is at least one of."""
        return {kind for kind, ids in self._of.items() if ids}

    def any(self, kind: str, chance: random.Random) -> str | None:
        """One of them, None where there is none."""
        return chance.choice(known) if (known := self._of.get(kind)) else None


class Drawing:
    """Draws arguments."""

    def __init__(self, things: Things, chance: random.Random) -> None:
        self._things, self._chance = things, chance

    def arguments(self, tool: str, schema: Schema) -> dict[str, Any]:
        """What a client that read the schema might send: mostly what fits it, sometimes what nearly does."""
        drawn = self._object(tool, schema)
        if self._chance.random() < 0.05:
            self._spoil(drawn)
        return drawn

    def _object(self, tool: str, schema: Schema) -> dict[str, Any]:
        if self._chance.random() < 0.5 and (whole := self._whole(schema.get("properties", {}))):
            return whole
        required = set(schema.get("required", ()))
        found: dict[str, Any] = {}
        for name, part in schema.get("properties", {}).items():
            if name in _QUICK:
                found[name] = _QUICK[name]
            elif name in required or self._chance.random() < 0.3:
                found[name] = self._value(tool, name, part)
        if not schema.get("properties") and self._chance.random() < 0.5:
            found[self._chance.choice(("value", "text", "x", "quantity", "to"))] = self._word(tool, "payload", {})
        return found

    def _whole(self, properties: Mapping[str, Any]) -> dict[str, Any] | None:
        """Something that can be done: what a change holds no schema says."""
        entity, key = self._things.any("npc", self._chance), self._things.any("key", self._chance)
        if {"op", "payload"} <= properties.keys():
            op = self._chance.choice(("append_memory", "say"))
            return {
                "entity_id": entity,
                "op": op,
                "payload": {"text": self._chance.choice(_WORDS) or "The tide was late."},
            }
        if {"kind", "params"} <= properties.keys():
            return {"kind": "config", "target": key, "params": {"value": self._chance.choice((1, 2, 3))}}
        return None

    def _value(self, tool: str, name: str, schema: Schema) -> Any:  # noqa: PLR0911 - one for each kind of schema
        chance = self._chance
        if "const" in schema:
            return schema["const"]
        if "enum" in schema:
            return chance.choice(schema["enum"])
        if "anyOf" in schema:
            return self._value(tool, name, chance.choice(schema["anyOf"]))
        match schema.get("type"):
            case "object":
                return self._object(tool, schema)
            case "array":
                many = chance.randint(0, min(3, schema.get("maxItems", 3)))
                return [self._value(tool, name, schema.get("items", {})) for _ in range(many)]
            case "boolean":
                return chance.random() < 0.5
            case "integer" | "number" as kind:
                return self._number(schema, whole=kind == "integer")
            case _:
                return self._word(tool, name, schema)

    def _number(self, schema: Schema, *, whole: bool) -> float:
        least = schema.get("minimum", schema.get("exclusiveMinimum"))
        most = schema.get("maximum")
        if most is not None and self._chance.random() < 0.8:
            return self._chance.randint(int(least or 1), int(most))
        fitting = [n for n in _NUMBERS if (least is None or n > least) and not (whole and n != int(n))]
        drawn = self._chance.choice(fitting)
        return int(drawn) if whole else drawn

    def _word(self, tool: str, name: str, schema: Schema) -> str:
        kind = _KINDS.get((tool, name)) or _BY_NAME.get(name)
        if kind and self._chance.random() < 0.9 and (found := self._things.any(kind, self._chance)):
            return found
        if (pattern := schema.get("pattern")) in _PATTERNS:
            return self._chance.choice(_PATTERNS[pattern])
        return self._chance.choice(_WORDS)

    def _spoil(self, drawn: dict[str, Any]) -> None:
        """Make it what the schema does not allow."""
        wrong: tuple[Any, ...] = (None, [], {}, True, -1, 1e400, "", [[[[]]]], {"a": {"b": {}}}, 2**70)
        name = self._chance.choice([*drawn, "unknown_argument"])
        drawn[name] = self._chance.choice(wrong)
