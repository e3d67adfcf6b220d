"""The command `demo`: the hub's main job in front of a person's eyes, on embedded stores, with nothing to install or sign up for."""

from __future__ import annotations

import sys
import time
from importlib import resources
from pathlib import Path
from typing import Any

import click
import httpx2
from mcp import Client
from mcp.client.streamable_http import streamable_http_client
from mcp_types import CallToolResult, TextContent

from body_broker.audit.verify import verify
from body_broker.settings import Settings
from mcp_servers.hub.cli.audit import report_lines
from mcp_servers.hub.cli.connect import claude_command, http_server, me, stdio_server
from mcp_servers.hub.cli.context import data_dir_option, operator, record, run, settings_of
from mcp_servers.hub.runtime import Runtime, open_runtime
from mcp_servers.hub.serve import Address, Listening, listening

IN_OTHER_WORDS = "Which bureaucrat audits the cemetery?"  # shares no word with the passage it asks for
QUESTION = "Which ferryman keeps a lantern for each of his passengers who drowned?"
TOKEN_TTL_S = 12 * 3600


class DemoFailed(Exception):
    """A step did not go as said."""


@click.command()
@click.option("--once", is_flag=True, help="Stop after the last step; exit code 0 only if every step went as said.")
@data_dir_option
def demo(data_dir: Path | None, *, once: bool) -> None:
    """Show an agent finding lore with citations, a refusal by name of its rule, and the audit chain verified."""
    settings = settings_of(data_dir or Path(".body-broker"))
    try:
        run(_demo(settings, once=once))
    except DemoFailed as failed:
        click.echo(f"  {click.style('FAILED', fg='red')}  {failed}")
        sys.exit(1)


async def _demo(settings: Settings, *, once: bool) -> None:
    began = time.monotonic()
    click.echo(
        click.style("Body Broker demo", bold=True) + "  (a scripted client speaks for the agent: no model runs here)\n"
    )
    async with open_runtime(settings, name="demo") as runtime, listening(runtime, Address("127.0.0.1", 0)) as hub:
        _say("stores", f"PostgreSQL and Valkey, embedded in {settings.data_dir} ({time.monotonic() - began:.1f} s)")
        await _import_lore(runtime)
        _say("hub", f"{hub.url}, {len(runtime.gate.policy.catalogue.entries)} operations behind one gate")
        issued = await runtime.tokens.issue("tier:silver", ttl_s=3600, by=operator())
        await _as_silver(hub.url, issued.token, by_meaning=runtime.services.embedding.lacks is None)
        await _verified(runtime)
        click.echo(f"\nEverything went as said, in {time.monotonic() - began:.1f} s.")
        if not once:
            await _stay(runtime, hub)


async def _import_lore(runtime: Runtime) -> None:
    with resources.as_file(resources.files("mcp_servers.hub").joinpath("demo_lore")) as folder:
        receipt = await record(runtime, "lore import", {"index": "shared", "paths": 1, "canon": True})
        done = await runtime.services.rag.import_paths([folder], index="shared", by=operator(), receipt=receipt)
    lacks = runtime.services.embedding.lacks
    if lacks is None:
        await runtime.services.embedding.all_made()
    ways = "by words and by meaning" if lacks is None else f"by words alone: {lacks}"
    _say(
        "lore",
        f"{done.documents} documents of our own imported ({done.unchanged} were there already), searchable {ways}",
    )


async def _as_silver(url: str, token: str, *, by_meaning: bool) -> None:
    """A real MCP client (the official SDK) over HTTP, with the identity of the silver tier."""
    headers = {"authorization": f"Bearer {token}"}
    async with (
        httpx2.AsyncClient(headers=headers, timeout=30) as http,
        Client(streamable_http_client(url, http_client=http)) as client,
    ):
        names = sorted(t.name for t in (await client.list_tools()).tools)
        _say(
            "silver", f"connects over MCP {client.protocol_version} and is shown {len(names)} tools: {', '.join(names)}"
        )
        for question in (QUESTION, *((IN_OTHER_WORDS,) if by_meaning else ())):
            _tell_passage(question, await client.call_tool("search_lore", {"query": question, "k": 1}))
        _tell_refusal(
            await client.call_tool("ingest_documents", {"documents": [{"title": "x", "text": "The ferry never sank."}]})
        )


def _tell_passage(question: str, result: CallToolResult) -> None:
    content: Any = result.structured_content
    if result.is_error or not content["items"]:
        raise DemoFailed(f"search_lore found nothing: {_text(result)}")
    item = content["items"][0]
    _say("asks", f"search_lore: {question}")
    _say("finds", " ".join(item["content"].split())[:220] + " …")
    _say("cited", f"{item['title']}, characters {item['start']}-{item['end']} of {item['doc_id']}")


def _tell_refusal(result: CallToolResult) -> None:
    content: Any = result.structured_content or {}
    error: dict[str, Any] = content.get("error", {})
    if not result.is_error or error.get("code") != "denied" or not error.get("rules"):
        raise DemoFailed(f"silver was not refused ingest_documents: {_text(result)}")
    _say("tries", "ingest_documents: to write what it concluded into the canon")
    _say("refused", f"by rule {', '.join(error['rules'])}: {error['message']}", "yellow")


async def _verified(runtime: Runtime) -> None:
    report = await verify(runtime.stores.pool, runtime.secrets.derive("audit"))
    if not report.intact or not report.records:
        raise DemoFailed("; ".join(report_lines(report)))
    _say(
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


def _say(what: str, text: str, colour: str = "green") -> None:
    click.echo(f"  {click.style(f'{what:8}', fg=colour)} {text}")


def _text(result: CallToolResult) -> str:
    return " ".join(block.text for block in result.content if isinstance(block, TextContent))
