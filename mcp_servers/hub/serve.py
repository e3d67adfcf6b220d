"""Owns serving: binding rules, uvicorn, stdio, draining on SIGTERM, and the tasks that run beside a hub."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import ipaddress
import signal
import socket
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Generator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from types import FrameType

import uvicorn
from mcp.server.stdio import stdio_server

from body_broker.audit.anchor import write_anchor
from body_broker.background import running
from body_broker.calls import Caller
from body_broker.errors import SettingsError, StartError
from body_broker.settings import Settings
from body_broker.telemetry import get_logger
from mcp_servers.hub.api import make_api
from mcp_servers.hub.berth import bind_localhost, listen_at
from mcp_servers.hub.connections import Connection, look_at
from mcp_servers.hub.engine import arbitrating
from mcp_servers.hub.front import Front, Hosts
from mcp_servers.hub.loopback import pages_open
from mcp_servers.hub.oidc.metadata import challenge_of, metadata_routes
from mcp_servers.hub.pages import make_site, routes
from mcp_servers.hub.protocol import Protocol
from mcp_servers.hub.runtime import Runtime
from mcp_servers.hub.worker import working

log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Address:
    """Where to listen; port 0 picks a free one."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> Address:
        """`HOST:PORT`, `:PORT` on loopback, `[::1]:PORT`.

        Raises:
            SettingsError: It is neither.
        """
        host, colon, port = text.rpartition(":")
        if not colon or not port.isascii() or not port.isdigit() or int(port) > 65535:  # noqa: PLR2004 - the largest port
            raise SettingsError(
                f"{text!r} is not HOST:PORT.", next_step="Write it as 127.0.0.1:8080, or :0 for a free port."
            )
        return cls(host.strip("[]") or "127.0.0.1", int(port))

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach it."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False


def check_bind(address: Address, settings: Settings) -> None:
    """Refuse to listen beyond loopback without TLS (or a proxy that has it) and the names the hub answers to.

    Raises:
        SettingsError: What is missing, by the name of its setting.
    """
    if bool(settings.tls_certificate) != bool(settings.tls_key):
        raise SettingsError("BODY_BROKER_TLS_CERTIFICATE and BODY_BROKER_TLS_KEY go together.")
    if address.is_loopback:
        return
    if not settings.tls_certificate and not settings.behind_proxy:
        raise SettingsError(
            f"{address.host} is not loopback, and tokens would travel in the clear.",
            next_step="Set BODY_BROKER_TLS_CERTIFICATE and BODY_BROKER_TLS_KEY, or BODY_BROKER_BEHIND_PROXY behind a proxy with TLS.",
        )
    if not settings.allowed_hosts and not settings.public_url:
        raise SettingsError(
            f"{address.host} is not loopback, and no host name is allowed.",
            next_step="Set BODY_BROKER_PUBLIC_URL or BODY_BROKER_ALLOWED_HOSTS to the names clients use.",
        )


@asynccontextmanager
async def beside(runtime: Runtime) -> AsyncGenerator[None]:
    """What runs beside a serving hub: the event tail, the audit anchor, looks at servers of others, and on embedded stores a worker and an engine."""
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(runtime.bus.tailing())
        await stack.enter_async_context(_anchoring(runtime))
        await stack.enter_async_context(runtime.upstreams.watching(runtime.moves))
        if runtime.settings.embedded:
            await stack.enter_async_context(working(runtime))
            await stack.enter_async_context(arbitrating(runtime))
        yield


@asynccontextmanager
async def _anchoring(runtime: Runtime) -> AsyncGenerator[None]:
    settings = runtime.settings
    key, file = runtime.secrets.derive("audit"), settings.audit_anchor or settings.data_dir / "audit-anchor.jsonl"

    async def anchor_for_ever() -> None:
        while True:
            await asyncio.sleep(settings.audit_anchor_every_s)
            try:
                await write_anchor(runtime.stores.pool, key, file)
            except Exception:
                log.exception("audit_not_anchored")

    async with running(anchor_for_ever(), name="audit-anchor"):
        yield


def make_front(runtime: Runtime, bind_host: str = "127.0.0.1") -> Front:
    """The ASGI application over an open runtime."""
    settings = runtime.settings
    protocol = Protocol(runtime.gate, runtime.listings, runtime.limits, runtime.bus)
    return Front(
        protocol,
        runtime.identities,
        Hosts.of(bind_host=bind_host, public_url=settings.public_url, allowed_hosts=settings.allowed_hosts),
        routes(protocol, runtime.stores.pool, runtime.stores.redis, runtime.auditor) | metadata_routes(settings),
        request_bytes_max=settings.request_bytes_max,
        site=make_site(runtime),
        api=make_api(runtime),
        challenge=challenge_of(settings),
        approval_wait_s=settings.approval_wait_s,
    )


class HttpServer(uvicorn.Server):
    """uvicorn that drains our front first when it is told to stop."""

    def __init__(self, front: Front, settings: Settings) -> None:
        super().__init__(
            uvicorn.Config(
                front,
                loop="uvloop",
                http=Connection,
                ws="none",  # an upgrade would reach the front as what it does not serve, and be answered 500
                lifespan="on",  # "auto" swallows a failing start and serves (facts/mcp.md §0)
                log_config=None,
                access_log=False,
                proxy_headers=False,  # whoever is believed about addresses could lie about them; nothing here reads them
                server_header=False,
                date_header=False,
                timeout_graceful_shutdown=int(settings.drain_s) or 1,
                ssl_certfile=settings.tls_certificate,
                ssl_keyfile=settings.tls_key,
            ),
        )
        self._front = front

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None]:
        """Ours instead of uvicorn's, which raises the signal again once it has drained: a drained hub ends with 0."""
        loop = asyncio.get_running_loop()
        for sig in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(sig, self.handle_exit, sig, None)
        try:
            yield
        finally:
            for sig in (signal.SIGTERM, signal.SIGINT):
                loop.remove_signal_handler(sig)

    async def on_tick(self, counter: int) -> bool:
        """Ten times a second: at one of them connections that keep us waiting are ended."""
        if counter % 10 == 0:
            look_at(self.server_state.connections)
        return await super().on_tick(counter)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """SIGTERM or SIGINT: no new call, listening streams end, calls inside go on for `drain_s`."""
        self._front.begin_draining()
        super().handle_exit(sig, frame)


@dataclass(frozen=True, slots=True)
class Listening:
    """A hub that accepts connections: its MCP URL, its front, the task that ends when it has stopped, and the connections it has."""

    url: str
    front: Front
    serving: asyncio.Task[None]
    connections: Collection[object]


@asynccontextmanager
async def listening(runtime: Runtime, address: Address) -> AsyncGenerator[Listening]:
    """A hub over HTTP with what runs beside it; on the way out it drains and stops.

    Raises:
        SettingsError: The address may not be, or cannot be, listened on.
    """
    check_bind(address, runtime.settings)
    bound = _bind(address)
    scheme = "https" if runtime.settings.tls_certificate else "http"
    shown = f"[{address.host}]" if ":" in address.host else address.host
    url = runtime.settings.public_url or f"{scheme}://{shown}:{bound[0].getsockname()[1]}"
    front = make_front(runtime, address.host)
    runtime.approvals.served_at(url)
    server = HttpServer(front, runtime.settings)
    await runtime.inferring.prepare()
    async with beside(runtime):
        serving = asyncio.create_task(server.serve(sockets=bound), name="http")
        while not server.started and not serving.done():  # noqa: ASYNC110 - uvicorn has a flag, no event
            await asyncio.sleep(0.002)
        if not server.started:
            await serving
            raise StartError("The HTTP server did not start.")
        try:
            yield Listening(f"{url.rstrip('/')}/mcp", front, serving, server.server_state.connections)
        finally:
            front.begin_draining()
            server.should_exit = True
            await serving
            runtime.approvals.served_at(None)


async def serve_http(runtime: Runtime, address: Address, on_ready: Callable[[str], None]) -> None:
    """Serve until told to stop; `on_ready` gets the URL once connections are accepted.

    Raises:
        SettingsError: The address may not be, or cannot be, listened on.
    """
    async with listening(runtime, address) as hub:
        freeze_start_up()
        on_ready(hub.url)
        await hub.serving


def _bind(address: Address) -> list[socket.socket]:
    """Where we listen: on loopback, or everywhere, at both addresses that `localhost` may mean."""
    host = "127.0.0.1" if address.host == "localhost" else address.host
    try:
        if host in {"127.0.0.1", "::1", "0.0.0.0"}:  # noqa: S104 - a comparison, not a bind
            return bind_localhost(host, address.port)
        return [listen_at(host, address.port)]
    except OSError as error:
        twin = " (`localhost` means 127.0.0.1 and [::1]: the port must be free at both)" if address.is_loopback else ""
        raise SettingsError(
            f"{address.host}:{address.port} cannot be listened on{twin}.",
            next_step="Is another hub there? Choose another port, or :0.",
        ) from error


def freeze_start_up() -> None:
    """Take what start-up made out of the collector's sight: it lives as long as the process."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 50, 100)


async def serve_stdio(runtime: Runtime, who: Callable[[], Awaitable[Caller]]) -> None:
    """Serve one client over stdin and stdout, until stdin ends or SIGTERM; `who` is asked for every message."""
    protocol = Protocol(runtime.gate, runtime.listings, runtime.limits, runtime.bus, process_caller=who)
    probes = routes(protocol, runtime.stores.pool, runtime.stores.redis, runtime.auditor)
    async with (
        beside(runtime),
        pages_open(runtime, make_site(runtime), probes),
        stdio_server() as (incoming, outgoing),
    ):
        freeze_start_up()
        serving = asyncio.create_task(
            protocol.server.run(incoming, outgoing, protocol.server.create_initialization_options()),
        )
        loop = asyncio.get_running_loop()
        for sig in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(sig, serving.cancel)
        with contextlib.suppress(asyncio.CancelledError), protocol.watching.session():
            await serving
        protocol.draining = True
