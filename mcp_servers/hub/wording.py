"""Owns the words of the SDK's own refusals: what its validation says of a message is an exception's text, which leaves this hub nowhere."""

from __future__ import annotations

from typing import Any, cast

import orjson
from mcp_types import INVALID_PARAMS, INVALID_REQUEST
from starlette.types import Message, Send

_BAD_REQUEST = 400
_SAYS = b"alidation error"


def reworded(send: Send) -> Send:
    """`send`, but for answers in which the SDK tells what its validation raised: they say that it is no message, and no more."""
    start: Message | None = None
    body = bytearray()

    async def sending(message: Message) -> None:
        nonlocal start
        if message["type"] == "http.response.start" and message["status"] == _BAD_REQUEST:
            start = message
        elif start is None:
            await send(message)
        else:
            body.extend(message.get("body", b""))
            if message.get("more_body"):
                return
            told = _plainly(bytes(body))
            headers = [(k, b"%d" % len(told) if k == b"content-length" else v) for k, v in start["headers"]]
            await send({**start, "headers": headers})
            await send({"type": "http.response.body", "body": told})

    return sending


def _plainly(body: bytes) -> bytes:
    if _SAYS not in body:
        return body
    try:
        found: Any = orjson.loads(body)
        error = cast("dict[str, Any]", found["error"])
        code, request_id = error["code"], found.get("id")
    except (ValueError, TypeError, KeyError):
        return b"{}"
    if code == INVALID_PARAMS and request_id is None:  # what has no id was not even read as a request
        code = INVALID_REQUEST
    message = "bad_input: The message is not a request of JSON-RPC 2.0 and MCP. Send an object with jsonrpc, id, method and params."
    return orjson.dumps({"jsonrpc": "2.0", "id": request_id, "error": {"code": code, "message": message}})
