"""The commands `tools` and `call`: what somebody is shown, and one call as them, through the same gate as any client's."""

from __future__ import annotations

import json
import sys
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import click

from approvals.model import WORK_KIND
from body_broker.calls import Progress
from body_broker.errors import BadInput, BodyBrokerError
from body_broker.settings import Settings
from mcp_servers.cybersecurity.jobs import SCAN
from mcp_servers.hub.cli.context import as_option, data_dir_option, principal_of, run, settings_of
from mcp_servers.hub.requests import Request
from mcp_servers.hub.runtime import open_runtime
from mcp_servers.hub.wire import tool_error, tool_result
from mcp_servers.hub.worker import working


@click.command()
@as_option
@click.option(
    "--tools",
    "profile",
    type=click.Choice(["core", "all"]),
    default=None,
    help="Which catalogue profile (default core).",
)
@click.option("--json", "as_json", is_flag=True, help="Whole definitions, as tools/list sends them.")
@data_dir_option
def tools(principal: str, profile: str | None, data_dir: Path | None, *, as_json: bool) -> None:
    """List what somebody may call or ask for."""
    click.echo(run(_tools(settings_of(data_dir, tools=profile), principal_of(principal), as_json=as_json)))


async def _tools(settings: Settings, principal: str, *, as_json: bool) -> str:
    async with open_runtime(settings, name="cli") as runtime:
        listing = runtime.listings.of(await runtime.identities.local(principal, over="cli"))
    if as_json:
        return json.dumps(
            [t.model_dump(by_alias=True, mode="json", exclude_none=True) for t in listing.tools], indent=2
        )
    width = max((len(t.name) for t in listing.tools), default=0)
    lines = [f"{t.name:{width}}  {(t.description or '').partition('. ')[0]}" for t in listing.tools]
    lines += [f"{r.uri_template}  {r.title}" for r in listing.templates] + [
        f"{r.uri}  {r.title}" for r in listing.resources
    ]
    return "\n".join([*lines, *(f"prompt {p.name}  {p.title}" for p in listing.prompts)])


@click.command()
@click.argument("tool")
@click.argument("arguments", default="{}", metavar="JSON")
@as_option
@click.option("--json", "as_json", is_flag=True, help="The structured result instead of its text.")
@data_dir_option
def call(tool: str, arguments: str, principal: str, data_dir: Path | None, *, as_json: bool) -> None:
    """Call TOOL with JSON arguments as somebody; exit code 1 where it is refused or fails."""
    try:
        given = json.loads(arguments)
    except (ValueError, RecursionError) as error:
        raise BadInput(
            "The arguments are not JSON.", next_step='Quote them for the shell: \'{"query": "..."}\'.'
        ) from error
    result = run(_call(settings_of(data_dir), principal_of(principal), tool, given))
    click.echo(json.dumps(result.get("structuredContent"), indent=2) if as_json else _text(result["content"]))
    sys.exit(1 if result.get("isError") else 0)


def _text(blocks: list[dict[str, Any]]) -> str:
    """Every block: an answer of a server of others has several, the first of which says whose words follow."""
    return "\n".join(block["text"] if block["type"] == "text" else f"[{block['type']}]" for block in blocks)


def _said() -> Progress:
    """Progress for a terminal: each new line once, on stderr."""
    last: list[str] = []

    async def say(done: float, total: float | None = None, message: str | None = None) -> None:
        del done, total
        if message and last != [message]:
            last[:] = [message]
            click.echo(message, err=True)

    return say


async def _call(settings: Settings, principal: str, tool: str, arguments: Any) -> dict[str, Any]:  # any JSON value
    async with open_runtime(settings, name="cli") as runtime:
        caller = await runtime.identities.local(principal, over="cli")
        await runtime.services.world.load()  # a command does not follow the world, it reads it once
        async with AsyncExitStack() as stack:
            if settings.embedded:  # where no hub is up, nobody else would scan, or run what is approved meanwhile
                await stack.enter_async_context(working(runtime, (SCAN, WORK_KIND)))
            try:
                return tool_result(
                    await runtime.gate.run(
                        Request(name=tool, kind="tool", arguments=arguments, caller=caller, progress=_said())
                    )
                )
            except BodyBrokerError as error:
                return tool_error(error)
