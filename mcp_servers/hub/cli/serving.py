"""The commands that stay up: `serve` and `worker`."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path

import click

from body_broker.calls import Caller
from body_broker.errors import Unauthenticated
from body_broker.settings import Settings
from mcp_servers.hub.cli.context import data_dir_option, principal_of, run, settings_of
from mcp_servers.hub.rooms import rooms_named
from mcp_servers.hub.runtime import Runtime, open_runtime
from mcp_servers.hub.serve import Address, check_bind, serve_http, serve_stdio
from mcp_servers.hub.worker import make_worker, stop


@click.command()
@click.argument("servers", nargs=-1, metavar="[SERVER]...")
@click.option(
    "--http",
    "address",
    default=None,
    metavar="HOST:PORT",
    help="Listen here (default 127.0.0.1:8080; :0 picks a free port).",
)
@click.option("--stdio", is_flag=True, help="Serve one client over stdin and stdout.")
@click.option(
    "--as",
    "principal",
    default=None,
    metavar="WHO",
    help="Who calls over stdio; embedded stores only. Else BODY_BROKER_TOKEN.",
)
@click.option(
    "--tools", type=click.Choice(["core", "all"]), default=None, help="Which tools are listed (default core)."
)
@click.option("--behind-proxy", is_flag=True, default=None, help="A proxy in front terminates TLS.")
@data_dir_option
def serve(
    servers: tuple[str, ...],
    address: str | None,
    principal: str | None,
    tools: str | None,
    data_dir: Path | None,
    *,
    stdio: bool,
    behind_proxy: bool | None,
) -> None:
    """Serve the hub, or single servers of it, over HTTP or stdio."""
    if stdio and address:
        raise click.UsageError("--http and --stdio exclude each other.")
    if principal and not stdio:
        raise click.UsageError("--as goes with --stdio: over HTTP every request brings its token.")
    settings = settings_of(data_dir, tools=tools, behind_proxy=behind_proxy)
    if stdio:
        run(_serve_stdio(settings, servers, principal))
    else:
        bind = Address.parse(address or "127.0.0.1:8080")
        check_bind(bind, settings)
        run(_serve_http(settings, servers, bind))


async def _serve_http(settings: Settings, servers: tuple[str, ...], address: Address) -> None:
    async with open_runtime(settings, rooms_named(servers)) as runtime:
        await serve_http(runtime, address, lambda url: click.echo(f"Serving on {url}"))


async def _serve_stdio(settings: Settings, servers: tuple[str, ...], principal: str | None) -> None:
    async with open_runtime(settings, rooms_named(servers)) as runtime:
        who = _stdio_caller(runtime, principal)
        await who()  # a wrong identity is told before a client is
        await serve_stdio(runtime, who)


def _stdio_caller(runtime: Runtime, principal: str | None) -> Callable[[], Awaitable[Caller]]:
    if principal is not None:
        name = principal_of(principal)
        return lambda: runtime.identities.local(name)
    token = os.environ.get("BODY_BROKER_TOKEN")  # noqa: TID251 - a credential of the client, not a setting; read where stdio needs it
    if not token:
        raise Unauthenticated(
            "Nobody is named for this stdio session.", next_step="Pass --as person:NAME, or set BODY_BROKER_TOKEN."
        )
    return lambda: runtime.identities.authenticate(token)


@click.command()
@data_dir_option
def worker(data_dir: Path | None) -> None:
    """Run durable work (imports, re-indexing) until SIGTERM; what is unfinished then goes back to the queue."""
    run(_work(settings_of(data_dir)))


async def _work(settings: Settings) -> None:
    async with open_runtime(settings, name="worker") as runtime, runtime.experts.working():
        found = make_worker(runtime)
        loop = asyncio.get_running_loop()
        for sig in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(sig, stop, runtime, found)
        async with runtime.upstreams.watching(runtime.moves, looks=False):
            click.echo("Working.", err=True)
            await found.run()
