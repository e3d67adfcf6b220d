"""Owns requests that are nearly right: JSON-RPC and HTTP, mutated from a seed."""

from __future__ import annotations

import copy
import json
import random
from typing import Any, NamedTuple, cast

from tests.mcp_servers.hub.test_gate import request

_METHODS = (
    "tools/call", "tools/list", "resources/list", "resources/templates/list", "resources/read", "prompts/list", "prompts/get",
    "completion/complete", "logging/setLevel", "initialize", "notifications/initialized", "notifications/cancelled", "ping",
    "server/discover", "tasks/get", "tasks/cancel", "tasks/update", "nothing/of/the/sort", "", "rpc.discover", "tools/call\n",
)  # fmt: skip
_PARAMS: tuple[Any, ...] = (
    {"name": "fx_echo", "arguments": {"text": "a"}}, {"name": "fx_echo"}, {"name": 7, "arguments": []}, {"name": "nobody"}, {},
    {"uri": "hub://models"}, {"uri": "game://npc/x"}, {"uri": "http://["}, {"uri": 7}, {"name": "fx_greet", "arguments": {"who": "a"}},
    {"ref": {"type": "ref/prompt", "name": "fx_greet"}, "argument": {"name": "who", "value": "a"}}, {"level": "debug"}, {"level": "x"},
    {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "f", "version": "1"}}, {"protocolVersion": 7},
    {"cursor": "x"}, {"taskId": "job_x"}, {"taskId": "apr_0000"}, {"requestId": 1}, [], "text", 7, None, True,
)  # fmt: skip
_ODD: tuple[Any, ...] = (
    None, True, False, 0, -1, 1.5, 10**30, 2**53, "", "x" * 5000, "\x00", "\u202e", [], {}, [[]], {"": {}}, "\ud800", "NaN", -0.0, 1e308,
)  # fmt: skip
_LITERALS = (
    b"NaN", b"Infinity", b"-Infinity", b"1e999", b"9" * 5000, b"-" + b"9" * 500, b"\xff\xfe", b"\\ud800", b'"\\u0000"', b"0x10", b"'a'",
    b"[" * 3000, b'{"a":' * 3000, b"\x00", b"//", b",", b'{"jsonrpc":"2.0","jsonrpc":"1.0"}', b'"id":1,"id":2,', b"\xed\xa0\x80", b"\xf0\x9f",
)  # fmt: skip
_VERSIONS = (
    "2026-07-28",
    "2025-11-25",
    "2025-06-18",
    "2024-11-05",
    "1.0",
    "",
    "2099-01-01",
    "x" * 200,
    "2026-07-28, 2025-11-25",
)
_HEADERS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("mcp-protocol-version", _VERSIONS),
    ("mcp-method", ("tools/call", "tools/list", "nothing", "", "x" * 3000, "=?utf-8?b?eA==?=", "\xe9")),
    ("mcp-name", ("fx_echo", "whoami", "", "\xff\xfe", "=?base64?eA==?=", "=?base64?%%%?=", "x" * 3000, "../..")),
    ("mcp-session-id", ("x", "0" * 32, "", "\x7f" * 3, "cnv_somebody_elses", "x" * 5000)),
    ("last-event-id", ("0", "x", "-1", "9" * 50, "../../etc/passwd")),
    ("content-type", ("application/json", "text/plain", "application/json; charset=utf-16", "", "multipart/form-data", "x/\xff")),
    ("accept", ("application/json", "text/event-stream", "*/*", "", "text/html", "application/json;q=0", "x" * 3000, "a/b;q=x")),
    ("content-encoding", ("gzip", "identity", "br")),
    ("origin", ("http://127.0.0.1", "http://[", "null", "https://evil.example", "http://[::1", "http://127.0.0.1:x", "\xff")),
    ("authorization", ("", "Bearer", "Bearer x", "Basic eDp5", "Bearer a.b.c", "bearer \xff", "Bearer " + "x." * 2000)),
    ("traceparent", ("00-" + "0" * 32 + "-" + "0" * 16 + "-01", "x", "00-" + "f" * 32 + "-" + "f" * 16 + "-zz", "\xff", "-" * 500)),
    ("tracestate", ("a=b", "=" * 600, "\xff")),
    ("baggage", ("a=b;c", "%" * 300)),
    ("x-forwarded-for", ("127.0.0.1",)),
    ("expect", ("100-continue", "200-ok")),
    ("cookie", ("a=b", ";" * 500, "\xff=\xff")),
    ("range", ("bytes=0-1",)),
)  # fmt: skip
_LINES = (
    "GET /mcp", "DELETE /mcp", "PUT /mcp", "OPTIONS /mcp", "HEAD /mcp", "PATCH /mcp", "POST /mcp/", "POST //mcp", "POST /mcp?x=%ff",
    "POST /%6dcp", "GET /", "GET /healthz", "GET /readyz", "GET /metrics", "POST /metrics", "GET /%00", "GET /%ff", "GET /..%2f..%2fetc/passwd",
    "POST /v1/chat/completions", "POST /v1/responses", "GET /v1/models", "GET /approvals", "POST /approvals/x", "GET /approvals/%ff",
    "GET /login", "POST /login", "GET /.well-known/oauth-protected-resource", "GET /.well-known/%2e%2e", "GET /mcp#x", "TRACE /mcp", "GET *",
)  # fmt: skip


class Sent(NamedTuple):
    """One request, well-delimited: its end is where its length says."""

    data: bytes
    alike: bool
    """Whether it is a POST to /mcp with a token that is good."""


class Mutating:
    """Draws requests.

    Args:
        host: What the Host header says.
        token: A good one.
        chance: Whose seed is the fuzzer's.
    """

    def __init__(self, host: str, token: str, chance: random.Random) -> None:
        self._host, self._token, self._chance = host, token, chance

    def request(self) -> Sent:
        """One request."""
        chance = self._chance
        body = self.body()
        headers: list[tuple[str, str]] = [
            ("host", self._host),
            ("authorization", f"Bearer {self._token}"),
            ("content-type", "application/json"),
            ("accept", chance.choice(("application/json", "application/json, text/event-stream"))),
            ("mcp-protocol-version", chance.choice(_VERSIONS[:2])),
            ("mcp-method", self._method),
            *((("mcp-name", "fx_echo"),) if chance.random() < 0.5 else ()),
        ]
        changed: set[str] = set()
        for _ in range(chance.choice((0, 0, 1, 1, 2, 4))):
            name, values = chance.choice(_HEADERS)
            changed.add(name)
            match chance.choice(("set", "drop", "twice")):
                case "set":
                    headers = [(n, v) for n, v in headers if n != name] + [(name, chance.choice(values))]
                case "drop":
                    headers = [(n, v) for n, v in headers if n != name]
                case _:
                    headers.append((name, chance.choice(values)))
        line = chance.choice(_LINES) if chance.random() < 0.2 else "POST /mcp"
        if chance.random() < 0.2:
            headers.append(("transfer-encoding", "chunked"))
            tail = self._chunked(body)
        else:
            headers.append(("content-length", str(len(body))))
            tail = body
        text = f"{line} HTTP/1.1\r\n" + "".join(f"{n}: {v}\r\n" for n, v in headers) + "\r\n"
        alike = line == "POST /mcp" and changed.isdisjoint({"authorization", "origin"})
        return Sent(text.encode("latin-1") + tail, alike)

    def body(self) -> bytes:
        """A message, mutated."""
        chance = self._chance
        self._method = chance.choice(_METHODS) if chance.random() < 0.6 else "tools/call"
        params: Any = copy.deepcopy(chance.choice(_PARAMS))
        given = cast("dict[str, object]", params) if isinstance(params, dict) else {}
        message: dict[str, Any] = request(self._method, given)
        if not isinstance(params, dict) or chance.random() < 0.2:
            message["params"] = params
        self._method = self._method.strip()
        for _ in range(chance.choice((0, 0, 1, 2))):
            self._odd(message)
        whole: Any = (
            chance.choice(([message], [message, message], [], [[message]])) if chance.random() < 0.05 else message
        )
        data = json.dumps(whole).encode()
        for _ in range(chance.choice((0, 0, 0, 1, 3))):
            data = self._bytes(data)
        return data

    def _odd(self, message: dict[str, Any]) -> None:
        at: dict[str, Any] = message
        while self._chance.random() < 0.5:
            inner = [cast("dict[str, Any]", v) for v in at.values() if isinstance(v, dict) and v]
            if not inner:
                break
            at = self._chance.choice(inner)
        name = self._chance.choice([*at, "id", "more"])
        if self._chance.random() < 0.3:
            at.pop(name, None)
        else:
            at[name] = copy.deepcopy(self._chance.choice(_ODD))

    def _bytes(self, data: bytes) -> bytes:
        chance = self._chance
        at = chance.randrange(len(data) + 1)
        match chance.choice(("flip", "cut", "insert", "double", "replace")):
            case "flip":
                return data[:at] + bytes([chance.randrange(256)]) + data[at + 1 :]
            case "cut":
                return data[:at]
            case "insert":
                return data[:at] + chance.choice(_LITERALS) + data[at:]
            case "double":
                return data[:at] + data
            case _:
                return chance.choice(_LITERALS)

    def _chunked(self, body: bytes) -> bytes:
        parts: list[bytes] = []
        while body:
            size = self._chance.randint(1, 400)
            part, body = body[:size], body[size:]
            parts.append(b"%x\r\n%b\r\n" % (len(part), part))
        return b"".join(parts) + b"0\r\n\r\n"

    def broken(self) -> bytes:
        """A request of which no end can be told: HTTP itself is wrong."""
        data = self.request().data
        chance = self._chance
        for _ in range(chance.randint(1, 4)):
            at = chance.randrange(min(len(data), 400))
            match chance.choice(("flip", "cut", "length", "size", "both", "bare")):
                case "flip":
                    data = data[:at] + bytes([chance.randrange(256)]) + data[at + 1 :]
                case "cut":
                    data = data[: at + 1]
                case "length":
                    odd = chance.choice((b"-1", b"abc", b"9" * 40, b"1, 2", b"0x10", b"+5", b""))
                    data = data.replace(b"content-length: ", b"content-length: " + odd, 1)
                case "size":
                    data = data.replace(
                        b"\r\n\r\n", b"\r\n\r\n" + chance.choice((b"ffffffffffffffffff\r\n", b"zz\r\n", b"-1\r\n")), 1
                    )
                case "both":
                    data = data.replace(b"\r\n\r\n", b"\r\ntransfer-encoding: chunked\r\ncontent-length: 5\r\n\r\n", 1)
                case _:
                    data = data.replace(b"\r\n", b"\n", chance.randint(1, 3))
        return data
