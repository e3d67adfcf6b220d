"""The command `mfa`: people's second factors, enrolled at the machine and counting once somebody enrolled has confirmed them."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from contextlib import suppress
from pathlib import Path

import click
import segno

from approvals.factors import FactorInfo, Factors, Invite
from approvals.people import PEOPLE_FILE, People, load_people
from body_broker.errors import BadInput, NotFound
from body_broker.settings import Settings
from mcp_servers.hub.cli.context import data_dir_option, operator, record, run, settings_of
from mcp_servers.hub.cli.proving import at_terminal, check_person, code_option, person_option, proved, read_unseen
from mcp_servers.hub.loopback import pages_open
from mcp_servers.hub.pages import make_site
from mcp_servers.hub.runtime import Runtime, open_runtime

_TRIES = 3
_LOOK_EVERY_S = 0.5
_AGREE = "Compare its id with what {person} was shown when they enrolled it: whoever confirms it vouches for that."


@click.group()
def mfa() -> None:
    """Second factors: what proves a person to this hub beside the machine it runs on."""


@mfa.command()
@person_option
@click.option("--totp", "kind", flag_value="totp", default="totp", help="An authenticator app (default).")
@click.option("--passkey", "kind", flag_value="passkey", help="A passkey, made in the browser by a one-time link.")
@click.option(
    "--label",
    default=None,
    metavar="TEXT",
    help="What an authenticator app is called, such as: phone; a passkey is named in the browser.",
)
@click.option(
    "--groups",
    default="sre,security,admin",
    metavar="G1,G2",
    help="Where nobody is enrolled and there is no approvers.toml: the groups that the one written here puts you in.",
)
@data_dir_option
def enroll(person: str, kind: str, label: str | None, groups: str, data_dir: Path | None) -> None:
    """Enrol a second factor. The first of an installation counts at once; a later one once an enrolled approver, or the same person with an earlier factor, confirmed it."""
    if kind == "totp" and not at_terminal():
        raise BadInput(
            "The secret is shown once, to the person at a terminal, and there is none here.",
            next_step="Run it in a terminal, or pass --passkey and open the link in a browser.",
        )
    wanted = [each.strip() for each in groups.split(",") if each.strip()]
    run(_enroll(settings_of(data_dir), check_person(person), kind, label, wanted))


async def _enroll(settings: Settings, person: str, kind: str, label: str | None, groups: list[str]) -> None:
    async with open_runtime(settings, name="cli") as runtime:
        factors = await _with_approvers(runtime, person, groups)
        invite = await factors.invite(person, by=operator())
        if kind == "passkey":
            await _by_link(runtime, invite)
            return
        info = await _by_code(factors, invite, label)
    click.echo(f"Enrolled {info.id}, an authenticator app of {person}.")
    click.echo(_next(info))


async def _by_code(factors: Factors, invite: Invite, label: str | None) -> FactorInfo:
    offer = await factors.begin_totp(invite.token)
    click.echo(f"Scan this with the authenticator app of {invite.person}; it is shown once:\n")
    draw_code(offer.uri)
    click.echo(f"\nOr type this into the app: {offer.secret}\n")
    for left in range(_TRIES - 1, -1, -1):
        code = await read_unseen("The code it shows now: ")
        try:
            return await factors.finish_totp(invite.token, code, label=label or "authenticator app")
        except BadInput as error:
            if not left:
                raise
            click.echo(f"{error.message} {error.next_step}", err=True)
    raise AssertionError("the last try returns or raises")


async def _with_approvers(runtime: Runtime, person: str, groups: list[str]) -> Factors:
    """The factors; where nobody is enrolled and no file names approvers, one is written first that names this person."""
    factors, settings = runtime.approvals.factors, runtime.settings
    file = settings.data_dir / PEOPLE_FILE
    if not settings.embedded or settings.approvers is not None or file.exists() or await factors.begun():
        return factors
    await record(runtime, "approvers write", {"person": person, "groups": groups})
    people = await asyncio.to_thread(_write, file, person, groups)
    click.echo(
        f"Wrote {file}: {person} may approve as {', '.join(groups)}. A hub that is running reads it when it starts again.\n"
        "docs/approvals.md says what else it may hold: more people, Slack ids, OIDC subjects.\n"
    )
    return Factors(
        pool=runtime.stores.pool,
        auditor=runtime.auditor,
        key=runtime.secrets.derive("factors"),
        people=people,
        rp=runtime.approvals.relying_party,
    )


def _write(file: Path, person: str, groups: list[str]) -> People:
    text = (
        "# Who may say yes, and in which groups; docs/approvals.md has the form. A hub reads it when it starts.\n"
        f'[people."{person.partition(":")[2]}"]\ngroups = {json.dumps(groups)}\n'
    )
    draft = file.with_name(f"{file.name}.new")
    draft.write_text(text, "utf-8")
    try:
        people = load_people(draft)  # groups that do not fit are told before anything counts
        os.link(draft, file)
    finally:
        draft.unlink()
    return people


def draw_code(uri: str) -> None:
    """Draw what an authenticator app scans."""
    small = (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
    segno.make(uri, error="l").terminal(compact=small)


def _next(info: FactorInfo) -> str:
    if info.standing == "counts":
        return (
            "It is the first of this installation, so it counts now; later ones are confirmed by you: body-broker mfa confirm ID.\n"
            "While nobody was enrolled, anybody at this machine could have been the first: `body-broker mfa list` shows who is."
        )
    return (
        f"It does not count yet. An approver who is enrolled runs: body-broker mfa confirm {info.id} --as person:NAME\n"
        "(or you do, with an earlier factor of yours). Tell them the id on another way than through an agent."
    )


async def _by_link(runtime: Runtime, invite: Invite) -> None:
    """Show the link, and wait until the browser has made the passkey: where no hub serves the pages, this command does."""
    factors, before = runtime.approvals.factors, {each.id for each in await runtime.approvals.factors.of(invite.person)}
    async with pages_open(runtime, make_site(runtime), {}):
        runtime.approvals.relying_party()  # refused before a link is shown that could not work
        link = f"{runtime.approvals.pages_url()}/enroll/{invite.token}"
        click.echo(f"Open this in the browser of {invite.person} within ten minutes; it works once:\n\n  {link}\n")
        click.echo("Waiting for it; Ctrl-C stops.")
        with suppress(NotFound):
            while await factors.invited(invite.token):  # noqa: ASYNC110 - another process may be the one that serves the page
                await asyncio.sleep(_LOOK_EVERY_S)
        made = [each for each in await factors.of(invite.person) if each.id not in before]
        if not made:
            raise NotFound("No passkey was made within ten minutes.", next_step="Run the command again for a new link.")
        await asyncio.sleep(_LOOK_EVERY_S)  # the browser still loads what it is told
    click.echo(f"Enrolled {made[-1].id}, a passkey of {invite.person}.")
    click.echo(_next(made[-1]))


@mfa.command(name="list")
@data_dir_option
def list_(data_dir: Path | None) -> None:
    """Show everybody's factors and how each stands."""
    for line in run(_list(settings_of(data_dir))):
        click.echo(line)


async def _list(settings: Settings) -> list[str]:
    async with open_runtime(settings, name="cli") as runtime:
        found = await runtime.approvals.factors.everybody()
    if not found:
        return ["Nobody is enrolled. The first factor needs nobody's word: body-broker mfa enroll --as person:NAME."]
    return [
        f"{each.id}  {each.person:20}  {each.kind:7}  {each.label:20}  {each.created_at:%Y-%m-%d %H:%M}  {_standing(each)}"
        for each in found
    ]


def _standing(info: FactorInfo) -> str:
    if info.standing == "waiting":
        return "does not count: waits for mfa confirm"
    by = {"counts": info.confirmed_by, "revoked": info.revoked_by}.get(info.standing)
    word = "counts, confirmed" if info.standing == "counts" else info.standing
    return f"{word} by {by}" if by else word


@mfa.command()
@click.argument("factor", metavar="ID")
@person_option
@code_option
@data_dir_option
def confirm(factor: str, person: str, code: str | None, data_dir: Path | None) -> None:
    """Let the factor ID count: said by an approver who is enrolled, or by its own person with an earlier factor."""
    done = run(_confirm(settings_of(data_dir), factor, check_person(person), code))
    click.echo(f"{done.id}, {done.label} of {done.person}, counts now.")


async def _confirm(settings: Settings, factor: str, person: str, code: str | None) -> FactorInfo:
    async with open_runtime(settings, name="cli") as runtime:
        factors = runtime.approvals.factors
        info = next((each for each in await factors.everybody() if each.id == factor), None)
        if info is not None:
            click.echo(
                f"{info.id}: {info.label} ({info.kind}) of {info.person}, enrolled {info.created_at:%Y-%m-%d %H:%M} UTC."
            )
            click.echo(_AGREE.format(person=info.person))
        return await factors.confirm(factor, by=await proved(runtime, person, code, "mfa confirm"))


@mfa.command()
@click.argument("factor", metavar="ID")
@click.option(
    "--as", "person", default=None, metavar="person:NAME", help="Who you are; a factor that only waits needs nobody."
)
@code_option
@data_dir_option
def revoke(factor: str, person: str | None, code: str | None, data_dir: Path | None) -> None:
    """End the factor ID for ever: on the word of its person or of an approver; one that waits on any operator's."""
    who = None if person is None else check_person(person)
    done, left = run(_revoke(settings_of(data_dir), factor, who, code))
    click.echo(f"{done.id} of {done.person} is revoked, and its secret is gone.")
    if not left:
        click.echo("Nobody is enrolled now: whoever enrols next, at this machine, needs nobody's word.")


async def _revoke(settings: Settings, factor: str, person: str | None, code: str | None) -> tuple[FactorInfo, bool]:
    async with open_runtime(settings, name="cli") as runtime:
        factors = runtime.approvals.factors
        by = operator() if person is None else await proved(runtime, person, code, "mfa revoke")
        return await factors.revoke(factor, by=by), await factors.begun()
