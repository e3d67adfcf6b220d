"""Owns which requests are usual in every respect: those are answered as the SDK would answer them, without its work. The rest is its own."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple, cast

import orjson
from mcp.server.runner import modern_error_data
from mcp.shared.inbound import ERROR_CODE_HTTP_STATUS, InboundModernRoute, classify_inbound_request
from mcp_types import CLIENT_CAPABILITIES_META_KEY, CLIENT_INFO_META_KEY, PROTOCOL_VERSION_META_KEY

from body_broker.calls import Json
from body_broker.tracing import TRACEPARENT, TRACESTATE
from mcp_servers.hub.requests import WAIT_META

Head = Mapping[bytes, bytes]

_JSON = b"application/json"
_ACCEPTED = frozenset({_JSON, b"application/json, text/event-stream", b"application/json,text/event-stream", b"*/*"})
_ENVELOPE = frozenset({"jsonrpc", "id", "method", "params"})
_PARAMETERS = frozenset({"_meta", "name", "arguments"})
# Nothing of these is the SDK's to act on, where no extension is declared.
_META = frozenset(
    {
        PROTOCOL_VERSION_META_KEY,
        CLIENT_INFO_META_KEY,
        CLIENT_CAPABILITIES_META_KEY,
        WAIT_META,
        TRACEPARENT,
        TRACESTATE,
    }
)
_ID_BITS = 53


class UsualCall(NamedTuple):
    """A tools/call that nothing but the gate has to read any further."""

    id: int | str
    name: str
    arguments: Json
    params: Mapping[str, Any]


def usual_list(head: Head, body: bytes) -> int | str | None:
    """The id of a tools/list that the SDK would answer without a word; None for whatever is unusual."""
    if head.get(b"content-type") != _JSON or _JSON not in head.get(b"accept", b"") or b'"progressToken"' in body:
        return None
    request = _usual(head, body)
    return request["id"] if request is not None and request["params"].keys() == {"_meta"} else None


def usual_call(head: Head, body: bytes, mirrored: Collection[str]) -> UsualCall | None:
    """A tools/call of the modern era that the SDK would hand on as it is and answer as one piece of JSON; None for whatever is unusual.

    Args:
        head: The headers, none of which came twice.
        body: The whole body.
        mirrored: Tools whose arguments stand in headers too, which are the SDK's to compare.
    """
    if head.get(b"content-type") != _JSON or head.get(b"accept") not in _ACCEPTED:
        return None
    request = _usual(head, body)
    if request is None or request["method"] != "tools/call" or not request["params"].keys() <= _PARAMETERS:
        return None
    params: dict[str, Any] = request["params"]
    name, arguments, meta = params.get("name"), params.get("arguments"), params["_meta"]
    capabilities = meta[CLIENT_CAPABILITIES_META_KEY]
    if not isinstance(capabilities, dict) or "extensions" in capabilities or not meta.keys() <= _META:
        return None
    if not isinstance(name, str) or name in mirrored or not (arguments is None or isinstance(arguments, dict)):
        return None
    return UsualCall(request["id"], name, cast("Json", arguments), params)


def _usual(head: Head, body: bytes) -> dict[str, Any] | None:
    """A request of the modern era whose envelope and headers agree."""
    try:
        found: Any = json.loads(body)  # as the SDK reads it: orjson differs in large numbers and in half characters
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, dict):
        return None
    request = cast("dict[str, Any]", found)
    if request.keys() != _ENVELOPE or request["jsonrpc"] != "2.0" or not _is_id(request["id"]):
        return None
    if not isinstance(request["params"], dict):
        return None
    headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in head.items()}
    return request if isinstance(classify_inbound_request(request, headers=headers), InboundModernRoute) else None


def _is_id(found: object) -> bool:
    # Half a character is not printable, and cannot be told again.
    return (type(found) is str and found.isprintable()) or (type(found) is int and found.bit_length() <= _ID_BITS)


def told(request_id: int | str, result: Mapping[str, Any]) -> bytes:
    """The answer with a result."""
    return _dumped({"jsonrpc": "2.0", "id": request_id, "result": result})


def failed(request_id: int | str, error: Exception) -> tuple[int, bytes]:
    """The status and the answer where a call ended with an exception: what the SDK tells of it."""
    data = modern_error_data(error)
    body = {"jsonrpc": "2.0", "id": request_id, "error": data.model_dump(mode="json", by_alias=True, exclude_none=True)}
    return ERROR_CODE_HTTP_STATUS.get(data.code, 200), _dumped(body)


def _dumped(body: Mapping[str, Any]) -> bytes:
    try:
        return orjson.dumps(body)
    except TypeError:  # a number that is too large for it, or half a character
        return json.dumps(body, separators=(",", ":")).encode()
