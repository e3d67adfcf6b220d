"""The command `engine-profile`: how a tier's server is started, from models.toml."""

from __future__ import annotations

from pathlib import Path

import click

from mcp_servers.hub.cli.context import data_dir_option, settings_of
from mcp_servers.hub.inferring import given_by
from tiers.profiles import profile_of, render
from tiers.reading import read_catalogue


@click.command()
@click.argument("name", metavar="gold|silver|NAME")
@click.option(
    "--into",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    default=None,
    help="Write the configuration file into this folder; it is printed otherwise.",
)
@data_dir_option
def engine_profile(name: str, into: Path | None, data_dir: Path | None) -> None:
    """Print the command line and configuration of the server that NAME's profile in models.toml is for."""
    catalogue = read_catalogue(given_by(settings_of(data_dir)))
    found = render(profile_of(catalogue, name), catalogue.engines)
    if found.file is not None:
        if into is not None:
            into.joinpath(found.file).write_text(found.configuration, "utf-8")
            click.echo(f"# {found.file} is written.")
        else:
            click.echo(f"# {found.file}:\n{found.configuration}")
    click.echo(f"# Start it:\n{found.command}\n")
    click.echo(f"# Then tell the hub, in {found.place}, and try it with `body-broker validate`:\n{found.setting}")
