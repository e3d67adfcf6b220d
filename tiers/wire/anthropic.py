"""Owns Anthropic's dialect: Messages, with typed events, content blocks and tool results as blocks of a user's message."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson

from body_broker.calls import Json
from tiers.faults import EngineFault, Reason
from tiers.model import Finish, Message, Usage
from tiers.wire.base import Ask, CallPiece, Piece, Prepared
from tiers.wire.openai import fault_of, loaded, part_of

VERSION = "2026-10-21"
"""Takes no temperature of any model; the one before it differs in nothing else that is asked here."""
_FINISH: Mapping[str, Finish] = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "max_tokens": "length",
    "tool_use": "tools",
}
_BY_TYPE: Mapping[str, Reason] = {
    "rate_limit_error": "rate_limited",
    "overloaded_error": "overloaded",
    "authentication_error": "unauthorised",
    "permission_error": "unauthorised",
    "billing_error": "budget",
    "invalid_request_error": "rejected",
    "not_found_error": "rejected",
    "request_too_large": "too_long",
    "api_error": "failed",
    "timeout_error": "failed",
}
_NO_CREDIT = "Your credit balance is too low"
_SPENT = frozenset(
    {
        "contract_spend_limit_reached",
        "enforced_spend_limit_reached",
        "linked_organization_billing_unavailable",
        "linked_organization_spend_limit_reached",
    }
)
_CHOICE: Mapping[str, Json] = {"auto": {"type": "auto"}, "none": {"type": "none"}, "required": {"type": "any"}}


class Anthropic:
    """Anthropic's Messages API."""

    health_path = "/v1/models"
    models_path = "/v1/models"

    def ask(self, ask: Ask) -> Prepared:
        """The request on the wire.

        Raises:
            EngineFault: `cannot`: it holds answers to no choices and to no regex.
        """
        if ask.choices or ask.regex is not None:
            raise EngineFault("cannot")
        found: dict[str, Json] = {
            "model": ask.model,
            "max_tokens": ask.max_tokens,
            "messages": _turns([m for m in ask.messages if m.role != "system"]),
            "stream": True,
        }
        system = "\n\n".join(m.content for m in ask.messages if m.role == "system")
        if system:
            found["system"] = system
        if ask.stop:
            found["stop_sequences"] = list(ask.stop)
        if ask.offers:
            found["tools"] = [
                {"name": o.name, "description": o.description, "input_schema": dict(o.schema)} for o in ask.offers
            ]
            found["tool_choice"] = _CHOICE.get(ask.tool_choice, {"type": "tool", "name": ask.tool_choice})
        if ask.schema is not None:
            found["output_config"] = {"format": {"type": "json_schema", "schema": dict(ask.schema)}}
        return Prepared("/v1/messages", orjson.dumps(found))

    def authorised(self, key: str | None) -> Mapping[str, str]:
        """Anthropic's own header, and the version of its API, without which it answers nothing."""
        return {"anthropic-version": VERSION} | ({"x-api-key": key} if key else {})

    def reader(self) -> MessagesReader:
        """Reads one answer."""
        return MessagesReader()

    def fault(self, status: int, headers: Mapping[str, str], body: bytes) -> EngineFault:
        """What another status than 200 means; the error's own type says more than the status."""
        fault = fault_of(status, headers, body)
        kind, message, code = _told(body)
        if message.startswith(_NO_CREDIT) or code in _SPENT:
            return EngineFault("budget", retry_after_s=fault.retry_after_s)
        if fault.reason == "too_long" or kind not in _BY_TYPE:
            return fault
        return EngineFault(_BY_TYPE[kind], retry_after_s=fault.retry_after_s)


class MessagesReader:
    """Reads one answer in the Messages form."""

    def __init__(self) -> None:
        self.ended = False
        self._prompt, self._cached = 0, 0

    def event(self, name: str, data: bytes) -> Piece | None:
        """What one event says; `message_stop` ends the stream."""
        del name  # it stands in the data too
        found = loaded(data)
        try:
            return self._event(found)
        except (KeyError, TypeError, AttributeError, ValueError, OverflowError) as error:
            raise EngineFault("malformed") from error

    def _event(self, found: Mapping[str, Any]) -> Piece | None:
        match found.get("type"):
            case "message_start":
                self._count(part_of(found["message"].get("usage")))
            case "content_block_start":
                return _block(found["content_block"], int(found["index"]), started=True)
            case "content_block_delta":
                return _delta(found["delta"], int(found["index"]))
            case "message_delta":
                return Piece(finish=_finish(found["delta"].get("stop_reason")), usage=self._usage(found.get("usage")))
            case "message_stop":
                self.ended = True
            case "error":
                raise EngineFault(_BY_TYPE.get(str(found["error"].get("type")), "failed"))
            case _:  # pings, and whatever they add
                pass
        return None

    def whole(self, body: bytes) -> Piece:
        """An answer in one piece."""
        found = loaded(body)
        try:
            self._count(part_of(found.get("usage")))
            pieces = [_block(block, place, started=False) for place, block in enumerate(list[Any](found["content"]))]
            finish = _finish(found["stop_reason"])
            usage = self._usage(found.get("usage"))
        except (KeyError, TypeError, AttributeError, ValueError, OverflowError) as error:
            raise EngineFault("malformed") from error
        self.ended = True
        said = [piece for piece in pieces if piece is not None]
        return Piece("".join(p.text for p in said), tuple(c for p in said for c in p.calls), finish, usage)

    def _count(self, usage: Mapping[str, Any]) -> None:
        cached = int(usage.get("cache_read_input_tokens") or 0)
        made = int(usage.get("cache_creation_input_tokens") or 0)
        self._prompt, self._cached = int(usage.get("input_tokens") or 0) + cached + made, cached

    def _usage(self, usage: Any) -> Usage | None:  # whatever stands there
        counts = (self._prompt, int(part_of(usage).get("output_tokens") or 0), self._cached)
        return Usage(*counts) if min(counts) >= 0 and self._prompt else None


def _block(block: Mapping[str, Any], place: int, *, started: bool) -> Piece | None:
    match block.get("type"):
        case "text":
            return Piece(_text(block.get("text") or ""))
        case "tool_use":
            arguments = "" if started else orjson.dumps(block["input"]).decode()
            return Piece(calls=(CallPiece(place, _text(block["id"]), _text(block["name"]), arguments),))
        case _:
            return None


def _delta(delta: Mapping[str, Any], place: int) -> Piece | None:
    match delta.get("type"):
        case "text_delta":
            return Piece(_text(delta["text"]))
        case "input_json_delta":
            return Piece(calls=(CallPiece(place, arguments=_text(delta["partial_json"])),))
        case "thinking_delta":
            return Piece(thinks=True)
        case _:
            return None


def _text(said: Any) -> str:  # whatever stands there
    if not isinstance(said, str):
        raise EngineFault("malformed")
    return said


def _finish(reason: str | None) -> Finish | None:
    if reason is None:
        return None
    if reason == "model_context_window_exceeded":
        raise EngineFault("too_long")
    if reason not in _FINISH:  # refusal, pause_turn: what is there is not the answer
        raise EngineFault("withheld" if reason == "refusal" else "failed")
    return _FINISH[reason]


def _turns(messages: list[Message]) -> list[Json]:
    """Users' and the assistant's turns; several tools' results are one turn of the user's, and nobody says nothing."""
    turns: list[Json] = []
    results: list[Json] = []
    for message in messages:
        if message.role == "tool":
            if not results:
                turns.append({"role": "user", "content": results})
            results.append({"type": "tool_result", "tool_use_id": message.tool_call_id, "content": message.content})
            continue
        results = []
        if message.tool_calls:
            text: list[Json] = [{"type": "text", "text": message.content}] if message.content.strip() else []
            uses: list[Json] = [
                {"type": "tool_use", "id": c.id, "name": c.name, "input": _input(c.arguments)}
                for c in message.tool_calls
            ]
            turns.append({"role": "assistant", "content": [*text, *uses]})
        elif message.content.strip():
            turns.append({"role": message.role, "content": message.content})
    return turns


def _input(arguments: str) -> Json:
    """Arguments as it wrote them; what is no object is given back as none, since only objects are taken."""
    try:
        return loaded(arguments.encode())
    except EngineFault:
        return {}


def _told(body: bytes) -> tuple[str, str, str]:
    """The type of an error, its message, and the code of its details."""
    try:
        error = part_of(loaded(body).get("error"))
        return str(error.get("type")), str(error.get("message")), str(part_of(error.get("details")).get("error_code"))
    except EngineFault:
        return "", "", ""
