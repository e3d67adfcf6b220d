"""The command `config`: the game's key/value configuration that agents may look up; never the hub's own settings."""

from __future__ import annotations

import json
from pathlib import Path

import click

from body_broker.calls import Json
from body_broker.errors import BadInput
from body_broker.settings import Settings
from mcp_servers.hub.cli.context import data_dir_option, operator, record, run, settings_of
from mcp_servers.hub.runtime import open_runtime


@click.group()
def config() -> None:
    """Game tuning, flags and tables that agents look up with get_config."""


@config.command(name="set")
@click.argument("key")
@click.argument("value", metavar="JSON")
@click.option("--why", default="", help="A reason, for whoever reads the history.")
@data_dir_option
def set_value(key: str, value: str, why: str, data_dir: Path | None) -> None:
    """Set KEY to a JSON value; the old one stays in the history."""
    try:
        parsed = json.loads(value)
    except ValueError as error:
        raise BadInput(
            "The value is not JSON.", next_step="""Quote strings twice for the shell: '"night"'."""
        ) from error
    click.echo(f"{key} is now version {run(_set(settings_of(data_dir), key, parsed, why))}.")


async def _set(settings: Settings, key: str, value: Json, why: str) -> int:
    async with open_runtime(settings, name="cli") as runtime:
        receipt = await record(runtime, "config set", {"key": key})
        return (await runtime.services.rag.tuning.set(key, value, by=operator(), why=why, receipt=receipt)).version


@config.command()
@click.argument("key")
@data_dir_option
def get(key: str, data_dir: Path | None) -> None:
    """Print KEY's value as JSON."""
    click.echo(json.dumps(run(_get(settings_of(data_dir), key))))


async def _get(settings: Settings, key: str) -> Json:
    async with open_runtime(settings, name="cli") as runtime:
        return (await runtime.services.rag.tuning.get(key)).value


@config.command()
@click.argument("key")
@data_dir_option
def history(key: str, data_dir: Path | None) -> None:
    """Print every value KEY has had, newest first."""
    for line in run(_history(settings_of(data_dir), key)):
        click.echo(line)


async def _history(settings: Settings, key: str) -> list[str]:
    async with open_runtime(settings, name="cli") as runtime:
        past = await runtime.services.rag.tuning.history(key)
    return [f"{p.version:>4}  {p.at:%Y-%m-%d %H:%M}  {p.by:20}  {json.dumps(p.value)}  {p.why}" for p in past]
