"""The command `scanners`: brings the external scanner engines to those who came by plain pip."""

from __future__ import annotations

from pathlib import Path

import click

from mcp_servers.hub.cli.context import data_dir_option, settings_of
from mcp_servers.hub.scanners import install as install_semgrep


@click.group()
def scanners() -> None:
    """External scanners, called as programs and never imported."""


@scanners.command()
@data_dir_option
def install(data_dir: Path | None) -> None:
    """Fetch the semgrep engine where this environment does not have it, and prove that it runs."""
    installed = install_semgrep(settings_of(data_dir).data_dir)
    click.echo(
        f"semgrep {installed.version} at {installed.program}{'' if installed.fetched else ' (was there already)'}"
    )
