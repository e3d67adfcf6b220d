"""The command of who arbitrates the world: `engine` runs it."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from pathlib import Path

import click

from body_broker.errors import NotConfigured
from body_broker.settings import Settings
from body_broker.storage.stores import open_stores
from body_broker.world.arbiter import Arbiter
from mcp_servers.hub.cli.context import data_dir_option, run, settings_of
from mcp_servers.hub.cli.engine_check import check, wire
from mcp_servers.hub.engine import halt, make_engine


@click.group(invoke_without_command=True)
@data_dir_option
@click.pass_context
def engine(context: click.Context, data_dir: Path | None) -> None:
    """Arbitrate the world's changes until SIGTERM: one engine at a time, the others wait for their turn."""
    if context.invoked_subcommand is None:
        run(_arbitrate(settings_of(data_dir)))


async def _arbitrate(settings: Settings) -> None:
    async with open_stores(settings, name="engine") as stores:  # it serves nobody, so it needs no more of a hub
        found = make_engine(settings, stores)
        if found is None:
            raise NotConfigured(
                "BODY_BROKER_ENGINE is off: nobody is to arbitrate.",
                next_step="Set it to own or external.",
                details={"setting": "BODY_BROKER_ENGINE"},
            )
        if isinstance(found, Arbiter):
            found.on_epoch = _say
        else:
            click.echo("Relaying to the engine that speaks docs/engine-protocol.md.", err=True)
        running = asyncio.create_task(found.run())
        loop = asyncio.get_running_loop()
        for sig in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(sig, halt, found, running)
        with contextlib.suppress(asyncio.CancelledError):
            await running


def _say(epoch: int | None) -> None:
    click.echo(
        "Waiting: another engine arbitrates." if epoch is None else f"Arbitrating under epoch {epoch}.", err=True
    )


engine.add_command(check)
engine.add_command(wire)
