"""Owns the one loopback listener of a data dir on which hubs over stdio serve people's pages: nothing but these and the probes."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncGenerator, Generator, Mapping
from contextlib import asynccontextmanager
from types import FrameType

import orjson
import uvicorn
from starlette.types import Receive, Scope, Send

from body_broker.background import running
from body_broker.errors import BodyBrokerError, NotFound, on_the_wire
from body_broker.telemetry import get_logger
from mcp_servers.hub.berth import Berth
from mcp_servers.hub.front import Hosts, Page, Route, Site, respond
from mcp_servers.hub.runtime import Runtime

log = get_logger(__name__)

_LOOK_EVERY_S = 0.5


class PagesOnly:
    """An ASGI application with people's pages and the probes alone.

    Args:
        site: The pages.
        probes: Plain routes that need no identity.
        runtime: Counts what was refused for its Host or Origin.
    """

    def __init__(self, site: Site, probes: Mapping[str, Route], runtime: Runtime) -> None:
        self._site, self._refused = site, runtime.gate.metrics.refused
        self._probes = {path: route for path, route in probes.items() if not route.needs_identity}
        self._hosts = Hosts.of(bind_host="127.0.0.1", public_url=None, allowed_hosts=())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        assert scope["type"] == "http", "the lifespan is off, and nothing here upgrades"
        headers = scope["headers"]
        try:
            self._hosts.check(headers, dict(headers), self._refused)
            if self._site.takes(scope["path"]):
                await self._site(scope, receive, send)
                return
            probe = self._probes.get(scope["path"])
            if probe is None:
                raise NotFound("There is no such page here.", next_step="Approvals are at /approvals.")
            await respond(send, await probe.answer(None))
        except BodyBrokerError as error:
            told = on_the_wire(error)
            await respond(send, Page(told.http_status, orjson.dumps({"error": told.body()})))


class _Quiet(uvicorn.Server):
    """uvicorn beside a hub that has its own way with signals."""

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None]:
        """None of them."""
        yield

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Never called."""


@asynccontextmanager
async def pages_open(runtime: Runtime, site: Site, probes: Mapping[str, Route]) -> AsyncGenerator[None]:
    """People's pages on loopback: served here, or by another hub of this data dir until that one ends, and then here.

    Where a public URL is set they are there, and nothing is opened. A hub that cannot open them serves its client all the same.

    Args:
        runtime: Told where the pages are.
        site: The pages.
        probes: What else is served.
    """
    if runtime.settings.public_url is not None:
        yield
        return
    berth, app = Berth(runtime.settings), PagesOnly(site, probes, runtime)
    first = asyncio.Event()
    async with running(_keep_open(runtime, berth, app, first), name="pages"):
        await first.wait()
        try:
            yield
        finally:
            runtime.approvals.served_at(None)


async def _keep_open(runtime: Runtime, berth: Berth, app: PagesOnly, first: asyncio.Event) -> None:
    while True:
        try:
            bound = await asyncio.to_thread(berth.take)
            url = await asyncio.to_thread(berth.url)
        except OSError:
            log.warning("pages_not_opened", exc_info=True)
            bound = url = None
        runtime.approvals.served_at(url)
        if bound is None:
            # Whoever has the place may still be writing its port: the next look finds it.
            first.set()
            await asyncio.sleep(_LOOK_EVERY_S)
            continue
        await _serve(berth, app, bound, first)


async def _serve(berth: Berth, app: PagesOnly, bound: list[socket.socket], first: asyncio.Event) -> None:
    config = uvicorn.Config(
        app,
        http="httptools",
        lifespan="off",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        date_header=False,
        timeout_graceful_shutdown=1,
    )
    server = _Quiet(config)
    serving = asyncio.create_task(server.serve(sockets=bound), name="pages-http")
    try:
        while not server.started and not serving.done():  # noqa: ASYNC110 - uvicorn has a flag, no event
            await asyncio.sleep(0.002)
        first.set()
        await asyncio.shield(serving)
    finally:
        server.should_exit = True
        with contextlib.suppress(asyncio.CancelledError):
            await serving
        berth.leave()
