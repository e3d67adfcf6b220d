"""The command `lore`: bring documents in as the studio's own truth, or as outside text."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import click
import orjson

from body_broker.calls import Json
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
@click.option(
    "--meta",
    "metadata",
    multiple=True,
    metavar="NAME=VALUE",
    help="Of every document: spoiler_level=3, known_by='[\"mira\"]', region=north. Searches filter by it.",
)
@data_dir_option
def import_(
    paths: tuple[Path, ...],
    index: str,
    title: str | None,
    metadata: tuple[str, ...],
    data_dir: Path | None,
    *,
    outside: bool,
) -> None:
    """Import text, Markdown or JSON Lines files or folders; the same again changes nothing."""
    brought = _Brought(paths, index, title, dict(map(_named, metadata)), canon=not outside)
    done = run(_import(settings_of(data_dir), brought))
    again = f", {done.unchanged} were there already" if done.unchanged else ""
    click.echo(f"{done.documents} documents imported, {done.passages} passages{again}.")


@dataclass(frozen=True, slots=True)
class _Brought:
    """What the command was given."""

    paths: tuple[Path, ...]
    index: str
    title: str | None
    metadata: dict[str, Json]
    canon: bool


def _named(text: str) -> tuple[str, Json]:
    """NAME=VALUE; a value that is JSON is that, anything else is a text."""
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise click.BadParameter(f"{text!r} is not NAME=VALUE.", param_hint="--meta")
    try:
        return name, orjson.loads(value)
    except orjson.JSONDecodeError:
        return name, value


async def _import(settings: Settings, given: _Brought) -> Imported:
    async with open_runtime(settings, name="cli") as runtime, working(runtime):
        details = {"index": given.index, "paths": len(given.paths), "canon": given.canon}
        receipt = await record(runtime, "lore import", details)
        done = await runtime.rag.import_paths(
            given.paths,
            index=given.index,
            by=operator(),
            canon=given.canon,
            title=given.title,
            metadata=given.metadata,
            receipt=receipt,
            progress=_show,
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
