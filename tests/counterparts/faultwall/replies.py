"""Owns what the FaultWall is told to say: replies, faults by name, and what it says when it is told nothing.

It imports nothing of ours.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any, Literal, cast

Json = dict[str, Any]
DialectName = Literal["vllm", "trtllm", "openai", "azure", "anthropic"]
DIALECTS: tuple[DialectName, ...] = ("vllm", "trtllm", "openai", "azure", "anthropic")

Fault = Literal[
    "reset",  # the connection is reset once the request is read
    "rate_limited",  # 429
    "rate_limited_for",  # 429 with Retry-After: 30
    "failed",  # 500
    "unavailable",  # 503
    "silent",  # nothing at all comes
    "slow_first",  # the answer begins, signs of life come, the first token is late: `first_after_s`
    "stall",  # half of it, then nothing more
    "cut",  # half of it, then the connection ends
    "malformed",  # half of it, then an event that is no JSON, then the rest
    "no_end",  # all of its text, and neither its finish nor its end
    "no_done",  # its finish, and not its end
    "empty",  # a whole answer with nothing in it
    "wrong_schema",  # JSON, of another shape than was asked for
    "bad_arguments",  # a tool call whose arguments are no JSON
    "budget",  # the provider says that no money is left
    "slow_drip",  # a piece every `gap_s`, without end
    "error_inside",  # half of it, then the dialect's own error event
    "error_at_once",  # the dialect's own error event instead of any text
    "huge_line",  # ten megabytes without the end of a line
    "filtered",  # half of it, finished by the provider's own filter
    "page",  # 200 with a page of HTML, as a proxy in between has them
    "redirect",  # 307 to somewhere else
    "unauthorised",  # 401
    "too_long",  # the prompt does not fit
    "slow_error",  # 503 whose body has no end
]
LASTING_S = 1e9
TEXT = "The ferry leaves at dusk and does not wait for anyone who owes it a coin."


@dataclass(frozen=True, slots=True)
class Tool:
    """A tool call that is to be made."""

    name: str
    arguments: Json | str = field(default_factory=dict[str, Any])

    def written(self) -> str:
        """Its arguments as a model writes them."""
        return self.arguments if isinstance(self.arguments, str) else json.dumps(self.arguments)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """One answer.

    Attributes:
        text: What is said; None leaves it to what the request forces: a tool, a schema, choices; else TEXT.
        pieces: The text in these pieces rather than by words.
        calls: Tools to be called.
        fault: What goes wrong with it.
        finish: Its finish reason in the dialect's own word, rather than what fits.
        usage: Tokens (prompt, completion, cached); None counts words; `counted` False says nothing of them.
        first_after_s, gap_s: Before the first piece and between pieces, by the loop's clock, which a test may move.
        bytes_each: Written to the socket in parts of so many bytes: 1 splits every character.
        ends: Line ends of its events.
        comments: Comments and pings between its events.
        whole: As one JSON text, though a stream was asked for.
        lingers: After all is said the connection does not end.
    """

    text: str | None = None
    pieces: tuple[str, ...] | None = None
    calls: tuple[Tool, ...] = ()
    fault: Fault | None = None
    finish: str | None = None
    usage: tuple[int, int, int] | None = None
    counted: bool = True
    first_after_s: float = 0.0
    gap_s: float = 0.0
    bytes_each: int | None = None
    ends: str = "\n"
    comments: bool = False
    whole: bool = False
    lingers: bool = False

    def parts(self) -> tuple[str, ...]:
        """Its text in pieces."""
        if self.pieces is not None:
            return self.pieces
        words = (self.text or "").split(" ")
        return tuple(word if place == 0 else f" {word}" for place, word in enumerate(words)) if self.text else ()


def forced(body: Json, reply: Reply) -> Reply:
    """The reply with what the request forces, where nothing was scripted: the first tool, an instance of the schema, the first choice."""
    tools = [_function(tool) for tool in rows(body.get("tools"))]
    choice = body.get("tool_choice")
    wanted = _named(choice)
    changes: Json = {}
    if tools and (wanted is not None or choice == "required" or _kind(choice) == "any"):
        name, schema = next((each for each in tools if each[0] == wanted), tools[0])
        changes["calls"] = (Tool(name, instance(schema)),)
    elif (text := _grammar(body)) is not None:
        changes["text"] = text
    else:
        changes["text"] = TEXT
    return replaced(reply, **changes)


def table(said: Any) -> Json:  # whatever stands there
    """A JSON object; an empty one where it is none."""
    return cast("Json", said) if isinstance(said, dict) else {}


def rows(said: Any) -> list[Any]:  # whatever stands there
    """A JSON list; an empty one where it is none."""
    return cast("list[Any]", said) if isinstance(said, list) else []


def replaced(reply: Reply, **changes: Any) -> Reply:  # fields of Reply
    """The reply with these fields changed."""
    return Reply(**{name: getattr(reply, name) for name in Reply.__slots__} | changes)


def instance(schema: Json, root: Json | None = None) -> Any:  # whatever the schema wants
    """The smallest thing that fits a JSON Schema, as a grammar might make it."""
    root = schema if root is None else root
    if "$ref" in schema:
        found: Any = root
        for step in schema["$ref"].removeprefix("#/").split("/"):
            found = found[step]
        return instance(found, root)
    if "const" in schema:
        return schema["const"]
    if "enum" in schema:
        return schema["enum"][0]
    for union in ("anyOf", "oneOf", "allOf"):
        if union in schema:
            return instance(schema[union][0], root)
    return _of_type(schema, root)


def _of_type(schema: Json, root: Json) -> Any:
    kinds: list[Any] = rows(schema.get("type")) or [schema.get("type", "object")]
    match str(kinds[0]):
        case "object":
            fields = schema.get("properties", {})
            return {name: instance(fields.get(name, {"type": "string"}), root) for name in schema.get("required", ())}
        case "array":
            return [instance(schema.get("items", {"type": "string"}), root)] * schema.get("minItems", 0)
        case "string":
            return "x" * max(1, schema.get("minLength", 1))
        case "integer" | "number":
            return schema.get("minimum", schema.get("exclusiveMinimum", -1) + 1)
        case "boolean":
            return True
        case _:
            return None


def _grammar(body: Json) -> str | None:
    outputs = table(body.get("structured_outputs"))
    if "choice" in outputs:
        return str(outputs["choice"][0])
    wanted = table(body.get("response_format")) or table(table(body.get("output_config")).get("format"))
    if wanted.get("type") == "regex":
        return _alternative(str(wanted["regex"]))
    schema = outputs.get("json") or table(wanted.get("json_schema")).get("schema") or wanted.get("schema")
    return None if schema is None else json.dumps(instance(table(schema)))


def _alternative(regex: str) -> str:
    return regex.removeprefix("(").split("|")[0].removesuffix(")").replace("\\", "")


def _function(tool: Json) -> tuple[str, Json]:
    function = table(tool.get("function")) or tool
    return str(function["name"]), table(function.get("parameters")) or table(function.get("input_schema"))


def _named(choice: Any) -> str | None:
    found = table(choice)
    return (table(found.get("function")) or found).get("name")


def _kind(choice: Any) -> str | None:
    return table(choice).get("type")
