"""Owns how each dialect writes an answer: as a whole, and as server-sent events.

It imports nothing of ours.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from tests.counterparts.faultwall.replies import DialectName, Json, Reply, table

_FILTERS = {"hate": {"filtered": False, "severity": "safe"}}
_STOPS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use", "content_filter": "refusal"}


@dataclass(frozen=True, slots=True)
class Event:
    """One event: its name where the dialect names them, its data, and whether it carries a token or ends the answer."""

    data: str
    name: str | None = None
    token: bool = False
    closing: bool = False

    def written(self, ends: str = "\n") -> bytes:
        """As bytes on the wire."""
        named = f"event: {self.name}{ends}" if self.name else ""
        return f"{named}data: {self.data}{ends}{ends}".encode()


def usage_of(reply: Reply, body: Json) -> tuple[int, int, int]:
    """Tokens: words, where the reply does not say."""
    if reply.usage is not None:
        return reply.usage
    return len(json.dumps(body.get("messages", ())).split()), max(1, len(reply.parts()) + 4 * len(reply.calls)), 0


def finish_of(dialect: DialectName, reply: Reply, body: Json) -> str:
    """The finish reason in OpenAI's words. Where one tool was named, OpenAI and vLLM finish with stop."""
    if reply.finish is not None:
        return reply.finish
    named = isinstance(body.get("tool_choice"), dict) and dialect != "anthropic"
    return "tool_calls" if reply.calls and not named else "stop"


def whole(dialect: DialectName, reply: Reply, body: Json) -> Json:
    """An answer in one piece."""
    text, finish = "".join(reply.parts()), finish_of(dialect, reply, body)
    prompt, completion, cached = usage_of(reply, body)
    if dialect == "anthropic":
        blocks: list[Json] = [{"type": "text", "text": text}] if text else []
        for place, call in enumerate(reply.calls):
            blocks.append(
                {"type": "tool_use", "id": f"toolu_{place}", "name": call.name, "input": json.loads(call.written())}
            )
        usage = {"input_tokens": prompt - cached, "cache_read_input_tokens": cached, "output_tokens": completion}
        return _message(body) | {"content": blocks, "stop_reason": _stop(finish), "usage": usage}
    calls = [_called(place, call.name, call.written()) for place, call in enumerate(reply.calls)]
    message: Json = {"role": "assistant", "content": text or None} | ({"tool_calls": calls} if calls else {})
    choice: Json = {"index": 0, "message": message, "finish_reason": finish, "logprobs": None}
    if dialect == "azure":
        choice["content_filter_results"] = _FILTERS
    answer: Json = _head(body, "chat.completion") | {"choices": [choice]}
    return answer | ({"usage": _usage(prompt, completion, cached)} if reply.counted else {})


def events(dialect: DialectName, reply: Reply, body: Json) -> list[Event]:
    """An answer as events, whole and in order."""
    return _messages(reply, body) if dialect == "anthropic" else _chunks(dialect, reply, body)


def error_event(dialect: DialectName) -> Event:
    """An error in the middle of a stream, as each dialect tells it."""
    match dialect:
        case "anthropic":
            return Event(
                json.dumps({"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}), "error"
            )
        case "trtllm":
            return Event(
                json.dumps({"object": "error", "message": "Internal", "type": "InternalServerError", "code": 500})
            )
        case "vllm":
            error: Json = {"message": "Internal", "type": "InternalServerError", "param": None, "code": 500}
            return Event(json.dumps({"error": error}))
        case _:
            error = {"message": "The server had an error.", "type": "server_error", "param": None, "code": None}
            return Event(json.dumps({"error": error}))


def _chunks(dialect: DialectName, reply: Reply, body: Json) -> list[Event]:
    head = _head(body, "chat.completion.chunk")
    found: list[Event] = []
    if dialect == "azure":
        found.append(_event(head | {"choices": [], "prompt_filter_results": [{"content_filter_results": _FILTERS}]}))
    found.append(_event(head | {"choices": [_choice({"role": "assistant", "content": ""})]}))
    for piece in reply.parts():
        choice = _choice({"content": piece}) | ({"content_filter_results": _FILTERS} if dialect == "azure" else {})
        found.append(_event(head | {"choices": [choice]}, token=True))
    for place, call in enumerate(reply.calls):
        said = call.written()
        start = {"index": place} | _called(place, call.name, "")
        found.append(_event(head | {"choices": [_choice({"tool_calls": [start]})]}, token=True))
        for part in (said[: len(said) // 2], said[len(said) // 2 :]):
            delta: Json = {"tool_calls": [{"index": place, "function": {"arguments": part}}]}
            found.append(_event(head | {"choices": [_choice(delta)]}, token=True))
    found.append(_event(head | {"choices": [_choice({}, finish_of(dialect, reply, body))]}, closing=True))
    if reply.counted and table(body.get("stream_options")).get("include_usage"):
        found.append(_event(head | {"choices": [], "usage": _usage(*usage_of(reply, body))}, closing=True))
    return [*found, Event("[DONE]", closing=True)]


def _messages(reply: Reply, body: Json) -> list[Event]:
    prompt, completion, cached = usage_of(reply, body)
    counts = {"input_tokens": prompt - cached, "cache_read_input_tokens": cached, "output_tokens": 1}
    begun: Json = _message(body) | {"content": [], "stop_reason": None, "usage": counts if reply.counted else {}}
    found = [_typed("message_start", message=begun), _typed("ping")]
    place = 0
    if reply.parts():
        found.append(_typed("content_block_start", index=0, content_block={"type": "text", "text": ""}))
        found += [
            _typed("content_block_delta", token=True, index=0, delta={"type": "text_delta", "text": piece})
            for piece in reply.parts()
        ]
        found.append(_typed("content_block_stop", index=0))
        place = 1
    for at, call in enumerate(reply.calls, place):
        block: Json = {"type": "tool_use", "id": f"toolu_{at}", "name": call.name, "input": {}}
        found.append(_typed("content_block_start", token=True, index=at, content_block=block))
        said = call.written()
        found += [
            _typed(
                "content_block_delta", token=True, index=at, delta={"type": "input_json_delta", "partial_json": part}
            )
            for part in ("", said[: len(said) // 2], said[len(said) // 2 :])
        ]
        found.append(_typed("content_block_stop", index=at))
    delta = {"stop_reason": _stop(finish_of("anthropic", reply, body)), "stop_sequence": None}
    usage: Json = {"usage": {"output_tokens": completion}} if reply.counted else {}
    return [*found, _typed("message_delta", closing=True, delta=delta, **usage), _typed("message_stop", closing=True)]


def _event(data: Json, *, token: bool = False, closing: bool = False) -> Event:
    return Event(json.dumps(data, ensure_ascii=False), token=token, closing=closing)


def _typed(kind: str, *, token: bool = False, closing: bool = False, **more: Any) -> Event:  # fields of the event
    return Event(json.dumps({"type": kind, **more}, ensure_ascii=False), kind, token, closing)


def _stop(finish: str) -> str:
    return _STOPS.get(finish, finish)


def _head(body: Json, kind: str) -> Json:
    return {"id": "chatcmpl-wall", "object": kind, "created": 1_790_000_000, "model": body["model"]}


def _message(body: Json) -> Json:
    return {"id": "msg_wall", "type": "message", "role": "assistant", "model": body["model"], "stop_sequence": None}


def _choice(delta: Json, finish: str | None = None) -> Json:
    return {"index": 0, "delta": delta, "finish_reason": finish, "logprobs": None}


def _called(place: int, name: str, arguments: str) -> Json:
    return {"id": f"call_{place}", "type": "function", "function": {"name": name, "arguments": arguments}}


def _usage(prompt: int, completion: int, cached: int) -> Json:
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": cached},
    }
