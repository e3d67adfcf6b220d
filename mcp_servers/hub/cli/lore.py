"""The command `lore`: bring documents in as the studio's own truth, or as outside text."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from body_broker.lore.documents import Effect
from body_broker.lore.model import Imported
from body_broker.settings import Settings
from mcp_servers.hub.cli.context import data_dir_option, operator, record, run, settings_of
from mcp_servers.hub.runtime import open_runtime
from mcp_servers.hub.worker import working

_BAR = 30


@click.group()
def lore() -> None:
    """The game's lore, which agents search."""


@lore.command(name="import")
@click.argument("paths", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True))
@click.option(
    "--index", default="shared", show_default=True, help="shared, or persona:NAME for one persona's own lore."
)
@click.option("--title", default=None, help="The title, where exactly one document is imported.")
@click.option("--outside", is_flag=True, help="Not canon: whoever reads it is tainted.")
@data_dir_option
def import_(paths: tuple[Path, ...], index: str, title: str | None, data_dir: Path | None, *, outside: bool) -> None:
    """Import text, Markdown or JSON Lines files or folders; the same again changes nothing."""
    done = run(_import(settings_of(data_dir), paths, index, title, canon=not outside))
    again = f", {done.unchanged} were there already" if done.unchanged else ""
    click.echo(f"{done.documents} documents imported, {done.passages} passages{again}.")


async def _import(
    settings: Settings, paths: tuple[Path, ...], index: str, title: str | None, *, canon: bool
) -> Imported:
    async with open_runtime(settings, name="cli") as runtime, working(runtime):
        receipt = await record(runtime, "lore import", {"index": index, "paths": len(paths), "canon": canon})
        done = await runtime.rag.import_paths(
            paths, index=index, by=operator(), canon=canon, title=title, receipt=receipt, progress=_show
        )
    if sys.stderr.isatty():
        click.echo(file=sys.stderr)
    return done


@lore.command()
@click.argument("document")
@data_dir_option
def approve(document: str, data_dir: Path | None) -> None:
    """Take DOCUMENT, which came from outside, into the canon: reading it taints nobody from then on."""
    run(_approve(settings_of(data_dir), document))
    click.echo(f"{document} is canon.")


async def _approve(settings: Settings, document: str) -> None:
    async with open_runtime(settings, name="cli") as runtime:
        receipt = await record(runtime, "lore approve", {"document": document})
        await runtime.rag.lore.approve(document, Effect(operator(), receipt))


async def _show(done: float, total: float | None = None, message: str | None = None) -> None:
    """A progress bar on a terminal's stderr; nothing in a pipe."""
    if not sys.stderr.isatty() or not total:
        return
    filled = round(_BAR * done / total)
    bar = "█" * filled + "░" * (_BAR - filled)
    click.echo(f"\r{bar} {done:.0f}/{total:.0f} {(message or '')[:40]:40}", nl=False, file=sys.stderr)
