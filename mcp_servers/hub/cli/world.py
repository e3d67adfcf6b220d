"""The command `world`: load a world file into the stores, write the world out as one, check a file, say what there is."""

from __future__ import annotations

import sys
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import click
import redis.exceptions

from body_broker.calls import Json, Progress, Receipt
from body_broker.errors import BadInput, Conflict
from body_broker.lore import Effect, make_draft
from body_broker.lore import canon as lore_canon
from body_broker.lore.importing import IMPORT
from body_broker.lore.model import Draft
from body_broker.settings import Settings
from body_broker.text import digest
from body_broker.work.model import Origin
from body_broker.world import epochs, mirror
from body_broker.world.files import exporting, loading
from body_broker.world.files.checking import NEXT_STEP, PROBLEMS_MAX, STARTER, World, examine, open_world
from body_broker.world.files.loading import Loaded
from body_broker.world.files.model import LORE_ORIGIN, SECTIONS, LoreEntry
from body_broker.world.model import Entity
from mcp_servers.hub.cli.context import data_dir_option, operator, record, run, settings_of
from mcp_servers.hub.runtime import Runtime, open_runtime
from mcp_servers.hub.worker import working

_STARTER = "starter"
_EVENTS_AT_ONCE = 200
_IMPORTED = "imported/"
"""What an exported document's id begins with that came from no world file."""
_ID_MAX = 250
_NAMES = {"spoiler_level": (), "region": ("region",), "known_by": ("npc", "player", "faction")}
"""Which entities a document's limits name."""


@click.group()
def world() -> None:
    """The game's world: places, people, quests, facts, plots and lore as one file."""


def _path(file: str) -> Path:
    return STARTER if file == _STARTER else Path(file)


@contextmanager
def _problems_said() -> Generator[None]:
    """Every fault on a line of its own before the error ends the command."""
    try:
        yield
    except (BadInput, Conflict) as error:
        problems = error.details.get("problems")
        for problem in problems if isinstance(problems, list) else []:
            click.echo(f"  {problem}", err=True)
        raise


@world.command()
@click.argument("file", default=_STARTER)
@click.option("--prune", is_flag=True, help="Remove what a world has and FILE lacks; without it nothing is removed.")
@data_dir_option
def load(file: str, data_dir: Path | None, *, prune: bool) -> None:
    """Load FILE, a world file or a folder of them, or our starter world; the same again changes nothing."""
    settings = settings_of(data_dir)
    with _problems_said():
        given = open_world(_path(file))
        _warn(given.warnings)
        told = run(_load(settings, given, prune=prune))
    for line in told:
        click.echo(line)


def _say_problems(problems: Sequence[str]) -> None:
    for problem in problems[:PROBLEMS_MAX]:
        click.echo(f"  {problem}", err=True)
    if len(problems) > PROBLEMS_MAX:
        click.echo(f"  ... and {len(problems) - PROBLEMS_MAX} more", err=True)


def _warn(warnings: Sequence[str]) -> None:
    for warning in warnings[:100]:
        click.echo(f"  odd: {warning}", err=True)
    if warnings[100:]:
        click.echo(f"  odd: {len(warnings) - 100} more of that sort", err=True)


async def _load(settings: Settings, given: World, *, prune: bool) -> list[str]:
    async with open_runtime(settings, name="cli") as runtime, working(runtime, (IMPORT,)):
        details = {"entities": len(given.entities), "facts": len(given.facts), "lore": len(given.lore), "prune": prune}
        receipt = await record(runtime, "world load", details)
        done = await load_world(runtime, given, by=operator(), receipt=receipt, prune=prune)
    return list(_told(done))


@dataclass(frozen=True, slots=True)
class Done:
    """What a load did, lore and all."""

    world: Loaded
    documents: int
    unchanged: int
    passages: int
    deleted: int


async def load_world(
    runtime: Runtime,
    given: World,
    *,
    by: str,
    receipt: Receipt,
    prune: bool = False,
    progress: Progress | None = None,
) -> Done:
    """Make the world what a file says: entities, facts and plots in one transaction, then the lore as canon.

    Args:
        runtime: Some worker must be running, in this process or another.
        given: Sound, as `open_world` leaves it.
        by: operator:NAME.
        receipt: The command's place on the audit.
        prune: Remove what the file lacks.
        progress: Told passages done and in all.

    Raises:
        BadInput: A document is none; nothing was written.
        Conflict: The file contradicts what stays of the world; nothing was written.
    """
    drafts = _drafts(given.lore)
    loaded = await loading.load(runtime.stores.pool, given, by=by, receipt=receipt, prune=prune)
    await _publish(runtime, loaded)
    documents = unchanged = passages = 0
    rag = runtime.services.rag
    for index, brought in drafts.items():
        intake = await rag.lore.importing.take(
            brought, index=index, canon=True, origin=Origin(chain=(by,), session=by, receipt=receipt)
        )
        imported = await rag.follow(intake, progress)
        documents, unchanged = documents + imported.documents, unchanged + imported.unchanged
        passages += imported.passages
    deleted = await _forget(runtime, drafts, Effect(by, receipt)) if prune else 0
    return Done(loaded, documents, unchanged, passages, deleted)


def _drafts(lore: Iterable[LoreEntry]) -> dict[str, list[Draft]]:
    """Documents by index."""
    found: dict[str, list[Draft]] = {}
    for entry in lore:
        draft = make_draft(LORE_ORIGIN + entry.id, entry.title, entry.text or "", entry.format, entry.knowledge())
        found.setdefault(entry.index, []).append(draft)
    return found


async def _publish(runtime: Runtime, loaded: Loaded) -> None:
    """Tell readers at once; without it they see within a second that they are behind, and the next engine mends Redis."""
    if loaded.epoch is None:
        return
    try:
        for start in range(0, len(loaded.events), _EVENTS_AT_ONCE):
            events = loaded.events[start : start + _EVENTS_AT_ONCE]
            await mirror.publish(runtime.stores.redis, events, loaded.entities, epoch=loaded.epoch)
    except (OSError, redis.exceptions.RedisError):
        click.echo("Redis is away: readers see the new world when it is back.", err=True)


async def _forget(runtime: Runtime, drafts: dict[str, list[Draft]], effect: Effect) -> int:
    """Delete documents that an earlier world file brought and this one lacks; how many."""
    kept = {(index, draft.origin) for index, brought in drafts.items() for draft in brought}
    found = await lore_canon.origins(runtime.stores.pool, LORE_ORIGIN)
    gone = [each.document_id for each in found if (each.index, each.origin) not in kept]
    for document_id in gone:
        await runtime.services.rag.lore.delete_document(document_id, effect)
    return len(gone)


def _told(done: Done) -> Iterable[str]:
    now = done.world
    yield (
        f"Entities: {now.created} created, {now.changed} changed, {now.unchanged} unchanged"
        + (f", {now.removed} removed" if now.removed else "")
        + ("." if now.epoch is None else f"; whoever arbitrates begins anew (epoch {now.epoch}).")
    )
    if now.gone:
        yield f"Gone from this world, and not brought back: {', '.join(now.gone[:20])}. Give them other ids."
    canon = now.canon
    yield (
        f"Canon: {canon.predicates} predicates, {canon.facts} facts and {canon.plots} plots written"
        + (
            f", {canon.facts_retired} facts and {canon.plots_removed} plots retired"
            if canon.facts_retired or canon.plots_removed
            else ""
        )
        + "."
    )
    yield (
        f"Lore: {done.documents} documents imported, {done.passages} passages, {done.unchanged} were there already"
        + (f", {done.deleted} deleted" if done.deleted else "")
        + "."
    )


@world.command()
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--no-lore", "lore", is_flag=True, flag_value=False, default=True, help="Leave the lore out.")
@click.option("--force", is_flag=True, help="Replace FILE where it is there.")
@data_dir_option
def export(file: Path, data_dir: Path | None, *, lore: bool, force: bool) -> None:
    """Write the world as it is now to FILE; loaded into a new data dir it is the same world."""
    content = run(_export(settings_of(data_dir), lore=lore))
    size = exporting.write_file(file, content, force=force)
    given, problems = examine(file)
    counts = ", ".join(f"{count} {name}" for name, count in given.counts().items() if count)
    click.echo(f"{file.name}: {counts or 'an empty world'} ({size / 1024:.0f} KiB).")
    _say_problems(problems)
    if problems:
        click.echo(f"A load refuses the file until these {len(problems)} places are corrected.", err=True)
        sys.exit(1)


async def _export(settings: Settings, *, lore: bool) -> dict[str, Json]:
    async with open_runtime(settings, name="cli") as runtime:
        await record(runtime, "world export", {"lore": lore})
        now, canon = await exporting.snapshot(runtime.stores.pool)
        entries: list[LoreEntry] = []
        if lore:
            async for index, draft in lore_canon.drafts(runtime.stores.pool):
                entries.append(_entry(index, draft, now.entities))
        return exporting.written(now.entities, canon, entries)


def _entry(index: str, draft: Draft, there: Mapping[str, Entity]) -> LoreEntry:
    """A document as a world file has it."""
    name = draft.origin.removeprefix(LORE_ORIGIN)
    if name == draft.origin:
        name = _IMPORTED + draft.origin
    if len(name) > _ID_MAX:
        name = _IMPORTED + digest(draft.origin)[:32]
    known = dict(draft.knowledge)
    limits: dict[str, Json] = {}
    for field, kinds in _NAMES.items():
        value = known.get(field)
        names = cast("list[Json]", value) if isinstance(value, list) else [value] if isinstance(value, str) else []
        # Names that are no entities of this world stay as they were brought.
        if field in known and all(
            isinstance(each, str) and each in there and there[each].kind in kinds for each in names
        ):
            limits[field] = known.pop(field)
    return LoreEntry.model_validate(
        {"id": name, "title": draft.title, "text": draft.body, "format": draft.form, "index": index, "metadata": known}
        | limits
    )


@world.command()
@click.argument("file", default=_STARTER)
@data_dir_option
def check(file: str, data_dir: Path | None) -> None:
    """Say everything that is wrong with FILE, and touch nothing."""
    settings_of(data_dir)
    given, problems = examine(_path(file))
    _warn(given.warnings)
    _say_problems(problems)
    if problems:
        click.echo(f"{len(problems)} places are wrong.\n{NEXT_STEP}", err=True)
        sys.exit(1)
    counts = ", ".join(f"{count} {name}" for name, count in given.counts().items() if count)
    click.echo(f"Sound: {counts or 'an empty world'}.")


@world.command()
@data_dir_option
def show(data_dir: Path | None) -> None:
    """Show what the world holds, its regions, and who arbitrates it."""
    for name, text in run(_show(settings_of(data_dir))):
        click.echo(f"{name:10}  {text}")


async def _show(settings: Settings) -> list[tuple[str, str]]:
    async with open_runtime(settings, name="cli") as runtime:
        pool = runtime.stores.pool
        now, canon = await exporting.snapshot(pool)
        engine = await epochs.status(pool)
        documents = len(await lore_canon.origins(pool))
    there = [each for each in now.entities.values() if not each.removed]
    kinds = [each.kind for each in there]
    counted = [f"{kinds.count(kind)} {section}" for kind, section in SECTIONS.items() if kind in kinds]
    rows = [("entities", ", ".join(counted) or "none: `body-broker world load` brings the starter world")]
    for region in sorted((each for each in there if each.kind == "region"), key=lambda each: each.id):
        inside = [each.kind for each in there if each.region == region.id]
        holds = [f"{inside.count(kind)} {section}" for kind, section in SECTIONS.items() if kind in inside]
        rows.append(("region", f"{region.id}: {', '.join(holds) or 'empty'}"))
    rows.append(("canon", f"{len(canon.predicates)} predicates, {len(canon.facts)} facts, {len(canon.plots)} plots"))
    rows.append(("lore", f"{documents} documents of canon"))
    rows.append(("tick", f"{engine.tick}, {engine.last_pos} events"))
    who = f"{engine.engine}{' (external)' if engine.external else ''}" if engine.engine else "nobody yet"
    live = "its lease holds" if engine.live else "no lease holds: a hub or `body-broker engine` takes it"
    if engine.paused_at is not None:
        live = (
            f"paused since {engine.paused_at.isoformat(timespec='seconds')} by {engine.paused_by}: nothing is decided"
        )
    rows.append(("engine", f"{who}, epoch {engine.epoch}, {live}"))
    return rows
