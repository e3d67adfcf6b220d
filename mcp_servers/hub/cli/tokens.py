"""The command `token`: the local issuer's tokens and keys, for operators; every use is on the audit."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from datetime import UTC
from pathlib import Path
from typing import TypeVar

import click

from body_broker.errors import Detail
from body_broker.settings import Settings
from body_broker.storage.stores import open_stores
from mcp_servers.hub.cli.context import data_dir_option, operator, record, run, settings_of
from mcp_servers.hub.oidc.logins import Logins
from mcp_servers.hub.runtime import open_runtime
from mcp_servers.hub.tokens import Tokens

T = TypeVar("T")
_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86400}


class Duration(click.ParamType[int]):
    """A duration such as 45m or 12h, in seconds."""

    name = "duration"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Seconds."""
        if isinstance(value, int):
            return value
        found = re.fullmatch(r"(\d{1,9})([smhd])", str(value))
        if not found:
            self.fail(f"{value} is not a duration such as 45m, 12h or 7d.", param, ctx)
        return int(found[1]) * _UNITS_S[found[2]]


@click.group()
def token() -> None:
    """Issue and revoke tokens, rotate the signing key."""


@token.command()
@click.option("--tier", type=click.Choice(["gold", "silver", "bronze"]), help="For an inference tier.")
@click.option("--person", metavar="NAME", help="For a person.")
@click.option("--service", metavar="NAME", help="For a service, such as the game server.")
@click.option(
    "--role",
    "roles",
    multiple=True,
    help="Give a person this role from now on (designer, engineer, sre, security, admin).",
)
@click.option("--ttl", "ttl_s", type=Duration(), default="12h", show_default=True, help="How long it is valid.")
@data_dir_option
def issue(
    tier: str | None, person: str | None, service: str | None, roles: tuple[str, ...], ttl_s: int, data_dir: Path | None
) -> None:
    """Print a new token."""
    named = [f"{kind}:{name}" for kind, name in (("tier", tier), ("person", person), ("service", service)) if name]
    if len(named) != 1:
        raise click.UsageError("Name exactly one of --tier, --person, --service.")
    details: dict[str, Detail] = {"principal": named[0], "roles": list(roles), "ttl_s": ttl_s}
    settings = settings_of(data_dir)
    issued = run(
        _with_tokens(
            settings, "token issue", details, lambda t: t.issue(named[0], roles=roles, ttl_s=ttl_s, by=operator())
        )
    )
    click.echo(issued.token)
    click.echo(f"id {issued.jti}, roles {', '.join(sorted(issued.roles)) or 'none'}, valid {ttl_s} s", err=True)


@token.command()
@click.option(
    "--id", "token_id", metavar="JTI", help="Only the token with this id, or the OIDC login that `token logins` shows."
)
@click.option("--principal", metavar="WHO", help="Every token of tier:…, person:… or service:…; its session ends.")
@data_dir_option
def revoke(token_id: str | None, principal: str | None, data_dir: Path | None) -> None:
    """End a token, or everything a principal holds; every hub refuses it within five seconds."""
    if bool(token_id) == bool(principal):
        raise click.UsageError("Name either --id or --principal.")
    details: dict[str, Detail] = {"token": token_id, "principal": principal}
    run(
        _with_tokens(
            settings_of(data_dir),
            "token revoke",
            details,
            lambda t: t.revoke(jti=token_id, principal=principal, by=operator()),
        )
    )
    click.echo("Revoked.")


@token.command()
@data_dir_option
def logins(data_dir: Path | None) -> None:
    """Print who logged in at the OIDC issuer, newest first; the first word of a line is what `revoke --id` takes."""
    for line in run(_logins(settings_of(data_dir))):
        click.echo(line)


@token.command()
@data_dir_option
def rotate(data_dir: Path | None) -> None:
    """Sign with a new key from now on; tokens signed by the old one stay valid until they end."""
    run(_with_tokens(settings_of(data_dir), "token rotate", {}, lambda t: t.rotate()))
    click.echo("Rotated.")


async def _logins(settings: Settings) -> list[str]:
    async with open_stores(settings, name="cli") as stores:
        return [
            f"{found.session}  {found.person:30} {'ended' if found.ended else 'alive'}  newest token "
            f"{found.issued_at.astimezone(UTC):%Y-%m-%d %H:%M:%S}  {', '.join(found.roles) or 'no role'}"
            for found in await Logins(stores.pool).newest()
        ]


async def _with_tokens(
    settings: Settings, action: str, details: dict[str, Detail], do: Callable[[Tokens], Awaitable[T]]
) -> T:
    async with open_runtime(settings, name="cli") as runtime:
        await record(runtime, action, details)
        return await do(runtime.tokens)
