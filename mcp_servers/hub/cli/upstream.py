"""The command `upstream`: MCP servers of others joined to this hub, looked at, logged in to, accepted and taken out."""

from __future__ import annotations

import re
import sys
from datetime import UTC, datetime
from pathlib import Path

import click

from body_broker.calls import Room
from body_broker.errors import ApprovalPending, BadInput, Conflict, NotFound, SettingsError
from body_broker.settings import Settings
from body_broker.text import quoted
from mcp_servers.hub.cli.approvals import vote
from mcp_servers.hub.cli.context import data_dir_option, record, run, settings_of
from mcp_servers.hub.cli.proving import at_terminal, check_person, code_option, person_option
from mcp_servers.hub.cli.upstream_looks import Look, credentials_of, look_at, withheld
from mcp_servers.hub.requests import Patience, Request
from mcp_servers.hub.rooms import ROOMS
from mcp_servers.hub.runtime import Runtime, open_runtime
from mcp_servers.hub.upstream_tools import ACCEPT, HUB
from mcp_servers.upstreams.auth import TOKEN, variable
from mcp_servers.upstreams.login import login as log_in
from mcp_servers.upstreams.model import NAME, Auth, Kind, Pin, Upstream
from mcp_servers.upstreams.pins import Pins
from mcp_servers.upstreams.reading import file_of, looks_secret, upstreams_of
from mcp_servers.upstreams.standing import Stands, asked_about, forget, standing
from mcp_servers.upstreams.writing import add_section, remove_section

_STATES = ("pinned", "changed", "new", "gone")
_SECRET_MAX = 16_384
_SERVED = "A hub that is up has read the file already: start it again, and it serves this server too."


def names_taken(rooms: tuple[Room, ...] = ROOMS) -> frozenset[str]:
    """The names of our rooms and of their operations."""
    return frozenset({room.name for room in rooms} | {o.name for room in rooms for o in room.operations()})


@click.group()
def upstream() -> None:
    """MCP servers of others, joined behind this hub's policy and audit."""


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
    """Join the server NAME: a COMMAND after `--` that speaks MCP over stdio, or a --url.

    It is connected at once: what it offers then is pinned, and whatever differs later is withheld. Exits with 1 where it cannot be
    connected; its section stays, and `body-broker upstream test NAME` tries again.
    """
    found = Upstream(name=name, command=command, url=url, auth=auth, env=_env(pairs), secret_env=secrets)
    settings = settings_of(data_dir)
    look = run(_add(settings, found))
    click.echo(f"{name} is joined in {file_of(settings)}.")
    if look is None:
        click.echo(f"It is not connected yet: give it what it needs first.\n{_wanted(found)}")
        return
    _show(look, name)


async def _add(settings: Settings, found: Upstream) -> Look | None:
    if not re.fullmatch(NAME, found.name):
        raise SettingsError(
            "That is no name for a server.",
            next_step="Take small letters, digits and _, a letter first, at most 31 characters.",
        )
    async with open_runtime(settings, name="cli") as runtime:
        await record(runtime, "upstream add", {"name": found.name, "over": "stdio" if found.command else "http"})
        add_section(file_of(settings), found, taken=names_taken())
        return await look_at(runtime, found) if found.auth == "none" and not found.secret_env else None


def _wanted(found: Upstream) -> str:
    """The commands that give a server what it is to be shown."""
    if found.auth == "oauth":
        return f"  body-broker upstream login {found.name}"
    if found.auth == "token":
        return f"  body-broker upstream token {found.name}"
    return "\n".join(f"  body-broker upstream token {found.name} --env {each}" for each in found.secret_env)


def _show(look: Look, name: str) -> None:
    """What came of a first look; ends the command with 1 where there was none."""
    click.echo(look.text())
    if not look.reached:
        click.echo(
            f"{name} stays in the file, and nothing of it is pinned. Once that is mended: body-broker upstream test {name}"
        )
        sys.exit(1)
    click.echo("Say in the file what its operations are, such as:")
    click.echo(f'  [{name}.tools."NAME OF A TOOL THAT ONLY READS"]\n  group = "retrieval"')
    click.echo(_SERVED)


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
    """Show the joined servers: what of each is pinned, what is withheld and why, and when it was last seen."""
    click.echo("\n\n".join(run(_list(settings_of(data_dir)))))


async def _list(settings: Settings) -> list[str]:
    joined = upstreams_of(settings, taken=names_taken())
    async with open_runtime(settings, name="cli") as runtime:
        found, pins = await standing(runtime.stores.pool), await Pins(runtime.stores.pool).read()
    if not joined:
        return ["No server of others is joined: `body-broker upstream add NAME --url URL` joins one."]
    return [_entry(each, found.get(each.name), pins.get(each.name, ())) for each in joined]


def _entry(each: Upstream, found: Stands | None, pins: tuple[Pin, ...]) -> str:
    lines = [f"{each.name}  {each.url or ' '.join(each.command)}"]
    if found is None:
        return "\n".join([*lines, f"  never seen: body-broker upstream test {each.name}, or a hub's start"])
    counts = ", ".join(f"{found.counts[state]} {state}" for state in _STATES if state in found.counts)
    lines.append(f"  {counts or 'offers nothing'}; first seen {_at(found.first_seen_at)}, last {_at(found.looked_at)}")
    lines.append(f"  {quoted(found.server or 'no name', limit=100)}, speaks {found.protocol}")
    if found.failed_at and found.failing:
        lines.append(f"  failing since {_at(found.failed_at)}: {found.failure}")
    for problem in withheld(pins):
        lines += [f"  {problem.what}", f"    {problem.next_step}"]
    return "\n".join(lines)


def _at(when: datetime) -> str:
    return f"{when.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"


@upstream.command()
@click.argument("name")
@data_dir_option
def test(name: str, data_dir: Path | None) -> None:
    """Connect to NAME, list what it offers, hold that against the pins, and say each problem with what to do; exits with 1 on any.

    What it finds counts as a look of a hub: seen for the first time, it is pinned; what differs is withheld.
    """
    look = run(_test(settings_of(data_dir), name))
    click.echo(look.text())
    if look.problems:
        sys.exit(1)
    click.echo(f"{name} is well.")


async def _test(settings: Settings, name: str) -> Look:
    async with open_runtime(settings, name="cli") as runtime:
        found = _joined(settings, name)
        await record(runtime, "upstream test", {"name": name})
        return await look_at(runtime, found, twice=True)


def _joined(settings: Settings, name: str) -> Upstream:
    for each in upstreams_of(settings, taken=names_taken()):
        if each.name == name:
            return each
    raise NotFound(
        f"No server of the name {quoted(name)} is joined.",
        next_step="`body-broker upstream list` shows those that are.",
    )


@upstream.command()
@click.argument("name")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=0, help="Where the login comes back to on this machine; 0 is any."
)
@click.option("--client-id", default=None, help="Where the server knows this hub already; else the hub registers.")
@click.option("--client-secret-stdin", "secret", is_flag=True, help="Read the client's secret from standard input.")
@data_dir_option
def login(name: str, port: int, client_id: str | None, data_dir: Path | None, *, secret: bool) -> None:
    """Log the hub in to NAME by OAuth: open the page that is shown here, on this machine, and allow it there."""
    given = _secret("The client's secret") if secret else None
    look = run(_login(settings_of(data_dir), name, port, client_id, given))
    click.echo("The hub is logged in; the grant is kept sealed, and renewed by itself.")
    _show(look, name)


async def _login(settings: Settings, name: str, port: int, client_id: str | None, secret: str | None) -> Look:
    async with open_runtime(settings, name="cli") as runtime:
        found = _joined(settings, name)
        if found.auth != "oauth":
            raise Conflict(
                f"{name} takes no login: its auth is {found.auth}.", next_step='Write auth = "oauth" into its section.'
            )
        await record(runtime, "upstream login", {"name": name})
        await log_in(
            found,
            credentials_of(runtime, name),
            show=lambda url: click.echo(
                f"Open this page in a browser on this machine, and allow it there:\n\n  {url}\n"
            ),
            port=port,
            client_id=client_id,
            client_secret=secret,
        )
        return await look_at(runtime, found)


@upstream.command()
@click.argument("name")
@click.option("--env", "name_of", default=None, metavar="K", help="The value of this variable of its secret_env.")
@data_dir_option
def token(name: str, name_of: str | None, data_dir: Path | None) -> None:
    """Give the hub the token that NAME takes, or a secret variable of its program: typed unseen, or one line on standard input."""
    settings = settings_of(data_dir)
    found = _joined(settings, name)
    _check_wants(found, name_of)
    look = run(_token(settings, found, name_of, _secret(name_of or "Token")))
    click.echo("It is kept sealed; hubs that are up have it from their next connection on.")
    _show(look, name)


def _check_wants(found: Upstream, name_of: str | None) -> None:
    if name_of is None and found.auth != "token":
        raise Conflict(
            f"{found.name} takes no token: its auth is {found.auth}.",
            next_step='Write auth = "token" into its section, or name a variable of its secret_env with --env.',
        )
    if name_of is not None and name_of not in found.secret_env:
        raise Conflict(
            f"{quoted(name_of)} is not in the secret_env of {found.name}.",
            next_step="Name it there in its section first.",
        )


async def _token(settings: Settings, found: Upstream, name_of: str | None, secret: str) -> Look:
    async with open_runtime(settings, name="cli") as runtime:
        await record(runtime, "upstream token", {"name": found.name, "for": name_of or "the token"})
        await credentials_of(runtime, found.name).put(TOKEN if name_of is None else variable(name_of), secret)
        return await look_at(runtime, found)


def _secret(what: str) -> str:
    """Typed unseen, else one line of standard input; never an argument, which every account of the machine can read."""
    if at_terminal():
        found: str = click.prompt(what, hide_input=True)
    else:
        found = sys.stdin.readline(_SECRET_MAX + 2) if sys.stdin else ""
    found = found.strip()
    if not found or len(found) > _SECRET_MAX or not found.isprintable():
        raise BadInput(
            "That is no secret: it is empty, too long, or holds characters that cannot be seen.",
            next_step="Write it as one line to standard input, or type it at a terminal.",
        )
    return found


@upstream.command()
@click.argument("name")
@click.argument("kind", type=click.Choice(["tool", "prompt", "resource", "template"]))
@click.argument("item")
@person_option
@code_option
@data_dir_option
def accept(name: str, kind: Kind, item: str, person: str, code: str | None, data_dir: Path | None) -> None:
    """See how ITEM of NAME differs from what was accepted, and say yes as somebody whom the policy lets decide that.

    It is the approval that the hub asks for by itself: the difference, the rules and the second factor are the same here.
    """
    settings, who = settings_of(data_dir), check_person(person)
    approval = run(_approval(settings, name, kind, item))
    run(vote(settings, approval, who, code, "approve", None))


async def _approval(settings: Settings, name: str, kind: Kind, item: str) -> str:
    """The request by which people are asked about it: the one that is open, else a new one of the hub's own."""
    async with open_runtime(settings, name="cli") as runtime:
        _joined(settings, name)
        pin = await Pins(runtime.stores.pool).find(name, kind, item)
        if pin is None:
            raise NotFound(
                f"{name} was never seen to offer such a {kind}.",
                next_step="Write its name as the server has it: `body-broker upstream list` shows what is withheld.",
            )
        if pin.seen is None:
            raise Conflict(
                "It is served as it was accepted."
                if pin.state == "pinned"
                else "The server does not offer it any more.",
                next_step="There is nothing to accept.",
            )
        return await asked_about(runtime.stores.pool, pin) or await _asked_anew(runtime, pin)


async def _asked_anew(runtime: Runtime, pin: Pin) -> str:
    assert pin.seen is not None
    if before := await asked_about(runtime.stores.pool, pin, ended=True):
        await runtime.approvals.desk.take(before)  # its end is known here: the same call opens another one
    await record(runtime, "upstream accept", {"name": pin.upstream, "kind": pin.kind})
    arguments = {"upstream": pin.upstream, "kind": pin.kind, "name": pin.name, "digest": pin.seen.digest}
    asking = Request(name=ACCEPT, kind="tool", arguments=arguments, caller=HUB, patience=Patience(wait_s=0))
    try:
        await runtime.gate.run(asking)
    except ApprovalPending as pending:
        approval = str(pending.details["approval"])
        await Pins(runtime.stores.pool).asked(pin.upstream, pin.kind, pin.name, pin.seen.digest, approval)
        return approval
    raise Conflict("It is accepted already.", next_step=f"`body-broker upstream test {pin.upstream}` shows it.")


@upstream.command()
@click.argument("name")
@data_dir_option
def remove(name: str, data_dir: Path | None) -> None:
    """Take the server NAME out of the file; forget what was pinned of it, and its secrets."""
    run(_remove(settings_of(data_dir), name))
    click.echo(f"{name} is gone. A hub that is up still has it from the file as it was: start it again.")


async def _remove(settings: Settings, name: str) -> None:
    async with open_runtime(settings, name="cli") as runtime:
        await record(runtime, "upstream remove", {"name": name})
        remove_section(file_of(settings), name, taken=names_taken())
        await forget(runtime.stores.pool, name)
