"""The command `connect`: prints, or writes, the configuration that makes an MCP client use this hub."""

from __future__ import annotations

import base64
import getpass
import json
import re
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any
from urllib.parse import quote

import click

from body_broker.errors import Conflict
from mcp_servers.hub.cli.context import data_dir_option

NAME = "body-broker"
CLIENTS = ("claude-code", "cursor", "vscode", "json")


Server = dict[str, Any]  # one server's entry of a client's configuration, as JSON


def stdio_server(who: str, data_dir: Path | None = None) -> Server:
    """The `command` and `args` of a client's configuration for this installation of the hub over stdio."""
    beside = Path(sys.executable).with_name(NAME)  # the console script of the environment that runs this
    found = str(beside) if beside.is_file() else shutil.which(NAME) or NAME
    where = ["--data-dir", str(data_dir.resolve())] if data_dir else []
    return {"command": found, "args": ["serve", "--stdio", "--as", who, *where]}


def http_server(url: str, token: str) -> Server:
    """The same over HTTP with a token."""
    return {"type": "http", "url": url, "headers": {"Authorization": f"Bearer {token}"}}


def me() -> str:
    """This account as a person the hub knows: `person:anna`."""
    return "person:" + (re.sub(r"[^a-z0-9._-]", "-", getpass.getuser().lower()).strip("-._") or "me")


def claude_command(server: Server) -> str:
    """The `claude mcp add` line for a server's configuration."""
    if "url" in server:
        header = shlex.quote(f"Authorization: {server['headers']['Authorization']}")
        return f"claude mcp add --transport http {NAME} {server['url']} --header {header}"
    return f"claude mcp add {NAME} -- {shlex.join([server['command'], *server['args']])}"


def rendered(client: str, server: Server) -> str:
    """What to paste into a client: a command, or the JSON file and a link that installs it."""
    compact = json.dumps(server, separators=(",", ":"))
    if client == "claude-code":
        return claude_command(server)
    if client == "cursor":
        link = f"cursor://anysphere.cursor-deeplink/mcp/install?name={NAME}&config={base64.b64encode(compact.encode()).decode()}"
        return f"{_file_text('mcpServers', server)}\n\nin ~/.cursor/mcp.json or .cursor/mcp.json; or open {link}"
    if client == "vscode":
        link = f"vscode:mcp/install?{quote(json.dumps({'name': NAME, **server}, separators=(',', ':')))}"
        return f"{_file_text('servers', server)}\n\nin .vscode/mcp.json; or open {link}"
    return _file_text("mcpServers", server)


def _file_text(key: str, server: Server) -> str:
    return json.dumps({key: {NAME: server}}, indent=2)


_FILES = {
    "claude-code": (".mcp.json", "mcpServers"),
    "cursor": (".cursor/mcp.json", "mcpServers"),
    "vscode": (".vscode/mcp.json", "servers"),
}


def write(client: str, server: Server, folder: Path) -> Path:
    """Add the server to the client's file in a project folder, leaving whatever else stands there; returns the file.

    Raises:
        Conflict: The file there is not JSON.
    """
    name, key = _FILES.get(client, (".mcp.json", "mcpServers"))
    file = folder / name
    found: dict[str, dict[str, Server]] = {}
    if file.exists():
        try:
            found = json.loads(file.read_text("utf-8"))
            found.setdefault(key, {})
        except (ValueError, AttributeError) as error:
            raise Conflict(
                f"{name} is there and is not JSON.", next_step="Mend or move it, then run this again."
            ) from error
    found.setdefault(key, {})[NAME] = server
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(found, indent=2) + "\n", "utf-8")
    return file


@click.command()
@click.argument("client", type=click.Choice(CLIENTS))
@click.option(
    "--as", "principal", default=None, metavar="WHO", help="Who calls over stdio (default: person:YOUR-ACCOUNT)."
)
@click.option("--url", default=None, help="Connect over HTTP to this hub instead.")
@click.option("--token", default=None, help="The token for --url (`body-broker token issue`).")
@click.option(
    "--write",
    "folder",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    default=None,
    help="Write it into this project folder.",
)
@data_dir_option
def connect(
    client: str,
    principal: str | None,
    url: str | None,
    token: str | None,
    folder: Path | None,
    data_dir: Path | None,
) -> None:
    """Show how CLIENT connects to this hub: stdio by default, HTTP with --url and --token."""
    if bool(url) != bool(token):
        raise click.UsageError("--url and --token go together.")
    server = http_server(url, token) if url and token else stdio_server(principal or me(), data_dir)
    if folder is not None:
        click.echo(f"Written to {write(client, server, folder)}")
    else:
        click.echo(rendered(client, server))
