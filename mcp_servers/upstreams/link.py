"""Owns the connection to one upstream: made, used by many calls, lost, made again; what goes wrong on it is told in words of ours."""

from __future__ import annotations

import asyncio
import contextvars
import math
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, cast

import mcp_types as t
from fastmcp.client import Client
from fastmcp.client.transports.base import ClientTransport, TransportOptions
from mcp import ClientSession
from mcp.client.streamable_http import streamable_http_client
from mcp.client.subscriptions import listen

from body_broker.background import end, running
from body_broker.calls import Effect, Json, Progress
from body_broker.errors import BodyBrokerError, Draining, Unavailable
from body_broker.telemetry import get_logger
from body_broker.tracing import carry
from mcp_servers.upstreams.auth import Credentials, Shown, shown_to
from mcp_servers.upstreams.faults import Fault, IncompleteError, fault_of
from mcp_servers.upstreams.later import Answer, Offer
from mcp_servers.upstreams.listing import listed
from mcp_servers.upstreams.model import Upstream
from mcp_servers.upstreams.session import OPTIONS, Session, bare
from mcp_servers.upstreams.stdio import ChildTransport, program_of
from mcp_servers.upstreams.wire import ANSWER_BYTES_MAX, ASKED, Asked, wired_client
from tiers.breaker import TierCircuitBreaker

log = get_logger(__name__)

_FAILURES, _REST_S = 5, 5.0
_CHANGED_S = 0.2
_LISTEN_AGAIN_S = 10.0
_PROGRESS_S = 0.1
_CLOSE_S = 10.0
_LOOK_REQUESTS = 3  # so many times what one request may take, a look with all its pages may
_WRITE_S = 2.0  # a request's own bound begins once it is written
_MODERN = "2026"
_CLIENT = t.Implementation(name="body-broker", version="1")
_T = TypeVar("_T")


class HttpTransport(ClientTransport):
    """An upstream over HTTP, as the client library connects to it.

    Args:
        upstream: One with a URL.
        shown: What is shown there.
    """

    def __init__(self, upstream: Upstream, shown: Shown | None) -> None:
        assert upstream.url is not None
        self._url, self._shown, self._connections = upstream.url, shown, 2 * upstream.concurrency + 8

    @asynccontextmanager
    async def connect_session(
        self,
        *,
        transport_options: TransportOptions | None = None,
        **session_kwargs: Any,  # the library's own
    ) -> AsyncGenerator[ClientSession]:
        """A session, and its client of HTTP with it."""
        options = transport_options or OPTIONS
        async with (
            await wired_client(self._url, self._shown, connections=self._connections) as http,
            streamable_http_client(self._url, http_client=http, max_sse_event_size=ANSWER_BYTES_MAX) as (read, write),
            options.session_class(read, write, **bare(session_kwargs)) as session,
        ):
            yield session


@dataclass(slots=True, eq=False)
class _Connection:
    """One connection, from its first moment to its last.

    Attributes:
        ready: The session, or why there is none.
        leave: Set where it is used no more.
    """

    ready: asyncio.Future[Session]
    leave: asyncio.Event = field(default_factory=asyncio.Event)
    task: asyncio.Task[None] | None = None


class Link:
    """The way to one upstream; `mcp_servers.upstreams.later.LaterLink` has what its methods promise.

    Args:
        upstream: As the file joins it.
        credentials: Its secrets.
        folder: Its program's own.
        path: Where programs are looked for.
        clock: Seconds, for the breaker.
        changed: Called where its lists changed.
    """

    def __init__(
        self,
        upstream: Upstream,
        credentials: Credentials,
        folder: Path,
        *,
        path: str,
        clock: Callable[[], float],
        changed: Callable[[], None],
    ) -> None:
        self._upstream, self._credentials, self._folder, self._path = upstream, credentials, folder, path
        self._changed = changed
        self._shown = shown_to(upstream, credentials, clock)
        self._breaker = TierCircuitBreaker(_FAILURES, _REST_S, clock=clock)
        self._calls, self._lists = asyncio.Semaphore(upstream.concurrency), asyncio.Semaphore(1)
        self._connection: _Connection | None = None
        self._leaving: set[asyncio.Task[None]] = set()
        self._child: ChildTransport | None = None
        self._telling: asyncio.TimerHandle | None = None
        self._closed = False

    async def offered(self) -> Offer:
        """Everything it lists."""

        async def work(session: Session) -> Offer:
            return await listed(session)

        return await self._through(self._lists, work, effect="none", listing=True)

    async def call(
        self, name: str, arguments: Mapping[str, Json], *, progress: Progress, meta: Mapping[str, Json], effect: Effect
    ) -> Answer:
        """The answer of a tool."""
        params = t.CallToolRequestParams(name=name, arguments=dict(arguments), _meta=_meta(meta))

        async def work(session: Session) -> Answer:
            raw = await session.raw(t.CallToolRequest(params=params), progress=_Numbers(progress))
            _require_complete(raw)
            return Answer(
                blocks=cast("list[Json]", raw.get("content", [])),
                structured=raw.get("structuredContent"),
                is_error=raw.get("isError") is True,
            )

        return await self._through(self._calls, work, effect=effect)

    async def read(self, uri: str) -> Sequence[Json]:
        """The contents of a resource."""
        params = t.ReadResourceRequestParams(uri=uri, _meta=_meta({}))

        async def work(session: Session) -> Sequence[Json]:
            raw = await session.raw(t.ReadResourceRequest(params=params))
            _require_complete(raw)
            return cast("list[Json]", raw["contents"])

        return await self._through(self._calls, work, effect="none")

    async def prompt(self, name: str, arguments: Mapping[str, str]) -> Sequence[Json]:
        """The messages of a prompt."""
        params = t.GetPromptRequestParams(name=name, arguments=dict(arguments), _meta=_meta({}))

        async def work(session: Session) -> Sequence[Json]:
            raw = await session.raw(t.GetPromptRequest(params=params))
            _require_complete(raw)
            return cast("list[Json]", raw["messages"])

        return await self._through(self._calls, work, effect="none")

    def complaints(self) -> str:
        """The end of what its program wrote to stderr."""
        return self._child.complaints() if self._child is not None else ""

    async def close(self) -> None:
        """End the connection."""
        self._closed = True
        if self._telling is not None:
            self._telling.cancel()
        connection = self._connection
        self._drop(connection)
        if connection is not None and connection.task is not None and not connection.ready.done():
            connection.task.cancel()  # it may be a while until it would learn that it is left
        tasks = set(self._leaving)
        if tasks:
            await asyncio.wait(tasks, timeout=_CLOSE_S)
            for task in tasks:
                await end(task)

    async def _through(
        self,
        places: asyncio.Semaphore,
        work: Callable[[Session], Awaitable[_T]],
        *,
        effect: Effect,
        listing: bool = False,
    ) -> _T:
        """One request: in its place, past the breaker, over the connection; what goes wrong is ours."""
        entry = self._breaker.enter()
        if entry is None:
            raise self._away("has just failed too often to be asked now", retry_after_s=max(self._breaker.rest_s, 1.0))
        try:
            async with self._place(places):
                found = await self._worked(work, effect, again=effect == "none", listing=listing)
        except Fault as fault:
            if fault.counts:
                self._breaker.failed(entry)
                if self._breaker.state == "open":
                    self._drop(self._connection)  # the next trial is with a new one
            else:
                self._breaker.left(entry)
            raise fault.error from fault.__cause__
        except BaseException:
            self._breaker.left(entry)
            raise
        self._breaker.succeeded(entry)
        return found

    async def _worked(
        self, work: Callable[[Session], Awaitable[_T]], effect: Effect, *, again: bool, listing: bool
    ) -> _T:
        connection, session = await self._connected()
        asked = Asked()
        token = ASKED.set(asked)
        try:
            async with asyncio.timeout(self._upstream.timeout_s * (_LOOK_REQUESTS if listing else 1) + _WRITE_S):
                return await work(session)
        except Exception as error:
            fault = fault_of(error, asked, self._upstream, effect)
            if fault.gone or (listing and fault.late):
                self._drop(connection)
            if not (fault.gone and again):
                raise fault from error
            log.info("upstream_reconnects", upstream=self._upstream.name)
        finally:
            ASKED.reset(token)
        return await self._worked(work, effect, again=False, listing=listing)

    @asynccontextmanager
    async def _place(self, places: asyncio.Semaphore) -> AsyncGenerator[None]:
        try:
            async with asyncio.timeout(self._upstream.timeout_s):
                await places.acquire()
        except TimeoutError as error:
            raise self._away("has as many calls as it is given at once", retry_after_s=1.0) from error
        try:
            yield
        finally:
            places.release()

    async def _connected(self) -> tuple[_Connection, Session]:
        connection = self._connection
        if connection is None or connection.leave.is_set() or (connection.task is not None and connection.task.done()):
            if self._closed:
                raise _draining()
            self._drop(connection)
            connection = self._connection = _Connection(asyncio.get_running_loop().create_future())
            # A context of its own: it outlives the request that is first, and is not part of its trace.
            connection.task = asyncio.create_task(
                self._hold(connection), name=f"upstream-{self._upstream.name}", context=contextvars.Context()
            )
        try:
            return connection, await asyncio.shield(connection.ready)
        except Fault as fault:  # of this one connection attempt there may be many who hear
            raise Fault(fault.error, counts=fault.counts) from fault.__cause__

    def _drop(self, connection: _Connection | None) -> None:
        if connection is None:
            return
        connection.leave.set()
        if self._connection is connection:
            self._connection = None
        task = connection.task
        if task is not None and not task.done():
            self._leaving.add(task)
            task.add_done_callback(self._leaving.discard)

    async def _hold(self, connection: _Connection) -> None:
        """The connection, until it is left or lost."""
        before = self._leaving - {asyncio.current_task()}
        if before:
            await asyncio.wait(before, timeout=_CLOSE_S)  # a program's new child begins when the old one has ended
        asked = Asked()
        ASKED.set(asked)
        try:
            async with AsyncExitStack() as stack:
                async with asyncio.timeout(self._upstream.timeout_s):
                    client = Client(
                        await self._transport(connection),
                        message_handler=self._hear,
                        client_info=_CLIENT,
                        timeout=self._upstream.timeout_s,
                        init_timeout=self._upstream.timeout_s,
                    )
                    await stack.enter_async_context(client)
                session = client.session
                assert isinstance(session, Session)
                connection.ready.set_result(session)
                async with running(self._listen(session), name=f"upstream-{self._upstream.name}-listens"):
                    await connection.leave.wait()
        except BodyBrokerError as error:
            self._never(connection, Fault(error, counts=False))
        except Exception as error:  # noqa: BLE001 - whatever the library raises, the connection is gone
            asked.unsent = True
            self._never(connection, fault_of(error, asked, self._upstream, "none"), error)
        finally:
            connection.leave.set()
            self._never(connection, Fault(_draining(), counts=False))

    def _never(self, connection: _Connection, fault: Fault, cause: Exception | None = None) -> None:
        if connection.ready.done():
            if cause is not None:
                log.info("upstream_lost", upstream=self._upstream.name, error=type(cause).__name__)
            return
        fault.__cause__ = cause
        connection.ready.set_exception(fault)
        connection.ready.exception()  # nobody may wait any more

    async def _transport(self, connection: _Connection) -> ClientTransport:
        if self._upstream.url is not None:
            return HttpTransport(self._upstream, self._shown)
        program = await program_of(self._upstream, self._credentials, self._folder, self._path)
        self._child = ChildTransport(self._upstream.name, program, connection.leave.set)
        return self._child

    async def _hear(self, message: object) -> None:
        """What it says without being asked: only that its lists changed is heard."""
        changes = (t.ToolListChangedNotification, t.PromptListChangedNotification, t.ResourceListChangedNotification)
        if isinstance(message, changes) and self._telling is None and not self._closed:
            self._telling = asyncio.get_running_loop().call_later(_CHANGED_S, self._tell)

    def _tell(self) -> None:
        self._telling = None
        self._changed()

    async def _listen(self, session: Session) -> None:
        """Have a server of the modern revision tell that its lists change; those before it tell by themselves."""
        known = session.server_capabilities
        if known is None or not str(session.protocol_version).startswith(_MODERN):
            return
        tools = bool(known.tools and known.tools.list_changed)
        prompts = bool(known.prompts and known.prompts.list_changed)
        resources = bool(known.resources and known.resources.list_changed)
        while tools or prompts or resources:
            try:
                async with listen(
                    session,
                    tools_list_changed=tools,
                    prompts_list_changed=prompts,
                    resources_list_changed=resources,
                ) as events:
                    async for _ in events:
                        pass  # each is heard where all others are
            except Exception as error:  # noqa: BLE001 - it may not be able to; it is looked at now and then as well
                log.info("upstream_does_not_tell", upstream=self._upstream.name, error=type(error).__name__)
            await asyncio.sleep(_LISTEN_AGAIN_S)

    def _away(self, what: str, *, retry_after_s: float) -> Unavailable:
        return Unavailable(
            f"The upstream server {self._upstream.name} {what}.",
            retry_after_s=retry_after_s,
            details={"component": f"upstream {self._upstream.name}"},
        )


class _Numbers:
    """Passes progress on: numbers, and not too often. Its words are from outside, and the session has no taint of them yet."""

    def __init__(self, progress: Progress) -> None:
        self._progress, self._next, self._last = progress, 0.0, -math.inf

    async def __call__(self, progress: float, total: float | None, message: str | None) -> None:
        del message
        now = asyncio.get_running_loop().time()
        sound = math.isfinite(progress) and (total is None or math.isfinite(total))
        if not sound or progress <= self._last or (now < self._next and progress != total):
            return
        self._next, self._last = now + _PROGRESS_S, progress
        await self._progress(progress, total)


def _draining() -> Draining:
    return Draining("This hub is stopping and asks servers of others nothing more.")


def _meta(meta: Mapping[str, Json]) -> Any:  # the library's typed dictionary
    carried: dict[str, str] = {}
    carry(carried)
    return {**meta, **carried}


def _require_complete(raw: Mapping[str, Json]) -> None:
    if raw.get("resultType", "complete") != "complete":
        raise IncompleteError
