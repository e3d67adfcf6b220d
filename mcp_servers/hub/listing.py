"""Owns what a caller is shown: definitions of tools, resources and prompts, cut to what some context would allow it."""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast
from urllib.parse import unquote

import mcp_types as types
import orjson

from approvals.model import REASON_MAX
from body_broker.calls import Caller, Operation, Prompt, Resource, Room, Tool
from mcp_servers.hub.approval_tools import TOOLS as APPROVAL_TOOLS
from policies.decision import chain_of
from policies.engine import Policy

TTL_MS = 60_000
_ABOUT_APPROVALS = frozenset(tool.name for tool in APPROVAL_TOOLS)
_COMES_OF = {"get_story_arc": "generate_story_arc"}
"""Tools that tell what came of another one."""
_REASON: dict[str, Any] = {"type": "string", "maxLength": REASON_MAX, "description": "Why, for the approver."}
_KEPT_LISTS = 256


@dataclass(frozen=True, slots=True)
class Listing:
    """Everything one kind of caller sees; `tools_json` is the ready result of tools/list without its `_meta`."""

    tools: list[types.Tool]
    resources: list[types.Resource]
    templates: list[types.ResourceTemplate]
    prompts: list[types.Prompt]
    tools_json: bytes


class Listings:
    """Listings per set of visible operations, each computed once per policy load (DESIGN.md §4)."""

    def __init__(self, rooms: Sequence[Room], policy: Policy, configured: frozenset[str]) -> None:
        self._policy, self._configured = policy, configured
        self._kept: OrderedDict[tuple[object, ...], Listing] = OrderedDict()
        self.serve(rooms)

    def serve(self, rooms: Sequence[Room]) -> None:
        """Show these rooms from now on, as the policy of now decides."""
        there = [o for room in rooms for o in room.operations() if o.needs is None or o.needs in self._configured]
        self._rows = [o for o in there if o.withheld is None]
        self._uris = [(r, uri_pattern(r.uri)) for room in rooms for r in room.resources]
        self._kept.clear()

    def of(self, caller: Caller) -> Listing:
        """What this caller is shown: exactly what the policy would allow or let it ask for in some context.

        The tools about approvals are left out where people can never be asked for this caller, and those that tell what came of a tool
        that it is not shown; a call of them is answered.
        """
        key = chain_of(caller)
        kept = self._kept.get(key)
        if kept is None:
            visible = self._policy.visible(key)
            if not any(self._policy.askable(o.name) for o in self._rows if o.kind == "tool" and o.name in visible):
                visible -= _ABOUT_APPROVALS  # nobody is ever asked for them: they need not read about it
            visible -= {reads for reads, asks in _COMES_OF.items() if asks not in visible}
            kept = self._kept[key] = _listing([o for o in self._rows if o.name in visible], self._policy)
            if len(self._kept) > _KEPT_LISTS:
                self._kept.popitem(last=False)
        return kept

    def resource_at(self, uri: str) -> tuple[Resource, dict[str, str]] | None:
        """The row that serves a URI and the arguments read out of it."""
        for operation, pattern in self._uris:
            if found := pattern.fullmatch(uri):
                return operation, {name: unquote(text) for name, text in found.groupdict().items()}
        return None

    def resource_of(self, uri: str) -> Resource | None:
        """The row of a URI, or of a URI template."""
        found = self.resource_at(uri)
        return found[0] if found else next((row for row, _ in self._uris if row.uri == uri), None)


def uri_pattern(template: str) -> re.Pattern[str]:
    """The pattern of a URI template: {field} is one path segment."""
    parts = re.split(r"\{(\w+)\}", template)
    return re.compile("".join(f"(?P<{p}>[^/?#]{{1,300}})" if i % 2 else re.escape(p) for i, p in enumerate(parts)))


def _listing(rows: list[Operation], policy: Policy) -> Listing:
    tools = [tool_definition(o, reasoned=takes_reason(o, policy)) for o in rows if isinstance(o, Tool)]
    result = {
        "tools": [t.model_dump(by_alias=True, mode="json", exclude_none=True) for t in tools],
        "ttlMs": TTL_MS,
        "cacheScope": "private",
        "resultType": "complete",
    }
    resources = [o for o in rows if isinstance(o, Resource)]
    return Listing(
        tools=tools,
        resources=[
            types.Resource(uri=o.uri, name=o.name, title=o.title, description=o.description, mime_type=o.mime_type)
            for o in resources
            if "{" not in o.uri
        ],
        templates=[
            types.ResourceTemplate(
                uri_template=o.uri, name=o.name, title=o.title, description=o.description, mime_type=o.mime_type
            )
            for o in resources
            if "{" in o.uri
        ],
        prompts=[_prompt_definition(o) for o in rows if isinstance(o, Prompt)],
        tools_json=orjson.dumps(result),
    )


def takes_reason(operation: Operation, policy: Policy) -> bool:
    """Whether its callers may give a `reason` beside its arguments: people may be asked for it, and it has none of its own."""
    return (
        operation.kind == "tool" and policy.askable(operation.name) and "reason" not in operation.arguments.model_fields
    )


def tool_definition(tool: Tool, *, reasoned: bool = False) -> types.Tool:
    """A row as MCP shows it: schemas without pydantic's titles, all four annotations said.

    With `reasoned` its input has the `reason` too that the gate takes out of the arguments.
    """
    schema = lean_schema(tool.arguments.model_json_schema())
    if reasoned:
        schema["properties"] = schema.get("properties", {}) | {"reason": _REASON}
    return types.Tool(
        name=tool.name,
        title=tool.title,
        description=tool.description,
        input_schema=schema,
        output_schema=_told_or_error(lean_schema(tool.result.model_json_schema(mode="serialization"), output=True)),
        annotations=annotations_of(tool),
    )


def annotations_of(tool: Tool) -> types.ToolAnnotations:
    """All four hints of a row."""
    return types.ToolAnnotations(
        read_only_hint=tool.effect == "none",
        # What people approve by its kind may take something away for ever.
        destructive_hint="destructive" in tool.modifiers or tool.group in {None, "admin_change"},
        idempotent_hint=tool.effect != "once",
        open_world_hint=tool.open_world,
    )


def with_parameter_headers(rooms: Sequence[Room]) -> dict[str, dict[str, Any]]:
    """Input schemas of the tools that declare `Mcp-Param-*` headers by `x-mcp-header`, by name: their calls' headers are checked.

    They are those that clients are shown: of one with an argument that may be null the SDK would compare nothing.
    """
    return {
        tool.name: lean_schema(tool.arguments.model_json_schema())
        for room in rooms
        for tool in room.tools
        if any(_declares_header(field.json_schema_extra) for field in tool.arguments.model_fields.values())
    }


def _declares_header(extra: object) -> bool:
    return isinstance(extra, dict) and "x-mcp-header" in extra


def _told_or_error(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema of a result that may be `{"error": ...}` instead: clients of the TypeScript SDK hold errors to it too."""
    return {key: value for key, value in schema.items() if key != "required"}


def _prompt_definition(prompt: Prompt) -> types.Prompt:
    schema = prompt.arguments.model_json_schema()
    required = set(schema.get("required", ()))
    return types.Prompt(
        name=prompt.name,
        title=prompt.title,
        description=prompt.description,
        arguments=[
            types.PromptArgument(name=name, description=field.get("description"), required=name in required)
            for name, field in schema.get("properties", {}).items()
        ],
    )


def lean_schema(schema: dict[str, Any], *, output: bool = False) -> dict[str, Any]:
    """A JSON Schema that says enough in few tokens, which every model that is shown it pays for.

    Titles that pydantic derives from names go, and definitions stand where they are used, but for those with an anchor and
    those that hold themselves. Of an argument that may be left out the `null` goes, and so do empty defaults and bounds that few
    calls reach: whoever passes them is told. Of a result only the names of its fields are left: what stands in them is seen when
    it is there.
    """
    definitions: dict[str, Any] = schema.get("$defs", {})
    apart = {name for name in definitions if "$anchor" in definitions[name] or name in _named_by(name, definitions)}
    inline = {name: definition for name, definition in definitions.items() if name not in apart}
    found = _lean({k: v for k, v in schema.items() if k not in {"$defs", "description"}}, inline)
    if apart and not output:
        found["$defs"] = {name: _lean(definitions[name], inline) for name in definitions if name in apart}
    if output:
        found["properties"] = {name: {} for name in found.get("properties", {})}
        found.pop("additionalProperties", None)
    return found


_FAR = 1_000  # a bound that far off is met by few calls, and those are told
_LEFT_OUT = frozenset(
    {"title", "minLength", "maxLength", "minProperties", "maxProperties", "propertyNames", "minItems"}
)


def _named_by(name: str, definitions: dict[str, Any]) -> set[str]:
    """The definitions that one needs, directly or by others."""
    found: set[str] = set()
    todo: list[Any] = [definitions[name]]
    while todo:
        part = todo.pop()
        if isinstance(part, list):
            todo += cast("list[Any]", part)
        elif isinstance(part, dict):
            reference = cast("dict[str, Any]", part).get("$ref")
            if isinstance(reference, str) and (other := reference.rpartition("/")[2]) not in found:
                found.add(other)
                todo.append(definitions[other])
            todo += cast("dict[str, Any]", part).values()
    return found


def _lean(value: Any, definitions: dict[str, Any], *, named: bool = False) -> Any:  # any part of a JSON Schema
    if isinstance(value, list):
        return [_lean(item, definitions) for item in cast("list[Any]", value)]
    if not isinstance(value, dict):
        return value
    part = cast("dict[str, Any]", value)
    if named:
        return {name: _lean(field, definitions) for name, field in part.items()}
    if (definition := definitions.get(str(part.get("$ref")).rpartition("/")[2])) is not None:
        inner = {k: v for k, v in definition.items() if k not in {"description", "additionalProperties"}}
        part = inner | {k: v for k, v in part.items() if k != "$ref"}
    optional, part = part, _without_null(part)
    if "$ref" in part and part is not optional:
        return _lean(part, definitions)
    return {
        key: _lean(field, definitions, named=key == "properties")
        for key, field in part.items()
        if key not in _LEFT_OUT and not _goes_without_saying(key, field, part)
    }


def _goes_without_saying(key: str, value: Any, part: dict[str, Any]) -> bool:  # one keyword of a JSON Schema
    match key:
        case "default":
            return not value
        case "minimum":
            return value in {0, 1}
        case "maximum" | "maxItems":
            return value >= _FAR
        case "additionalProperties":
            return value is True
        case "type":
            return "enum" in part or "const" in part
        case _:
            return False


def _without_null(schema: dict[str, Any]) -> dict[str, Any]:
    kinds: list[dict[str, Any]] = schema.get("anyOf", [])
    kept = [kind for kind in kinds if kind != {"type": "null"}]
    if len(kept) == 1 < len(kinds):
        return kept[0] | {k: v for k, v in schema.items() if k != "anyOf"}
    return schema
