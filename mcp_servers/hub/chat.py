"""Owns how a request of OpenAI's chat API reads as one to `generate`, and how an answer and an error of ours read to its clients."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, cast

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from body_broker.calls import Json
from body_broker.errors import BadInput, WireError
from mcp_servers.hub.generating import Generated, Tokens
from tiers.model import Finish

EXTENSION = "body_broker"
"""The object beside OpenAI's own fields: in a request arguments of `generate`, in an answer how it came about."""
TOO_LONG = "messages: too long"
_MAX_TOKENS = 1_024
FINISH: Mapping[Finish, str] = {
    "stop": "stop",
    "grammar": "stop",
    "length": "length",
    "deadline": "length",
    "tools": "tool_calls",
}
"""OpenAI's words for why an answer ends."""
_THEIRS = {"response_schema": "response_format.json_schema.schema", "own_tools": "tools"}
"""What a client of OpenAI's calls arguments of `generate`."""
_UNFIT = "The arguments do not fit generate:"
_NAMELESS = re.compile(r"\bgenerate( would| is| took| failed| needs)\b")
"""Where a message of ours begins with the tool that its client never named."""
_SEEDS = 2**32
_OBJECT = "Input should be an object"
_KINDS = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
_SERVER = 500
_OURS = frozenset(
    {
        "sla",
        "latency_budget_ms",
        "tools",
        "persona",
        "npc_id",
        "role",
        "requires_expert_reasoning",
        "cost_sensitivity",
        "cost_ceiling",
        "choices",
        "background",
    }
)


class _Open(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True, allow_inf_nan=False)


class _Part(_Open):
    type: Literal["text"]
    text: str


class _Function(_Open):
    name: str
    description: str | None = None
    parameters: dict[str, Json] | None = None


class _Tool(_Open):
    type: Literal["function"]
    function: _Function


class _CallFunction(_Open):
    name: str
    arguments: str


class _ToolCall(_Open):
    id: str
    type: Literal["function"] = "function"
    function: _CallFunction


def _in_parts(given: object) -> object:
    return [{"type": "text", "text": given}] if isinstance(given, str) else given


def _in_list(given: object) -> object:
    return [given] if isinstance(given, str) else given


def _chosen(given: object) -> object:
    match given:
        case None | "none" | "auto" | "required":
            return given
        case {"type": "function", "function": {"name": str(name)}}:
            return name
        case _:
            raise ValueError('give none, auto, required, or {"type": "function", "function": {"name": "..."}}')


class _Message(_Open):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Annotated[list[_Part] | None, BeforeValidator(_in_parts)] = None
    tool_calls: list[_ToolCall] | None = None
    tool_call_id: str | None = None

    def turn(self) -> dict[str, Json]:
        """As a message of `generate`."""
        return {
            "role": "system" if self.role == "developer" else self.role,
            "content": "".join(part.text for part in self.content or ()),
            "tool_calls": [
                {"id": call.id, "name": call.function.name, "arguments": call.function.arguments}
                for call in self.tool_calls or ()
            ],
            "tool_call_id": self.tool_call_id,
        }


class _Schema(_Open):
    name: str
    schema_: Annotated[dict[str, Json], Field(alias="schema")]


class _Format(_Open):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: _Schema | None = None


class _StreamOptions(_Open):
    include_usage: bool = False


_NOTHING: tuple[object, ...] = (None, False, 0, [], {})
_LACKING: Mapping[str, tuple[object, ...]] = {
    "n": (None, 1),
    "logprobs": _NOTHING,
    "top_logprobs": _NOTHING,
    "logit_bias": _NOTHING,
    "functions": _NOTHING,
    "function_call": (*_NOTHING, "none", "auto"),
    "audio": _NOTHING,
    "modalities": (None, ["text"]),
    "web_search_options": (None,),
}
"""What is not here, and how a client may say that it does not want it."""


class Chat(_Open):
    """A body of /v1/chat/completions: the fields that are followed; others are ignored and said to be."""

    model: str
    messages: Annotated[list[_Message], Field(min_length=1)]
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    max_tokens: Tokens | None = None
    max_completion_tokens: Tokens | None = None
    temperature: float | None = None
    seed: int | None = None
    stop: Annotated[list[str] | None, BeforeValidator(_in_list)] = None
    tools: list[_Tool] | None = None
    tool_choice: Annotated[str | None, BeforeValidator(_chosen)] = None
    response_format: _Format | None = None
    body_broker: dict[str, Json] | None = None

    @property
    def include_usage(self) -> bool:
        """Whether the stream ends with what was used."""
        return self.stream_options is not None and self.stream_options.include_usage

    @classmethod
    def read(cls, body: dict[str, Any]) -> Chat:
        """A checked body.

        Raises:
            BadInput: It does not fit, or wants what is not there.
        """
        try:
            found = cls.model_validate(body)
        except ValidationError as error:
            problems = [
                f"{'.'.join(map(str, e['loc'])) or 'body'}: {_OBJECT if e['type'] == 'model_type' else _plain(e['msg'])}"
                for e in error.errors(include_input=False, include_url=False)
            ]
            raise BadInput(
                f"The request does not fit: {'; '.join(problems[:5])}.", details={"problems": problems[:20]}
            ) from error
        found.check()
        return found

    def check(self) -> None:
        """Return where nothing is wanted that would be missing from the answer.

        Raises:
            BadInput: Something is, by name.
        """
        extra = self.model_extra or {}
        if lacking := [name for name, harmless in _LACKING.items() if extra.get(name) not in harmless]:
            raise BadInput(
                f"This endpoint does not have {', '.join(lacking)}.",
                next_step="Leave it out: one answer of text or tool calls is what there is.",
                details={"problems": [f"{name}: not supported" for name in lacking]},
            )
        if unknown := sorted(set(self.body_broker or ()) - _OURS):
            raise BadInput(
                f"body_broker has no {', '.join(unknown)}.",
                next_step=f"It may have {', '.join(sorted(_OURS))}.",
                details={"problems": [f"body_broker.{name}: unknown" for name in unknown]},
            )

    def ignored(self) -> list[str]:
        """Fields of the request that change nothing here, though whoever sent them may think that they do."""
        return sorted(set(self.model_extra or ()) - _LACKING.keys())

    def arguments(self) -> dict[str, Json]:
        """The arguments of `generate`."""
        offers = [
            {
                "name": tool.function.name,
                "description": tool.function.description or "",
                **({} if tool.function.parameters is None else {"parameters": tool.function.parameters}),
            }
            for tool in self.tools or ()
        ]
        tokens = self.max_completion_tokens if self.max_completion_tokens is not None else self.max_tokens
        found: dict[str, Json] = {
            "model": self.model,
            "messages": [message.turn() for message in self.messages],
            "max_tokens": _MAX_TOKENS if tokens is None else tokens,
            "temperature": self.temperature,
            "seed": None if self.seed is None else self.seed % _SEEDS,
            "stop": self.stop or [],
            "own_tools": offers,
            "response_schema": self._schema(),
        }
        if self.tool_choice is not None:
            found["tool_choice"] = self.tool_choice
        return found | (self.body_broker or {})

    def _schema(self) -> Mapping[str, Json] | None:
        wanted = self.response_format
        if wanted is None or wanted.type == "text":
            return None
        if wanted.type == "json_object":
            return {"type": "object"}
        if wanted.json_schema is None:
            raise BadInput(
                "response_format of type json_schema has no json_schema.",
                details={"problems": ["response_format.json_schema: missing"]},
            )
        return wanted.json_schema.schema_


def completion_of(chat: Chat, answer: Generated, *, id_: str, created: int) -> dict[str, Any]:
    """A whole chat.completion."""
    message: dict[str, Any] = {"role": "assistant", "content": answer.content or None, "refusal": None}
    if answer.tool_calls:
        message["tool_calls"] = calls_of(answer)
    return {
        "id": id_,
        "object": "chat.completion",
        "created": created,
        "model": chat.model,
        "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": FINISH[answer.finish]}],
        "usage": usage_of(answer),
        EXTENSION: facts_of(answer, chat),
    }


def calls_of(answer: Generated) -> list[dict[str, Any]]:
    """The calls of the client's tools, as OpenAI's API has them."""
    return [
        {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
        for call in answer.tool_calls
    ]


def usage_of(answer: Generated) -> dict[str, Any]:
    """Tokens."""
    return {
        "prompt_tokens": answer.prompt_tokens,
        "completion_tokens": answer.completion_tokens,
        "total_tokens": answer.prompt_tokens + answer.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": answer.cached_tokens},
    }


def facts_of(answer: Generated, chat: Chat) -> dict[str, Any]:
    """How the answer came about, and what of the request changed nothing."""
    told = answer.model_dump(
        mode="json", exclude={"content", "tool_calls", "prompt_tokens", "completion_tokens", "cached_tokens"}
    )
    return told | {"ignored": chat.ignored()}


def error_of(told: WireError) -> tuple[int, dict[str, Any]]:
    """The status and body by which OpenAI's clients know an error; ours stands beside it."""
    problems = [_theirs(problem) for problem in cast("list[str]", told.details.get("problems") or [])]
    param = problems[0].partition(":")[0] if problems else None
    status, code = told.http_status, told.code
    if "model: unknown" in problems:
        status, code = 404, "model_not_found"
    if "context_tokens" in told.details or TOO_LONG in problems:
        status, code, param = 400, "context_length_exceeded", "messages"
    kind = _KINDS.get(status, "server_error" if status >= _SERVER else "invalid_request_error")
    step = "Correct it and send the request again." if told.next_step == BadInput.advice else told.next_step
    error: dict[str, Any] = {**told.body(), "code": code, "type": kind, "param": param, "next_step": step}
    error["message"] = f"{_theirs(told.message)} {step}"
    if problems:
        error["problems"] = problems
    return status, {"error": error}


def _plain(text: str) -> str:
    return text.removeprefix("Value error, ")


def _theirs(text: str) -> str:
    text = _NAMELESS.sub(r"The request\1", text.replace(_UNFIT, "The request does not fit:"))
    for ours, theirs in _THEIRS.items():
        text = text.replace(ours, theirs)
    return text
