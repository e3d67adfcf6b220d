"""The command `audit`: verify the chains, read their end, anchor them outside the database."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from pathlib import Path

import click

from body_broker.audit.anchor import write_anchor
from body_broker.audit.trail import Entry
from body_broker.audit.trail import tail as read_tail
from body_broker.audit.verify import Report
from body_broker.audit.verify import verify as verify_chains
from body_broker.settings import Settings
from body_broker.storage.stores import open_stores
from mcp_servers.hub.cli.context import data_dir_option, run, settings_of
from mcp_servers.hub.secrets import Secrets


@click.group()
def audit() -> None:
    """The record of every call, refusal and operator command."""


def anchor_of(settings: Settings) -> Path:
    """The file that anchors go to."""
    return settings.audit_anchor or settings.data_dir / "audit-anchor.jsonl"


@audit.command()
@data_dir_option
def verify(data_dir: Path | None) -> None:
    """Recompute every MAC and compare with checkpoints and anchor; exit code 1 where anything was changed."""
    settings = settings_of(data_dir)
    report = run(_verify(settings))
    for line in report_lines(report):
        click.echo(line)
    sys.exit(0 if report.intact else 1)


def report_lines(report: Report) -> list[str]:
    """What verification found, for a terminal: breaches first, then what should be known."""
    lines = [f"BREACH  {breach}" for breach in report.breaches]
    if report.breaches_found > len(report.breaches):
        lines.append(f"… and {report.breaches_found - len(report.breaches)} more breaches")
    lines += [f"note    {note}" for note in report.notes]
    against = f"an anchor of {report.anchor_lines} checkpoints" if report.anchor_lines is not None else "no anchor"
    word = "intact" if report.intact else "CHANGED"
    return [
        *lines,
        f"{word}: {report.records} records on {report.writers} chains, {report.checkpoints} checkpoints, {against}",
    ]


async def _verify(settings: Settings) -> Report:
    async with open_stores(settings, name="cli") as stores:
        file = anchor_of(settings)
        return await verify_chains(stores.pool, Secrets.load(settings).derive("audit"), file if file.exists() else None)


@audit.command()
@click.option("-n", "--lines", type=click.IntRange(1, 10_000), default=20, show_default=True)
@data_dir_option
def tail(lines: int, data_dir: Path | None) -> None:
    """Print the newest records."""
    for line in run(_tail(settings_of(data_dir), lines)):
        click.echo(line)


async def _tail(settings: Settings, lines: int) -> list[str]:
    async with open_stores(settings, name="cli") as stores:
        return [_line(entry) for entry in await read_tail(stores.pool, lines)]


def _line(entry: Entry) -> str:
    record = entry.record
    at = datetime.fromtimestamp(record.at or 0, UTC)
    rules = f" by {', '.join(record.rules)}" if record.rules else ""
    who = f"{record.requester or '':30} {record.kind:9}"
    return f"{at:%Y-%m-%d %H:%M:%S}  {who} {record.action or ''} {record.verdict or ''}{rules}".rstrip()


@audit.command()
@data_dir_option
def anchor(data_dir: Path | None) -> None:
    """Append a checkpoint over every chain to a file outside the database."""
    settings = settings_of(data_dir)
    click.echo(f"Checkpoint {run(_anchor(settings))} is anchored in {anchor_of(settings)}.")


async def _anchor(settings: Settings) -> int:
    async with open_stores(settings, name="cli") as stores:
        return (await write_anchor(stores.pool, Secrets.load(settings).derive("audit"), anchor_of(settings))).number
