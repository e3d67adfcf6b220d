"""The command `demo`: the hub's main job in front of a person's eyes, on embedded stores, with nothing to install or sign up for."""

from __future__ import annotations

import asyncio
import sys
import time
from importlib import resources
from pathlib import Path

import click

from body_broker.audit.verify import verify
from body_broker.settings import Settings
from body_broker.world.files.checking import STARTER, open_world
from mcp_servers.cybersecurity import store
from mcp_servers.cybersecurity.paths import Repository
from mcp_servers.hub.cli.audit import report_lines
from mcp_servers.hub.cli.connect import claude_command, http_server, me, stdio_server
from mcp_servers.hub.cli.context import operator, record, run, settings_of
from mcp_servers.hub.cli.demo_approvals import go_ask
from mcp_servers.hub.cli.demo_jobs import go_work
from mcp_servers.hub.cli.demo_round import REPOSITORY, DemoFailed, go_round, say
from mcp_servers.hub.cli.demo_talk import go_talk
from mcp_servers.hub.cli.world import load_world
from mcp_servers.hub.runtime import Runtime, open_runtime
from mcp_servers.hub.serve import Address, Listening, listening

TOKEN_TTL_S = 12 * 3600
_WITHOUT = (
    *("database_url", "redis_url", "aws_roles", "opensearch_url", "public_url", "oidc_issuer"),
    *("slack_bot_token", "slack_app_token", "slack_signing_secret", "slack_channel"),
    *("gold_url", "openai_api_key", "azure_openai_api_key", "anthropic_api_key"),
    *("sagemaker_endpoint", "results", "results_endpoint_url"),
)


@click.command()
@click.option("--once", is_flag=True, help="Stop after the last step; exit code 0 only if every step went as said.")
@click.option(
    "--data-dir",
    type=click.Path(path_type=Path, file_okay=False),
    default=None,
    help="Where the embedded stores and keys live (default: BODY_BROKER_DATA_DIR or .body-broker in this folder).",
)
def demo(data_dir: Path | None, *, once: bool) -> None:
    """Show six identities at work on all five servers, each refusal by name of its rule, and the audit chain verified."""
    settings = settings_of(data_dir)
    if "data_dir" not in settings.model_fields_set:
        settings = settings_of(Path(".body-broker"))
    # Whatever this machine is set up for: the demo is about embedded stores, our engine, and no cloud.
    settings_here, without = settings, dict.fromkeys(_WITHOUT)
    settings = settings.model_copy(update={**without, "engine": "own", "tools": "core"})
    failures: list[DemoFailed] = []
    try:
        run(_demo(settings, once=once, in_slack=settings_here.slack_bot_token is not None))
    except* DemoFailed as group:  # the SDK's client wraps what is raised while it is connected
        failures += leaves(group)
    for failed in failures:
        click.echo(f"  {click.style('FAILED', fg='red')}   {failed}")
    if failures:
        sys.exit(1)


def leaves(group: BaseExceptionGroup[DemoFailed]) -> list[DemoFailed]:
    """The failures themselves, whatever they were wrapped in."""
    return [leaf for e in group.exceptions for leaf in (leaves(e) if isinstance(e, BaseExceptionGroup) else [e])]


async def _demo(settings: Settings, *, once: bool, in_slack: bool) -> None:
    began = time.monotonic()
    models = "no model runs here" if settings.silver_url is None else "a model speaks for one NPC alone"
    click.echo(click.style("Body Broker demo", bold=True) + f"  (scripted clients speak for the agents: {models})\n")
    async with open_runtime(settings, name="demo") as runtime, listening(runtime, Address("127.0.0.1", 0)) as hub:
        say("stores", f"PostgreSQL and Valkey, embedded in {settings.data_dir} ({time.monotonic() - began:.1f} s)")
        await _load_world(runtime)
        await _register_repository(runtime)
        say("hub", f"{hub.url}, {len(runtime.gate.policy.catalogue.entries)} operations behind one gate")
        lacks = runtime.services.embedding.lacks
        await go_round(hub.url, runtime.tokens, by_meaning=lacks is None)
        await go_talk(hub.url, runtime.tokens)
        await go_work(runtime, hub.url)
        await go_ask(runtime, hub.url, at_terminal=not once and sys.stdin.isatty(), in_slack=in_slack)
        await _verified(runtime)
        click.echo(f"\nEverything went as said, in {time.monotonic() - began:.1f} s.")
        if not once:
            await _stay(runtime, hub)


async def _load_world(runtime: Runtime) -> None:
    world = await asyncio.to_thread(open_world, STARTER)
    receipt = await record(runtime, "world load", {"entities": len(world.entities), "lore": len(world.lore)})
    done = await load_world(runtime, world, by=operator(), receipt=receipt)
    embedding = runtime.services.embedding
    if embedding.lacks is None:
        await embedding.all_made()
    ways = "by words and by meaning" if embedding.lacks is None else f"by words alone: {embedding.lacks}"
    counts = world.counts()
    there = done.world.unchanged + done.world.changed
    say(
        "world",
        f"{counts['npcs']} NPCs in {counts['regions']} regions, {counts['quests']} quests ({there} entities were there already)",
    )
    say("lore", f"{done.documents + done.unchanged} documents of our own, searchable {ways}")


async def _register_repository(runtime: Runtime) -> None:
    """A folder of the data dir with the small repository, registered as an operator would."""
    root = runtime.settings.data_dir / REPOSITORY
    await asyncio.to_thread(_unpack, root)
    await record(runtime, "repos add", {"name": REPOSITORY})
    await store.add_repository(runtime.stores.pool, Repository(REPOSITORY, root.resolve(), ()), by=operator())
    say("repo", f"{REPOSITORY}, with one fault planted on purpose")


def _unpack(root: Path) -> None:
    root.mkdir(parents=True, exist_ok=True)
    for packed in resources.files("mcp_servers.hub").joinpath("demo_repository").iterdir():
        root.joinpath(packed.name.removesuffix(".txt")).write_bytes(packed.read_bytes())


async def _verified(runtime: Runtime) -> None:
    report = await verify(runtime.stores.pool, runtime.secrets.derive("audit"))
    if not report.intact or not report.records:
        raise DemoFailed("; ".join(report_lines(report)))
    say(
        "audit",
        f"{report.records} records on {report.writers} chains, every MAC verified: each call and refusal above is on them",
    )


async def _stay(runtime: Runtime, hub: Listening) -> None:
    await record(runtime, "roles set", {"principal": me(), "roles": ["designer"]})
    await runtime.tokens.set_roles(me(), ["designer"], by=operator())
    issued = await runtime.tokens.issue("tier:silver", ttl_s=TOKEN_TTL_S, by=operator())
    click.echo(
        f"\nThe hub stays up. Connect Claude Code as {me()}, a designer here (others: body-broker connect cursor | vscode | json):"
    )
    click.echo("  " + claude_command(stdio_server(me(), runtime.settings.data_dir)))
    click.echo("or over HTTP as the silver tier, for 12 hours:")
    click.echo("  " + claude_command(http_server(hub.url, issued.token)))
    click.echo("\nCtrl-C stops it.")
    await hub.serving  # the server hears SIGINT and SIGTERM
