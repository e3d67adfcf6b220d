"""The command `policy`: check the policies as the hub would load them, and explain one decision."""

from __future__ import annotations

import json
from pathlib import Path

import click

from body_broker.errors import BadInput, UnknownTool
from mcp_servers.hub.cli.context import data_dir_option, principal_of, settings_of
from mcp_servers.hub.guard import clean_arguments
from mcp_servers.hub.runtime import load_policy
from policies.decision import Identity, Question


@click.group()
def policy() -> None:
    """What may be called by whom, and why."""


@policy.command()
@data_dir_option
def check(data_dir: Path | None) -> None:
    """Load every policy file as the hub does; exit code 1 where the hub would not start."""
    found = load_policy(settings_of(data_dir))
    click.echo(
        f"{len(found.rules)} rules over {len(found.catalogue.entries)} operations fit the schema; digest {found.digest[:16]}."
    )


@policy.command()
@click.argument("tool")
@click.argument("arguments", default="{}", metavar="JSON")
@click.option("--as", "principal", required=True, metavar="WHO", help="silver, person:NAME or service:NAME.")
@click.option("--role", "roles", multiple=True, help="As a person with this role.")
@click.option("--tainted", is_flag=True, help="As a session that has read text from outside.")
@data_dir_option
def explain(
    tool: str, arguments: str, principal: str, roles: tuple[str, ...], data_dir: Path | None, *, tainted: bool
) -> None:
    """Say how a call of TOOL with JSON arguments would be decided, by which rules, and what would change that."""
    found = load_policy(settings_of(data_dir))
    if tool not in found.catalogue.entries:
        raise UnknownTool("There is no operation of that name.", next_step="docs/tools.md lists them all.")
    try:
        values = clean_arguments(json.loads(arguments))
    except ValueError as error:
        raise BadInput(
            "The arguments are not JSON.", next_step='Quote them for the shell: \'{"query": "..."}\'.'
        ) from error
    question = Question(
        action=tool,
        identities=(Identity(principal_of(principal), frozenset(roles)),),
        arguments=values,
        tainted=tainted,
        depth=0,
        history=frozenset(),
    )
    click.echo(found.explain(question).render())
