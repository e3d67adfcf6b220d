"""Owns the Chat Completions form of OpenAI, on which vLLM, trtllm-serve and Azure build theirs."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping, Sequence
from email.utils import parsedate_to_datetime
from typing import Any, cast

import orjson

from body_broker.calls import Json
from tiers.faults import EngineFault, Reason
from tiers.model import Finish, Message, ToolCall, ToolOffer, Usage
from tiers.wire.base import Ask, CallPiece, Piece, Prepared

_FINISH: Mapping[str, Finish] = {
    "stop": "stop",
    "length": "length",
    "tool_calls": "tools",
    "function_call": "tools",
}
_BY_STATUS: Mapping[int, Reason] = {
    401: "unauthorised",
    402: "budget",
    403: "unauthorised",
    408: "failed",
    413: "too_long",
    429: "rate_limited",
    503: "overloaded",
    529: "overloaded",
}
_BY_CODE: Mapping[str, Reason] = {
    "insufficient_quota": "budget",
    "billing_hard_limit_reached": "budget",
    "billing_not_active": "budget",
    "context_length_exceeded": "too_long",
    "rate_limit_exceeded": "rate_limited",
    "rate_limit_error": "rate_limited",
    "overloaded_error": "overloaded",
    "service_unavailable": "overloaded",
    "invalid_api_key": "unauthorised",
    "content_filter": "withheld",
}
_TOO_LONG = ("context length", "maximum context", "prompt is too long", "max_seq_len", "max_num_tokens")
_NAMED = ("auto", "none", "required")
_REASONING = re.compile(r"(.*/)?(o\d|gpt-5)(?!.*-chat)")
_RETRY_MAX_S = 600.0
_ERROR_BYTES_MAX = 4_000
_CLIENT, _SERVER = 400, 500
_NOTHING: dict[str, Any] = {}


class OpenAi:
    """OpenAI's own dialect."""

    health_path = "/v1/models"
    models_path = "/v1/models"
    chat_path = "/v1/chat/completions"

    def ask(self, ask: Ask) -> Prepared:
        """The request on the wire."""
        return Prepared(self.chat_path, orjson.dumps(self.fields(ask)))

    def fields(self, ask: Ask) -> dict[str, Json]:
        """The body's fields."""
        found: dict[str, Json] = {"model": ask.model, "messages": [said(m) for m in ask.messages], "stream": True}
        found |= self.limits(ask) | self.sampling(ask)
        found["stream_options"] = {"include_usage": True}
        if ask.offers:
            found["tools"] = [offered(offer) for offer in ask.offers]
            found["tool_choice"] = chosen(ask.tool_choice)
        return found | self.grammar(ask)

    def limits(self, ask: Ask) -> dict[str, Json]:
        """How much it may write."""
        return {"max_completion_tokens": ask.max_tokens}

    def sampling(self, ask: Ask) -> dict[str, Json]:
        """How it draws its words. OpenAI's reasoning models refuse a temperature and stops, and think at length unless told not to."""
        if _REASONING.match(ask.model):
            return {"reasoning_effort": "low"} | ({} if ask.seed is None else {"seed": ask.seed})
        return sampled(ask)

    def grammar(self, ask: Ask) -> dict[str, Json]:
        """What the answer must obey.

        Raises:
            EngineFault: `cannot`, for a form that this engine does not hold its answers to.
        """
        if ask.regex is not None or ask.choices:
            raise EngineFault("cannot")
        if ask.schema is None:
            return {}
        return {"response_format": schema_format(ask.schema, strict=is_closed(ask.schema))}

    def authorised(self, key: str | None) -> Mapping[str, str]:
        """A bearer token."""
        return {"authorization": f"Bearer {key}"} if key else {}

    def reader(self) -> ChatReader:
        """Reads one answer."""
        return ChatReader()

    def fault(self, status: int, headers: Mapping[str, str], body: bytes) -> EngineFault:
        """What another status than 200 means."""
        return fault_of(status, headers, body)


class ChatReader:
    """Reads one answer in the Chat Completions form."""

    def __init__(self) -> None:
        self.ended = False

    def event(self, name: str, data: bytes) -> Piece | None:
        """What one chunk says; `[DONE]` ends the stream."""
        del name
        if data == b"[DONE]":
            self.ended = True
            return None
        chunk = loaded(data)
        if chunk.get("error") or chunk.get("object") == "error":
            raise fault_of(_status_in(chunk), {}, data)
        return self._piece(chunk, "delta")

    def whole(self, body: bytes) -> Piece:
        """An answer in one piece."""
        chunk = loaded(body)
        if chunk.get("error") or chunk.get("object") == "error":
            raise fault_of(_status_in(chunk), {}, body)
        piece = self._piece(chunk, "message")
        if not chunk["choices"]:
            raise EngineFault("malformed")
        self.ended = True
        return piece

    def _piece(self, chunk: Mapping[str, Any], where: str) -> Piece:
        try:
            choices = chunk["choices"]
            usage = chunk.get("usage")
            if not choices:
                return Piece(usage=_usage(usage))
            choice: dict[str, Any] = choices[0]
            delta = choice.get(where) or _NOTHING
            text, calls, finish = delta.get("content"), delta.get("tool_calls"), choice.get("finish_reason")
            if text and not (calls or finish or usage) and isinstance(text, str):
                return Piece(text)  # what nearly every chunk is
            pieces = tuple(_call(each, place) for place, each in enumerate(list[Any](calls or ())))
            if delta.get("refusal"):  # said instead of an answer that obeys a schema
                raise EngineFault("withheld")
            thinks = bool(delta.get("reasoning_content") or delta.get("reasoning"))
            return Piece(_text(text), pieces, self._finish(finish), _usage(usage), thinks)
        except (KeyError, TypeError, AttributeError, ValueError, IndexError, OverflowError) as error:
            raise EngineFault("malformed") from error

    @staticmethod
    def _finish(finish: str | None) -> Finish | None:
        if finish is None:
            return None
        if finish not in _FINISH:  # content_filter, abort, error: what is there is not the answer
            raise EngineFault("withheld" if finish == "content_filter" else "failed")
        return _FINISH[finish]


def said(message: Message) -> dict[str, Json]:
    """One message as the form has it."""
    found: dict[str, Json] = {"role": message.role, "content": message.content}
    if message.tool_calls:
        found["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in message.tool_calls
        ]
        found["content"] = message.content or None
    if message.tool_call_id is not None:
        found["tool_call_id"] = message.tool_call_id
    return found


def offered(offer: ToolOffer, *, strict: bool = False) -> dict[str, Json]:
    """One tool as the form has it."""
    function: dict[str, Json] = {"name": offer.name, "description": offer.description, "parameters": dict(offer.schema)}
    return {"type": "function", "function": function | ({"strict": True} if strict else {})}


def chosen(choice: str) -> Json:
    """The tool choice as the form has it."""
    return choice if choice in _NAMED else {"type": "function", "function": {"name": choice}}


def sampled(ask: Ask) -> dict[str, Json]:
    """How words are drawn, as the form has it."""
    given: dict[str, Json] = {"temperature": ask.temperature, "seed": ask.seed, "stop": list(ask.stop) or None}
    return {name: value for name, value in given.items() if value is not None}


def schema_format(schema: Mapping[str, Json], *, strict: bool = True) -> dict[str, Json]:
    """A response format that holds the answer to a schema."""
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": dict(schema), "strict": strict}}


def is_closed(schema: Any) -> bool:  # any part of a schema
    """Whether OpenAI takes a schema as strict: every object in it is closed, and all its fields are required."""
    if isinstance(schema, list):
        return all(map(is_closed, cast("list[Any]", schema)))
    if not isinstance(schema, Mapping):
        return True
    found = cast("Mapping[str, Any]", schema)
    if found.get("type") == "object" or "properties" in found:
        fields: set[str] = set(found.get("properties") or ())
        if found.get("additionalProperties") is not False or fields != set(found.get("required") or ()):
            return False
    return all(map(is_closed, found.values()))


def calls_of(pieces: Sequence[CallPiece]) -> tuple[ToolCall, ...]:
    """The tool calls that these pieces make up, in their places' order; one that needs no arguments may come without any.

    Raises:
        EngineFault: `malformed`, where one calls nothing.
    """
    parts: dict[int, list[str]] = {}
    for piece in pieces:
        known = parts.setdefault(piece.place, ["", "", ""])
        known[0] = known[0] or piece.id
        known[1] = known[1] or piece.name
        known[2] += piece.arguments
    if not all(name for _, name, _ in parts.values()):
        raise EngineFault("malformed")
    return tuple(
        ToolCall(known or f"call_{place}", name, text or "{}") for place, (known, name, text) in sorted(parts.items())
    )


def fault_of(status: int, headers: Mapping[str, str], body: bytes) -> EngineFault:
    """What a status and the error's own code mean, in both forms: {error: {...}} and trtllm-serve's flat one.

    Codes are believed; of its words only that a prompt is too long, which costs nobody but who asked: an error may repeat the prompt.
    """
    codes, message = _told(body)
    reason: Reason | None = next((_BY_CODE[code] for code in codes if code in _BY_CODE), None)
    if reason is None:
        reason = _BY_STATUS.get(status, "rejected" if _CLIENT <= status < _SERVER else "failed")
    if reason in {"rejected", "failed"} and status < _SERVER and any(word in message for word in _TOO_LONG):
        reason = "too_long"
    return EngineFault(reason, retry_after_s=retry_after_s(headers))


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """How long it asks to be left alone, at most ten minutes; a date counts from the answer's own date, so nobody's clock is believed."""
    told = headers.get("retry-after", "")
    with contextlib.suppress(ValueError, TypeError):
        if "retry-after-ms" in headers:
            seconds = float(headers["retry-after-ms"]) / 1_000
        elif told.strip()[:1].isalpha():
            seconds = (parsedate_to_datetime(told) - parsedate_to_datetime(headers.get("date", ""))).total_seconds()
        else:
            seconds = float(told)
        if seconds > 0:  # and a number
            return min(seconds, _RETRY_MAX_S)
    return None


def loaded(data: bytes) -> dict[str, Any]:
    """A JSON object.

    Raises:
        EngineFault: `malformed`, where it is none.
    """
    try:
        found = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise EngineFault("malformed") from error
    if not isinstance(found, dict):
        raise EngineFault("malformed")
    return cast("dict[str, Any]", found)


def _told(body: bytes) -> tuple[tuple[str, ...], str]:
    """The codes of an error, and its message in small letters; {"error": "text"} is trtllm-serve's form for bad requests."""
    try:
        found = loaded(body)
    except EngineFault:  # a page of some proxy, or cut
        return (), ""
    error: Any = found.get("error") or found
    if isinstance(error, str):
        return (), error[:_ERROR_BYTES_MAX].lower()
    said = cast("dict[str, Any]", error) if isinstance(error, dict) else {}
    return (str(said.get("code")), str(said.get("type"))), str(said.get("message"))[:_ERROR_BYTES_MAX].lower()


def part_of(said: Any) -> dict[str, Any]:  # whatever stands there
    """An object inside an answer; an empty one where there is none.

    Raises:
        EngineFault: `malformed`, where it is something else.
    """
    if said is None:
        return {}
    if not isinstance(said, dict):
        raise EngineFault("malformed")
    return cast("dict[str, Any]", said)


def _text(said: Any) -> str:  # whatever stands there
    if said is None:
        return ""
    if not isinstance(said, str):
        raise EngineFault("malformed")
    return said


def _status_in(chunk: Mapping[str, Any]) -> int:
    error = chunk.get("error")
    code = (cast("dict[str, Any]", error) if isinstance(error, dict) else chunk).get("code")
    return code if isinstance(code, int) else _SERVER


def _usage(said: Any) -> Usage | None:  # whatever stands there
    if not said:
        return None
    details = part_of(said.get("prompt_tokens_details"))
    found: tuple[Any, ...] = (said.get("prompt_tokens"), said.get("completion_tokens"), details.get("cached_tokens"))
    counts = [int(count or 0) for count in found]
    return Usage(*counts) if min(counts) >= 0 and counts[0] else None


def _call(said: Mapping[str, Any], place: int) -> CallPiece:
    function = part_of(said.get("function"))
    index = said.get("index")
    return CallPiece(
        place if index is None else int(index),
        _text(said.get("id")),
        _text(function.get("name")),
        _text(function.get("arguments")),
    )
