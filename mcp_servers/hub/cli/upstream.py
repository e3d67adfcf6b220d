"""The command `upstream`: which MCP servers of others are joined to this hub, and how each stands."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from pathlib import Path

import click

from body_broker.calls import Room
from body_broker.errors import SettingsError
from body_broker.settings import Settings
from mcp_servers.hub.cli.context import data_dir_option, record, run, settings_of
from mcp_servers.hub.rooms import ROOMS
from mcp_servers.hub.runtime import open_runtime
from mcp_servers.upstreams.model import NAME, Auth, Upstream
from mcp_servers.upstreams.reading import file_of, looks_secret, upstreams_of
from mcp_servers.upstreams.standing import Stands, forget, standing
from mcp_servers.upstreams.writing import add_section, remove_section

_STATES = ("pinned", "changed", "new", "gone")


def names_taken(rooms: tuple[Room, ...] = ROOMS) -> frozenset[str]:
    """The names of our rooms and of their operations."""
    return frozenset({room.name for room in rooms} | {o.name for room in rooms for o in room.operations()})


@click.group()
def upstream() -> None:
    """MCP servers of others, joined behind this hub's policy and audit. In work: hubs keep the file and do not serve them yet."""


@upstream.command()
@click.argument("name")
@click.argument("command", nargs=-1)
@click.option("--url", default=None, help="Where it listens; https, or http on this machine.")
@click.option(
    "--auth",
    type=click.Choice(["none", "token", "oauth"]),
    default="none",
    show_default=True,
    help="How the hub shows itself at the URL.",
)
@click.option(
    "--env", "pairs", multiple=True, metavar="K=V", help="A variable of the command's environment; no secret."
)
@click.option("--secret-env", "secrets", multiple=True, metavar="K", help="A variable whose value is kept sealed.")
@data_dir_option
def add(
    name: str,
    command: tuple[str, ...],
    url: str | None,
    auth: Auth,
    pairs: tuple[str, ...],
    secrets: tuple[str, ...],
    data_dir: Path | None,
) -> None:
    """Join the server NAME: a COMMAND after `--` that speaks MCP over stdio, or a --url."""
    found = Upstream(name=name, command=command, url=url, auth=auth, env=_env(pairs), secret_env=secrets)
    settings = settings_of(data_dir)
    run(_add(settings, found))
    click.echo(f"{name} is joined in {file_of(settings)}.")
    click.echo("Start the hub again: what the server offers then is pinned, and whatever differs later is withheld.")
    click.echo("All of it counts as writing, destroying and reaching outside until the file says otherwise, such as:")
    click.echo(f'  [{name}.tools."NAME OF A TOOL THAT ONLY READS"]\n  group = "retrieval"')


async def _add(settings: Settings, found: Upstream) -> None:
    if not re.fullmatch(NAME, found.name):
        raise SettingsError(
            "That is no name for a server.",
            next_step="Take small letters, digits and _, a letter first, at most 31 characters.",
        )
    async with open_runtime(settings, name="cli") as runtime:
        await record(runtime, "upstream add", {"name": found.name, "over": "stdio" if found.command else "http"})
        add_section(file_of(settings), found, taken=names_taken())


def _env(pairs: tuple[str, ...]) -> dict[str, str]:
    split = [pair.partition("=") for pair in pairs]
    if wrong := [name for name, sign, _ in split if not sign]:
        raise click.BadParameter(f"{len(wrong)} of them is not K=V.", param_hint="--env")
    if secret := [name for name, _, value in split if looks_secret(name, value)]:
        raise click.BadParameter(f"{', '.join(secret)} looks like a secret: use --secret-env.", param_hint="--env")
    return {name: value for name, _, value in split}


@upstream.command(name="list")
@data_dir_option
def list_(data_dir: Path | None) -> None:
    """Show the joined servers: what of each is pinned and withheld, and when it was last seen."""
    for line in run(_list(settings_of(data_dir))):
        click.echo(line)


async def _list(settings: Settings) -> list[str]:
    joined = upstreams_of(settings, taken=names_taken())
    async with open_runtime(settings, name="cli") as runtime:
        found = await standing(runtime.stores.pool)
    if not joined:
        return ["No server of others is joined: `body-broker upstream add NAME --url URL` joins one."]
    return [f"{each.name:24}  {_stands(found.get(each.name))}  {each.url or ' '.join(each.command)}" for each in joined]


def _stands(found: Stands | None) -> str:
    if found is None:
        return "never seen: start the hub"
    counts = ", ".join(f"{found.counts[state]} {state}" for state in _STATES if state in found.counts)
    seen = f"{counts or 'offers nothing'}, seen {_at(found.looked_at)}"
    return f"{seen}, failed {_at(found.failed_at)}: {found.failure}" if found.failed_at and found.failing else seen


def _at(when: datetime) -> str:
    return f"{when.astimezone(UTC):%Y-%m-%d %H:%M:%S}"


@upstream.command()
@click.argument("name")
@data_dir_option
def remove(name: str, data_dir: Path | None) -> None:
    """Take the server NAME out of the file; forget what was pinned of it, and its secrets."""
    run(_remove(settings_of(data_dir), name))
    click.echo(f"{name} is gone. Start the hub again: until then a hub that is up goes on serving it.")


async def _remove(settings: Settings, name: str) -> None:
    async with open_runtime(settings, name="cli") as runtime:
        await record(runtime, "upstream remove", {"name": name})
        remove_section(file_of(settings), name, taken=names_taken())
        await forget(runtime.stores.pool, name)
