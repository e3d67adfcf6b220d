"""Owns which requests are usual in every respect: those are answered as the SDK would answer them, without its work. The rest is its own."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple, Protocol, cast

import orjson
from mcp.server.runner import modern_error_data
from mcp.shared.inbound import ERROR_CODE_HTTP_STATUS, InboundModernRoute, classify_inbound_request
from mcp_types import (
    CLIENT_CAPABILITIES_META_KEY,
    CLIENT_INFO_META_KEY,
    PROTOCOL_VERSION_META_KEY,
    JSONRPCError,
    JSONRPCResponse,
)
from mcp_types.methods import validate_client_request

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


class UsualList(NamedTuple):
    """A tools/list that asks for nothing but the tools."""

    id: int | str
    params: Mapping[str, Any]


class Refusable(Protocol):
    """What hears how a request ended."""

    def refused(self, code: int) -> None:
        """It is answered with an error of JSON-RPC."""
        ...


def usual(head: Head, body: bytes, mirrored: Collection[str]) -> UsualCall | UsualList | None:
    """A request of the modern era that the SDK would only hand on, to be answered as one piece of JSON; None for whatever is unusual.

    Args:
        head: The headers, none of which came twice.
        body: The whole body.
        mirrored: Tools whose arguments stand in headers too, which are the SDK's to compare.
    """
    if head.get(b"content-type") != _JSON or head.get(b"accept") not in _ACCEPTED:
        return None
    if (read := _READ.get(head.get(b"mcp-method", b""))) is None or (request := _request(head, body)) is None:
        return None
    return read(request["id"], request["params"], mirrored)


def _call(id_: int | str, params: dict[str, Any], mirrored: Collection[str]) -> UsualCall | None:
    name, arguments, meta = params.get("name"), params.get("arguments"), params["_meta"]
    capabilities = meta[CLIENT_CAPABILITIES_META_KEY]
    if not isinstance(capabilities, dict) or "extensions" in capabilities:
        return None
    if not params.keys() <= _PARAMETERS or not meta.keys() <= _META:
        return None
    if not isinstance(name, str) or name in mirrored or not (arguments is None or isinstance(arguments, dict)):
        return None
    return UsualCall(id_, name, cast("Json", arguments), params)


def _list(id_: int | str, params: dict[str, Any], _mirrored: Collection[str]) -> UsualList | None:
    if params.keys() != {"_meta"}:
        return None
    try:
        validate_client_request("tools/list", params["_meta"][PROTOCOL_VERSION_META_KEY], params)
    except ValueError:  # the SDK says what is wrong with it
        return None
    return UsualList(id_, params)


_READ = {b"tools/call": _call, b"tools/list": _list}


def _request(head: Head, body: bytes) -> dict[str, Any] | None:
    """A request whose envelope and headers agree."""
    try:
        found: Any = json.loads(body)  # as the SDK reads it: orjson differs in large numbers and in half characters
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, dict):
        return None
    request = cast("dict[str, Any]", found)
    if request.keys() != _ENVELOPE or request["jsonrpc"] != "2.0" or not _is_id(request["id"]):
        return None
    headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in head.items()}
    return request if isinstance(classify_inbound_request(request, headers=headers), InboundModernRoute) else None


def _is_id(found: object) -> bool:
    # Half a character is not printable, and cannot be told again.
    return (type(found) is str and found.isprintable()) or (type(found) is int and found.bit_length() <= _ID_BITS)


def told(request_id: int | str, result: Mapping[str, Any]) -> bytes:
    """The answer with a result."""
    try:
        return orjson.dumps({"jsonrpc": "2.0", "id": request_id, "result": result})
    except TypeError:  # a number that is too large for it, or half a character
        return _as_the_sdk(JSONRPCResponse(jsonrpc="2.0", id=request_id, result=dict(result)))


def listed(request_id: int | str, tools: bytes, meta: Mapping[str, Any]) -> bytes:
    """The answer with a result that was written before, all but its `_meta`."""
    id_, last = orjson.dumps(request_id), orjson.dumps(meta)
    return b'{"jsonrpc":"2.0","id":%b,"result":%b,"_meta":%b}}' % (id_, tools[:-1], last)


def failed(request_id: int | str, error: Exception, seen: Refusable) -> tuple[int, bytes]:
    """The status and the answer where a call ended with an exception: what the SDK tells of it; its code is told to `seen`."""
    data = modern_error_data(error)
    seen.refused(data.code)
    return ERROR_CODE_HTTP_STATUS.get(data.code, 200), _as_the_sdk(
        JSONRPCError(jsonrpc="2.0", id=request_id, error=data)
    )


def _as_the_sdk(message: JSONRPCResponse | JSONRPCError) -> bytes:
    return json.dumps(message.model_dump(mode="json", by_alias=True, exclude_none=True), separators=(",", ":")).encode()
