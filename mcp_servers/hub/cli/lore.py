"""The command `lore`: bring documents in as the studio's own truth, or as outside text."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import click
import orjson

from body_broker.calls import Json
from body_broker.lore.documents import Effect
from body_broker.lore.importing import IMPORT, REINDEX
from body_broker.lore.model import Imported, Intake, index_named
from body_broker.lore.opensearch import REBUILD
from body_broker.settings import Settings
from body_broker.work.model import Origin, WorkSummary
from mcp_servers.hub.cli.context import data_dir_option, operator, record, run, settings_of
from mcp_servers.hub.runtime import Runtime, open_runtime
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
@click.option(
    "--wait", is_flag=True, help="Until it is found by meaning too; else that follows while a hub or worker runs."
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
    wait: bool,
) -> None:
    """Import text, Markdown or JSON Lines files or folders; the same again changes nothing."""
    brought = _Brought(paths, index, title, dict(map(_named, metadata)), canon=not outside)
    done, vectors = run(_import(settings_of(data_dir), brought, wait=wait))
    again = f", {done.unchanged} were there already" if done.unchanged else ""
    click.echo(vectors, err=True)
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


async def _import(settings: Settings, given: _Brought, *, wait: bool) -> tuple[Imported, str]:
    # Without --wait what follows an import is left to whoever stays up.
    kinds = None if wait else (IMPORT,)
    async with open_runtime(settings, name="cli") as runtime, working(runtime, kinds):
        details = {"index": given.index, "paths": len(given.paths), "canon": given.canon}
        receipt = await record(runtime, "lore import", details)
        done = await runtime.services.rag.import_paths(
            given.paths,
            index=given.index,
            by=operator(),
            canon=given.canon,
            title=given.title,
            metadata=given.metadata,
            receipt=receipt,
            progress=_show,
        )
        if wait:
            await runtime.services.embedding.all_made(_show)
        vectors = await _vectors(runtime)
    if sys.stderr.isatty():
        click.echo(file=sys.stderr)
    return done, vectors


async def _vectors(runtime: Runtime) -> str:
    """One sentence on how far the vectors are."""
    if runtime.services.embedding.lacks is not None:
        return f"Found by words alone: {runtime.services.embedding.lacks}."
    now = await runtime.services.embedding.standing()
    have = now.models[-1][1] if now.models else 0
    if have == now.passages:
        return "Every passage is found by meaning too."
    return f"{now.passages - have} of {now.passages} passages get their vectors while a hub or worker runs; words find them now."


@lore.command()
@data_dir_option
def status(data_dir: Path | None) -> None:
    """Show what there is, which model makes the vectors and how far it is, and what is under way."""
    for name, text in run(_status(settings_of(data_dir))):
        click.echo(f"{name:10}  {text}")


async def _status(settings: Settings) -> list[tuple[str, str]]:
    async with open_runtime(settings, name="cli") as runtime:
        now = await runtime.services.embedding.standing()
        lacks = runtime.services.embedding.lacks
        copies = [] if runtime.services.copy is None else await runtime.services.copy.standing()
        copying = [] if runtime.services.copy is None else await runtime.services.copy.jobs()
    rows = [("documents", str(now.documents)), ("passages", str(now.passages))]
    rows += [(model.state, f"{model.name}: {have} of {now.passages} passages") for model, have in now.models]
    if lacks is not None:
        rows.append(("vectors", f"none are made here: {lacks}"))
    for copy in copies:
        shows = copy.away or f"{copy.entries} entries"
        rows.append(
            ("copy", f"{copy.generation.name} ({copy.generation.state}): {shows}, {copy.generation.due} documents due")
        )
    return rows + [("job", _told(job)) for job in (*now.jobs, *copying)]


def _told(job: WorkSummary) -> str:
    progress = f", {job.progress['message']}" if job.progress and job.progress["message"] else ""
    error = f"; {job.error['message']} {job.error['next_step']}" if job.error else ""
    again = " The next import, or the next start of a hub or worker, begins it again." if job.state == "failed" else ""
    return f"{job.id} {job.kind}: {job.state}{progress}{error}{again}"


@lore.command()
@click.option("--index", default=None, help="Cut this index anew: shared, or persona:NAME.")
@data_dir_option
def reindex(index: str | None, data_dir: Path | None) -> None:
    """Build the search index anew while the old one serves: all of OpenSearch's copy, or without one every index."""
    click.echo(run(_reindex(settings_of(data_dir), index)))


async def _reindex(settings: Settings, index: str | None) -> str:
    async with open_runtime(settings, name="cli") as runtime, working(runtime, (REBUILD, REINDEX)):
        await record(runtime, "lore reindex", {"index": index})
        if index is None and runtime.services.copy is not None:
            documents = await runtime.services.copy.rebuild(_show)
            return f"OpenSearch holds a new copy of {documents} documents."
        lore = runtime.services.rag.lore
        names = [index] if index is not None else [each.name for each in (await lore.list_indices(limit=10_000))[0]]
        origin = Origin(chain=(operator(),), session=operator())
        jobs = [await lore.importing.reindex(index_named(name), origin) for name in names]
        done = [await runtime.services.rag.follow(Intake(job, []), _show) for job in jobs]
    documents, passages = sum(each.documents for each in done), sum(each.passages for each in done)
    return f"{documents} documents indexed anew, {passages} passages."


@lore.command()
@click.argument("document")
@data_dir_option
@click.option("--rev", type=int, default=None, help="The revision you read; another text is then refused.")
def approve(document: str, rev: int | None, data_dir: Path | None) -> None:
    """Take DOCUMENT, which came from outside, into the canon: reading it taints nobody from then on."""
    approved = run(_approve(settings_of(data_dir), document, rev))
    click.echo(f"{document} is canon, as of revision {approved}.")


async def _approve(settings: Settings, document: str, rev: int | None) -> int:
    async with open_runtime(settings, name="cli") as runtime:
        receipt = await record(runtime, "lore approve", {"document": document})
        return await runtime.services.rag.lore.approve(document, Effect(operator(), receipt), rev=rev)


async def _show(done: float, total: float | None = None, message: str | None = None) -> None:
    """A progress bar on a terminal's stderr; nothing in a pipe."""
    if not sys.stderr.isatty() or not total:
        return
    filled = round(_BAR * done / total)
    bar = "█" * filled + "░" * (_BAR - filled)
    click.echo(f"\r{bar} {done:.0f}/{total:.0f} {(message or '')[:40]:40}", nl=False, file=sys.stderr)
