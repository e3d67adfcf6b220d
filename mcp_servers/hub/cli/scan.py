"""The command `scan`: one scan of any folder, for people and for CI; needs no hub and no registration."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import click
import orjson

from body_broker.errors import BadInput, BodyBrokerError, on_the_wire
from body_broker.settings import Settings
from mcp_servers.cybersecurity.findings import SEVERITIES, Finding, Scan, Severity
from mcp_servers.cybersecurity.reporting import summary
from mcp_servers.cybersecurity.sarif import sarif
from mcp_servers.hub.cli.context import data_dir_option, record, run, settings_of
from mcp_servers.hub.runtime import open_runtime

_SHOWN = 50
_FOUND, _UNSURE = 1, 2


@click.command()
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--sarif", "sarif_file", type=click.Path(path_type=Path, dir_okay=False), help="Write SARIF 2.1.0 here.")
@click.option(
    "--fail-on",
    type=click.Choice(SEVERITIES[:5]),
    default="info",
    show_default=True,
    help="Exit with 1 for findings of this severity or graver.",
)
@click.option(
    "--skip", "skips", multiple=True, metavar="FOLDER", help="Leave out folders of this name: node_modules, .venv."
)
@data_dir_option
def scan(path: Path, sarif_file: Path | None, fail_on: Severity, skips: tuple[str, ...], data_dir: Path | None) -> None:
    """Scan the folder PATH for faults and secrets.

    Exits with 0 when nothing was found, 1 for findings at or above --fail-on, 2 when it could not be said.
    """
    asked = _Asked(path, sarif_file, skips)
    try:
        found = run(_scan(settings_of(data_dir), asked))
    except BodyBrokerError as error:
        told = on_the_wire(error)
        click.echo(f"{told.message}\n{told.next_step}", err=True)
        sys.exit(_UNSURE)
    for line in _table(found):
        click.echo(line)
    sys.exit(exit_code(found, fail_on))


@dataclass(frozen=True, slots=True)
class _Asked:
    """What the command was given."""

    path: Path
    sarif_file: Path | None
    skips: tuple[str, ...]


def exit_code(found: Scan, fail_on: Severity) -> int:
    """1 for a finding this grave or of no known severity, 2 where something may be missing, else 0."""
    bound = SEVERITIES.index(fail_on)
    if any(f.severity == "unknown" or SEVERITIES.index(f.severity) <= bound for f in found.findings):
        return _FOUND
    return 0 if found.complete else _UNSURE


async def _scan(settings: Settings, asked: _Asked) -> Scan:
    root = asked.path.resolve()
    if not root.is_dir():
        raise BadInput(f"{asked.path} is no folder.", next_step="Name the folder to scan.")
    if asked.sarif_file is not None:
        _check(asked.sarif_file)
    async with open_runtime(settings, name="cli") as runtime:
        await record(runtime, "scan", {"path": str(root)})
        scanning = await runtime.services.cybersecurity.scanning()
        found = await scanning.scan(root, "", skips=asked.skips, progress=_show)
    if asked.sarif_file is not None:
        _write(
            asked.sarif_file, orjson.dumps(sarif(found, metadata.version("body-broker")), option=orjson.OPT_INDENT_2)
        )
    return found


async def _show(done: float, total: float | None = None, message: str | None = None) -> None:
    """What is being done, on a terminal's stderr; nothing in a pipe."""
    if sys.stderr.isatty():
        click.echo(f"{done:.0f}/{total or 0:.0f} {message or ''}", err=True)


def _check(file: Path) -> None:
    """A scan takes minutes: what cannot be written is said before it."""
    if not os.access(file if file.exists() else file.absolute().parent, os.W_OK):
        raise _unwritable(file)


def _write(file: Path, content: bytes) -> None:
    try:
        file.write_bytes(content + b"\n")
    except OSError as error:
        raise _unwritable(file) from error


def _unwritable(file: Path) -> BadInput:
    return BadInput(f"{file} cannot be written.", next_step="Name a file in a folder that is there.")


def _table(found: Scan) -> list[str]:
    lines = [_line(finding) for finding in found.findings[:_SHOWN]]
    if len(found.findings) > _SHOWN:
        lines.append(f"... and {len(found.findings) - _SHOWN} more; --sarif writes them all.")
    for run_ in found.runs:
        took = f"{run_.duration_ms / 1000:.1f} s" if run_.duration_ms else ""
        lines.append(f"{run_.name:16}{run_.status:16}{run_.files_scanned:>7} files  {took:>8}  {run_.version}")
    return [*lines, summary(found)]


def _line(finding: Finding) -> str:
    where = f"{finding.location.path}:{finding.location.start}"
    return f"{finding.severity:9} {where:50} {finding.rule}  {finding.title}"
