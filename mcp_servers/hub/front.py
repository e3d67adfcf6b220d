"""Owns the ASGI front: Host, Origin and token on every route, then JSON or SSE for /mcp, request by request."""

from __future__ import annotations

import typing
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, nullcontext
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import orjson
from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
from mcp.server.transport_security import TransportSecuritySettings
from starlette.types import Message, Receive, Scope, Send

from body_broker.calls import Caller, Operation, Room
from body_broker.errors import (
    BodyBrokerError,
    Draining,
    MisdirectedRequest,
    NotFound,
    RateLimited,
    TooLarge,
    Unauthenticated,
    WireError,
    on_the_wire,
)
from mcp_servers.hub.exchange import ClientLeft, cancelled_if_left, read_body
from mcp_servers.hub.identity import Identities
from mcp_servers.hub.protocol import CALLER, Protocol
from mcp_servers.hub.requests import WAIT_META
from mcp_servers.hub.tracing import arriving
from mcp_servers.hub.usual import UsualCall, UsualList, usual
from mcp_servers.hub.wording import reworded

LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
_LISTEN, _WAIT = b"subscriptions/listen", WAIT_META.encode()
_SILENT_MAX_S = 45.0
"""How long a call may say nothing: proxies commonly cut what is silent for a minute, and a stream has pings."""
CHALLENGE = b'Bearer realm="body-broker", error="invalid_token"'


@dataclass(frozen=True, slots=True)
class Page:
    """What a plain route answers."""

    status: int
    body: bytes
    content_type: bytes = b"application/json"


@dataclass(frozen=True, slots=True)
class Route:
    """A plain GET route. `needs_identity` is False only for the probes, which tell nothing but up or down, and where the OIDC issuer is."""

    answer: Callable[[Caller | None], Awaitable[Page]]
    needs_identity: bool = True


class Site(typing.Protocol):
    """People's pages, which know people by a login of their own."""

    @property
    def paths(self) -> frozenset[str]:
        """Every path of theirs; {} stands for one segment."""
        ...

    def takes(self, path: str) -> bool:
        """Whether a path is theirs."""
        ...

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request, whose Host and Origin were checked; raises BodyBrokerError."""
        ...


@dataclass(frozen=True, slots=True)
class Hosts:
    """The names this hub answers to; a request for any other is a DNS-rebinding attempt or a missing setting."""

    names: frozenset[str]

    @classmethod
    def of(cls, *, bind_host: str, public_url: str | None, allowed_hosts: tuple[str, ...]) -> Hosts:
        """Loopback names, the bound address unless it is a wildcard, the public URL's host, and the listed ones."""
        names = {*LOOPBACK, *(h.lower() for h in allowed_hosts)}
        if bind_host not in {"0.0.0.0", "::", ""}:  # noqa: S104 - a comparison, not a bind
            names.add(f"[{bind_host}]" if ":" in bind_host else bind_host.lower())
        if public_url and (netloc := urlsplit(public_url).netloc):
            names.add(netloc.lower())
        return cls(frozenset(names))

    def allows(self, host: str) -> bool:
        """Whether a Host header's value is ours: the listed name with any port, or the listed name and port."""
        host = host.lower()
        name = host if host.endswith("]") else host.rpartition(":")[0] or host
        return host in self.names or (name in self.names and _is_port(host[len(name) + 1 :]))

    def _is_ours(self, origin: str) -> bool:
        """Whether an Origin header's value is a page of ours."""
        try:
            parts = urlsplit(origin)
        except ValueError:  # brackets that are no address
            return False
        return parts.scheme in {"http", "https"} and self.allows(parts.netloc)

    def check(
        self, headers: list[tuple[bytes, bytes]], head: Mapping[bytes, bytes], refused: Callable[[str], None]
    ) -> None:
        """Refuse a request for another host, or from another site's page.

        Args:
            headers: As they came, in which a second Host would show.
            head: The same by name.
            refused: Told which of the two it was.

        Raises:
            MisdirectedRequest: It is one.
        """
        host = head.get(b"host", b"").decode("latin-1")
        if not self.allows(host) or sum(k == b"host" for k, _ in headers) != 1:
            refused("host")
            raise MisdirectedRequest("The Host header is not one this hub answers to.")
        if (origin := head.get(b"origin")) is not None and not self._is_ours(origin.decode("latin-1")):
            refused("origin")
            raise _ForeignOrigin("The Origin header is not one this hub answers to.")


def _is_port(text: str) -> bool:
    return text == "" or (text.isascii() and text.isdigit())


class Api(typing.Protocol):
    """Routes with a body and a token that are not MCP; each goes through the gate."""

    @property
    def paths(self) -> frozenset[str]:
        """Every path of it; {} stands for one segment."""
        ...

    def takes(self, path: str) -> bool:
        """Whether a path is its."""
        ...

    def told(self, path: str, told: WireError) -> tuple[int, dict[str, Any]] | None:
        """An error in the form that the clients of a path know; None where that is the hub's own."""
        ...

    async def __call__(self, caller: Caller, scope: Scope, receive: Receive, send: Send) -> None:
        """One request, whose Host, Origin and token were checked; raises BodyBrokerError."""
        ...


class Front:
    """The hub's ASGI application.

    Args:
        protocol: Answers MCP.
        identities: Checks tokens.
        hosts: The names answered to.
        routes: Plain routes by path, beside /mcp.
        site: People's pages, which need no token.
        api: Routes that are not MCP.
        request_bytes_max: Size of one body.
        approval_wait_s: How long a call may wait for people.
        challenge: What a 401 asks for.
    """

    def __init__(
        self,
        protocol: Protocol,
        identities: Identities,
        hosts: Hosts,
        routes: Mapping[str, Route],
        *,
        request_bytes_max: int,
        site: Site | None = None,
        api: Api | None = None,
        challenge: bytes = CHALLENGE,
        approval_wait_s: float = 0.0,
    ) -> None:
        self.protocol, self.routes, self.site, self.api = protocol, routes, site, api
        self._identities, self._hosts = identities, hosts
        self._metrics = protocol.gate.metrics
        self._bytes_max, self._challenge = request_bytes_max, challenge
        ours = TransportSecuritySettings(enable_dns_rebinding_protection=False)  # checked here, for every route
        self._plain, self._stream = (
            StreamableHTTPSessionManager(
                protocol.server,
                json_response=as_json,
                stateless=True,
                security_settings=ours,
                max_request_body_size=request_bytes_max,
            )
            for as_json in (True, False)
        )
        self._waits = approval_wait_s > _SILENT_MAX_S
        self._streamed: frozenset[bytes] = frozenset()
        self._streamed_of: tuple[Room, ...] = ()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One ASGI event stream: a request, or the application's lifespan."""
        if scope["type"] == "lifespan":
            await self._lifespan(receive, send)
        elif scope["type"] == "http":
            with arriving(scope["headers"]):
                await self._request(scope, receive, send)
        else:
            raise RuntimeError("only HTTP is served")

    async def _request(self, scope: Scope, receive: Receive, send: Send) -> None:
        # httptools keeps blanks at the end of a value and the SDK then answers -32020 (facts/mcp.md §0).
        headers = scope["headers"] = [(k, v.strip(b" \t")) for k, v in scope["headers"]]
        head = dict(headers)
        try:
            self._hosts.check(headers, head, self._metrics.refused)
            if self.site is not None and scope["path"] != "/mcp" and self.site.takes(scope["path"]):
                return await self.site(scope, receive, send)
            route = self.routes.get(scope["path"])
            if route is not None and not route.needs_identity:
                return await respond(send, await route.answer(None))
            caller = await self._identify(headers, head)
            scope[CALLER] = caller
            if scope["path"] == "/mcp":
                return await self._mcp(head, scope, receive, send)
            if self.api is not None and self.api.takes(scope["path"]):
                return await self._apart(caller, head, scope, receive, send)
            if route is None:
                raise NotFound("There is no such page here.", next_step="MCP is served at /mcp.")
            if scope["method"] not in {"GET", "HEAD"}:
                return await respond(send, Page(405, b"{}"))
            await respond(send, await route.answer(caller))
        except BodyBrokerError as error:
            form = None if self.api is None else self.api.told(scope["path"], on_the_wire(error))
            await _respond_error(send, error, self._challenge, form)

    async def _identify(self, headers: list[tuple[bytes, bytes]], head: dict[bytes, bytes]) -> Caller:
        try:
            return await self._identities.authenticate(_bearer(headers, head))
        except Unauthenticated:
            self._metrics.refused("identity")
            raise

    async def _apart(
        self, caller: Caller, head: dict[bytes, bytes], scope: Scope, receive: Receive, send: Send
    ) -> None:
        """A request to the API: bounded as MCP's are."""
        assert self.api is not None
        self._check_takes(head)
        await self.api(caller, scope, receive, send)

    def _check_takes(self, head: dict[bytes, bytes]) -> None:
        if self.protocol.draining:
            raise Draining("This hub is stopping.")
        if (length := head.get(b"content-length", b"0")).isdigit() and int(length) > self._bytes_max:
            raise TooLarge(f"The request is larger than {self._bytes_max} bytes.", details={"limit": self._bytes_max})

    async def _mcp(self, head: dict[bytes, bytes], scope: Scope, receive: Receive, send: Send) -> None:
        self._check_takes(head)
        try:
            body = await read_body(receive, bytes_max=self._bytes_max)
        except ClientLeft:
            return
        again = _replayed(body, receive)
        if b"last-event-id" in head:  # nothing is kept to be sent again, and the SDK would answer nothing at all
            scope["headers"] = [pair for pair in scope["headers"] if pair[0] != b"last-event-id"]
        if self._wants_stream(head, body, scope["method"]):
            # A GET listens, as a stream of `subscriptions/listen` does.
            listens = scope["method"] == "GET"
            with self.protocol.held.one(scope[CALLER]) if listens else nullcontext():
                await self._stream.handle_request(scope, again, reworded(send))
        elif (found := self._usual(head, body, scope)) is not None:
            await cancelled_if_left(receive, self._answer(scope[CALLER], found, send))
        else:
            await cancelled_if_left(receive, self._plain.handle_request(scope, again, reworded(send)))

    def _wants_stream(self, head: dict[bytes, bytes], body: bytes, verb: str) -> bool:
        """Progress, listening, long calls and long waits for people need SSE (+100 us); everything else is one JSON answer."""
        if b"text/event-stream" not in head.get(b"accept", b""):
            return False
        if verb != "POST" or b'"progressToken"' in body or _LISTEN in body or _WAIT in body:
            return True
        # Before 2026-07-28 a call's name stands in its body alone.
        name = head.get(b"mcp-name")
        streamed = self._now_streamed()
        return name in streamed if b"mcp-method" in head else any(n in body for n in streamed)

    def _now_streamed(self) -> frozenset[bytes]:
        """The tools that are answered with a stream, of those that are served now."""
        gate = self.protocol.gate
        if self._streamed_of is not gate.rooms:
            self._streamed_of = gate.rooms
            tools = [tool for room in gate.rooms for tool in room.tools]
            asked = {t.name for t in tools if self._waits and gate.policy.askable(t.name)}
            self._streamed = frozenset(t.name.encode() for t in tools if _streams(t) or t.name in asked)
        return self._streamed

    def _usual(self, head: dict[bytes, bytes], body: bytes, scope: Scope) -> UsualCall | UsualList | None:
        """What nothing of the SDK is needed for; None leaves whatever is unusual to it."""
        if scope["method"] != "POST" or len(head) != len(scope["headers"]) or self.protocol.draining:
            return None
        return usual(head, body, self.protocol.mirrored)

    async def _answer(self, caller: Caller, found: UsualCall | UsualList, send: Send) -> None:
        if isinstance(found, UsualCall):
            status, answer = await self.protocol.call_json(caller, found)
        else:
            status, answer = await self.protocol.list_json(caller, found)
        await respond(send, Page(status, answer))

    @asynccontextmanager
    async def answering(self) -> AsyncGenerator[None]:
        """MCP is answered until the way out; enter and leave in one task."""
        async with self._plain.run(), self._stream.run():
            yield

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        await receive()
        async with self.answering():
            await send({"type": "lifespan.startup.complete"})
            await receive()
            self.begin_draining()
        await send({"type": "lifespan.shutdown.complete"})

    def begin_draining(self) -> None:
        """Take no new call, end the listening streams and the waiting for people; calls inside go on."""
        self.protocol.draining = True
        self.protocol.listening.close()
        self.protocol.gate.asking.close()


def _bearer(headers: list[tuple[bytes, bytes]], head: dict[bytes, bytes]) -> str:
    kind, _, token = head.get(b"authorization", b"").partition(b" ")
    if kind.lower() != b"bearer" or sum(k == b"authorization" for k, _ in headers) != 1:
        raise Unauthenticated("The request carries no bearer token.")
    return token.strip().decode("latin-1")


class _ForeignOrigin(MisdirectedRequest):
    """A page of another site sent this."""

    http_status = 403


def _streams(operation: Operation) -> bool:
    return operation.reports_progress or "long_running" in operation.modifiers


def _replayed(body: bytes, receive: Receive) -> Receive:
    """`receive` with the body already taken put back in front."""
    left: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def again() -> Message:
        return left.pop() if left else await receive()

    return again


async def respond(send: Send, page: Page, *more: tuple[bytes, bytes]) -> None:
    """Send a page whole."""
    headers = [(b"content-type", page.content_type), (b"content-length", b"%d" % len(page.body)), *more]
    await send({"type": "http.response.start", "status": page.status, "headers": headers})
    await send({"type": "http.response.body", "body": page.body})


async def _respond_error(send: Send, error: BodyBrokerError, challenge: bytes, form: tuple[int, Any] | None) -> None:
    told = on_the_wire(error)
    status, body = form or (told.http_status, {"error": told.body()})
    more: list[tuple[bytes, bytes]] = []
    if isinstance(error, Unauthenticated):
        more.append((b"www-authenticate", challenge))
    if isinstance(error, RateLimited) and error.retry_after_s is not None:
        more.append((b"retry-after", b"%d" % max(1, round(error.retry_after_s))))
    await respond(send, Page(status, orjson.dumps(body)), *more)
