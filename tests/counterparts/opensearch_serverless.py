"""Owns a door before a real OpenSearch that behaves as Amazon's services do: it checks signatures, and as Serverless it refuses what
that refuses, knows a new index only after a while, and has another engine than the node behind it.

Written from AWS' pages on Serverless' operations and on SigV4, not from our client: what it lets through is what the service takes.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from base64 import b64encode
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import quote

import aiohttp
import orjson
from aiohttp import web

_CREDENTIAL = re.compile(
    r"AWS4-HMAC-SHA256 Credential=([^/]+)/(\d{8})/([^/]+)/([^/]+)/aws4_request, ?SignedHeaders=([^,]+), ?Signature=(\w+)"
)
_OPERATIONS = {
    "PUT": re.compile(r"/[a-z][a-z0-9-]*"),
    "GET": re.compile(r"/[a-z][a-z0-9-]*/_mapping"),
    "POST": re.compile(r"/[a-z][a-z0-9-]*/(_search|_bulk)"),
    "DELETE": re.compile(r"/[a-z][a-z0-9-]*"),
}
_SETTINGS = {"knn", "knn.algo_param.ef_search", "analysis"}
_LOOKS_UNTIL_KNOWN = 3


@dataclass
class Door:
    """What it asks for, and what it has seen.

    Attributes:
        node: The URL of the node behind it.
        service: `aoss` is Serverless, `es` the managed service, `basic` an OpenSearch with a user.
        key: The access key or user it knows, and its secret.
        region: The one it stands in.
        refused: What it refused, with the reason.
        passed: How many requests it let through.
        token: The session token that must come along, if any.
    """

    node: str
    service: Literal["aoss", "es", "basic"]
    key: tuple[str, str]
    region: str = "eu-central-1"
    token: str | None = None
    refused: list[str] = field(default_factory=list[str])
    passed: int = 0
    url: str = ""
    _looks: dict[str, int] = field(default_factory=dict[str, int])

    async def answer(self, request: web.Request) -> web.Response:
        """One request."""
        body = await request.read()
        reason = self._stranger(request, body)
        if reason is not None:
            return self._refuse(request, 401 if self.service == "basic" else 403, "security_exception", reason)
        if self.service == "aoss":
            if refused := self._unsupported(request, body):
                return self._refuse(request, refused[0], "illegal_argument_exception", refused[1])
            if self._is_unknown_yet(request):
                return web.json_response(_error("index_not_found_exception", "no such index"), status=404)
            if request.method == "PUT":
                body = body.replace(b'"engine":"faiss"', b'"engine":"lucene"')
        self.passed += 1
        async with (
            aiohttp.ClientSession() as session,
            session.request(
                request.method,
                f"{self.node}{request.path_qs}",
                data=body,
                headers={"content-type": request.headers.get("content-type", "application/json")},
            ) as said,
        ):
            return web.Response(body=await said.read(), status=said.status, content_type=said.content_type)

    def _refuse(self, request: web.Request, status: int, kind: str, reason: str) -> web.Response:
        self.refused.append(f"{request.method} {request.path_qs}: {reason}")
        return web.json_response(_error(kind, reason), status=status)

    def _unsupported(self, request: web.Request, body: bytes) -> tuple[int, str] | None:  # noqa: PLR0911  # one line a rule
        allowed = _OPERATIONS.get(request.method)
        if allowed is None or not allowed.fullmatch(request.path):
            return 404, "no such operation"
        if "refresh" in request.query:
            return 400, "refresh is not supported"
        if request.path.endswith("_bulk"):
            if any(
                "_id" in action[verb]
                for action in map(orjson.loads, body.splitlines())
                for verb in ("index", "create", "update")
                if isinstance(action.get(verb), dict)
            ):
                return 400, "Document ID is not supported in create/index operation request"
        elif request.method == "PUT":
            made = orjson.loads(body)
            if not set(made["settings"]["index"]) <= _SETTINGS:
                return 400, "unknown setting"
            engines = re.findall(rb'"engine":"(\w+)"', body)
            if set(engines) - {b"faiss"}:
                return 400, "only the engine faiss is supported"
            if "_source" in made["mappings"]:
                return 400, "_source is not supported"
        return None

    def _is_unknown_yet(self, request: web.Request) -> bool:
        index = request.path.split("/")[1]
        if request.method == "PUT":
            self._looks[index] = 0
        elif self._looks.get(index, _LOOKS_UNTIL_KNOWN) < _LOOKS_UNTIL_KNOWN:
            self._looks[index] += 1
            return True
        return False

    def _stranger(self, request: web.Request, body: bytes) -> str | None:
        """Why a request's signature does not hold, or its user is not known."""
        if self.service == "basic":
            given = request.headers.get("authorization", "")
            return None if given == f"Basic {b64encode(':'.join(self.key).encode()).decode()}" else "unknown user"
        found = _CREDENTIAL.fullmatch(request.headers.get("authorization", ""))
        if found is None:
            return "not signed"
        key, day, region, service, names, signature = found.groups()
        if (key, region, service) != (self.key[0], self.region, self.service):
            return f"signed for {key} {region} {service}"
        signed = names.split(";")
        payload = hashlib.sha256(body).hexdigest()
        hashed = request.headers.get("x-amz-content-sha256") == payload and "x-amz-content-sha256" in signed
        came = "host" in signed and request.headers.get("x-amz-security-token") == self.token
        if not came or (self.service == "aoss" and not hashed):
            return "the host, the token or the payload is not signed"
        query = "&".join(
            f"{quote(name, safe='-_.~')}={quote(value, safe='-_.~')}" for name, value in sorted(request.query.items())
        )
        headers = "".join(f"{name}:{' '.join(request.headers[name].split())}\n" for name in signed)
        canonical = "\n".join([request.method, quote(request.path, safe="/-_.~"), query, headers, names, payload])
        scope = f"{day}/{region}/{service}/aws4_request"
        stamp = request.headers["x-amz-date"]
        text = "\n".join(["AWS4-HMAC-SHA256", stamp, scope, hashlib.sha256(canonical.encode()).hexdigest()])
        secret = f"AWS4{self.key[1]}".encode()
        for part in (day, region, service, "aws4_request"):
            secret = hmac.digest(secret, part.encode(), "sha256")
        return (
            None if hmac.digest(secret, text.encode(), "sha256").hex() == signature else "the signature does not hold"
        )


def _error(kind: str, reason: str) -> dict[str, Any]:
    return {"error": {"type": kind, "reason": reason, "root_cause": []}, "status": 400}


@asynccontextmanager
async def open_door(door: Door) -> AsyncGenerator[Door]:
    """The door, open on a free port."""
    app = web.Application(client_max_size=16 * 1024**2)
    app.router.add_route("*", "/{path:.*}", door.answer)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        door.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        yield door
    finally:
        await runner.cleanup()
