"""The command `approvals`: what waits for people, and deciding it in the terminal, always with the second factor."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import click

from approvals.cards import Card, named
from approvals.desk import Desk
from approvals.factors import Proof
from approvals.model import WORK_KIND, Approval, Standing, Verdict, Voter
from approvals.voting import could_help
from body_broker.errors import Conflict, NotFound
from body_broker.settings import Settings
from body_broker.work.model import Verdict as Finding
from mcp_servers.hub.cli.context import data_dir_option, run, settings_of
from mcp_servers.hub.cli.proving import check_person, code_option, person_option, proved
from mcp_servers.hub.runtime import Runtime, open_runtime
from mcp_servers.hub.worker import working

_OPEN: tuple[Standing, ...] = ("pending", "approved", "executing", "unknown")
_TAKEN_UP_S, _DONE_S = 3.0, 30.0
_SHOWN_MAX = 50


@click.group()
def approvals() -> None:
    """Calls that wait for people: see them, and decide them here where the rule lets a terminal decide."""


@approvals.command(name="list")
@click.option("--as", "person", default=None, metavar="person:NAME", help="Only what this person could say yes to.")
@click.option("--all", "everything", is_flag=True, help="What is over too.")
@data_dir_option
def list_(person: str | None, data_dir: Path | None, *, everything: bool) -> None:
    """Show what waits, for whom, and who may decide it."""
    who = None if person is None else check_person(person)
    click.echo("\n\n".join(run(_list(settings_of(data_dir), who, everything=everything))))


async def _list(settings: Settings, person: str | None, *, everything: bool) -> list[str]:
    async with open_runtime(settings, name="cli") as runtime:
        desk = runtime.approvals.desk
        if person is not None:
            found = await desk.waiting_for(person)
            nothing = f"Nothing waits that {person} could say yes to."
        else:
            found = await desk.everything(limit=_SHOWN_MAX, standings=() if everything else _OPEN)
            nothing = "Nobody was ever asked for anything." if everything else "Nothing waits for anybody."
        lines = [_entry(runtime, each) for each in found]
        if not await runtime.approvals.factors.begun():
            lines.append("Nobody is enrolled, so nobody can decide here: body-broker mfa enroll --as person:NAME.")
    return lines or [nothing]


def _entry(runtime: Runtime, approval: Approval) -> str:
    card = _card(runtime, approval)
    lines = [
        f"{approval.id}  {approval.standing}",
        f"  {card.headline}",
        f"  asked by {card.requester}" + "".join(f", for {each}" for each in card.on_behalf_of),
    ]
    if card.is_open:
        minutes = max(0, round((approval.expires_at - datetime.now(UTC)).total_seconds() / 60))
        lines += [f"  waits {minutes} min more: {rule.text}" for rule in card.rules if not rule.met]
        lines.append(f"  may say yes: {', '.join(_could(runtime, approval)) or 'nobody that approvers.toml names'}")
    elif card.record:
        lines.append(f"  {card.record}")
    return "\n".join([*lines, f"  fingerprint {card.fingerprint}"])


def _could(runtime: Runtime, approval: Approval) -> list[str]:
    people, said = runtime.approvals.people, {vote.voter for vote in approval.votes}
    everybody = {*people.persons, approval.asker} - said
    return [named(each, people) for each in sorted(everybody) if could_help(approval, each, people.groups_of(each))]


@approvals.command()
@click.argument("approval", metavar="ID")
@data_dir_option
def show(approval: str, data_dir: Path | None) -> None:
    """Show ID whole: who asks, why, every argument with nothing hidden in it, what it would change, and the fingerprint."""
    click.echo(run(_show(settings_of(data_dir), approval)))


async def _show(settings: Settings, approval: str) -> str:
    async with open_runtime(settings, name="cli") as runtime:
        return _card(runtime, await _get(runtime, approval)).text()


@approvals.command()
@click.argument("approval", metavar="ID")
@person_option
@code_option
@data_dir_option
def approve(approval: str, person: str, code: str | None, data_dir: Path | None) -> None:
    """Say yes to the call ID, as somebody with a code of theirs; it runs once everybody it needs has."""
    run(vote(settings_of(data_dir), approval, check_person(person), code, "approve", None))


@approvals.command()
@click.argument("approval", metavar="ID")
@person_option
@code_option
@click.option("--reason", required=True, metavar="TEXT", help="Why; the agent is told.")
@data_dir_option
def deny(approval: str, person: str, code: str | None, reason: str, data_dir: Path | None) -> None:
    """Say no to the call ID; one no ends it, and whoever asked is told why."""
    run(vote(settings_of(data_dir), approval, check_person(person), code, "deny", reason))


async def vote(
    settings: Settings, approval_id: str, person: str, code: str | None, verdict: Verdict, reason: str | None
) -> None:
    """Show a call whole, and count this person's vote on exactly that, once they have proved who they are.

    Raises:
        BodyBrokerError: The vote does not count.
    """
    async with open_runtime(settings, name="cli") as runtime:
        shown = await _get(runtime, approval_id)
        click.echo(_card(runtime, shown).text() + "\n")
        if shown.standing == "pending" and code is None and verdict == "approve" and shown.destructive:
            click.echo("This takes something away. Your code is your yes; Ctrl-C leaves it as it is.")
        proof = await proved(runtime, person, code, f"approvals {verdict}")
        decided = await decide(runtime.approvals.desk, shown, proof, verdict, reason)
        click.echo(said(runtime, decided))
        if decided.standing == "approved":
            click.echo(_card(runtime, await carried_out(runtime, decided)).record or "")


async def decide(desk: Desk, shown: Approval, proof: Proof, verdict: Verdict, reason: str | None = None) -> Approval:
    """The approval after a vote in this terminal, on exactly what was shown here.

    Raises:
        BodyBrokerError: The vote does not count; the sentence says why.
    """
    voter = Voter(person=proof.person, via="local", factor=proof.factor, evidence=proof.evidence)
    return await desk.vote(shown.id, digest=shown.digest, voter=voter, verdict=verdict, reason=reason)


def said(runtime: Runtime, approval: Approval) -> str:
    """What a vote has led to, in a line."""
    if approval.standing == "denied":
        return "Denied: it will not run, and whoever asked is told why."
    if approval.standing == "pending":
        rest = [rule.text for rule in _card(runtime, approval).rules if not rule.met]
        return f"Your yes counts. It still needs others: {'; '.join(rest)}."
    return "Approved."


async def carried_out(runtime: Runtime, approval: Approval) -> Approval:
    """The approval once it has run: by a hub or worker that is up, else, on the stores of this machine, by this command."""
    waiters = runtime.approvals.waiters
    found = await waiters.wait(approval.id, timeout_s=_TAKEN_UP_S)
    if found.standing == "executing":
        return await waiters.wait(approval.id, timeout_s=_DONE_S)
    if found.standing == "approved" and runtime.settings.embedded:
        await runtime.services.world.load()  # a command does not follow the world, it reads it once
        async with working(runtime, (WORK_KIND,)):
            return await waiters.wait(approval.id, timeout_s=_DONE_S)
    return found


@approvals.command()
@click.argument("approval", metavar="ID")
@person_option
@code_option
@click.option("--verdict", required=True, type=click.Choice(["succeeded", "failed", "again"]), help="What you found.")
@click.option("--note", required=True, metavar="TEXT", help="How you know; it stays on the record.")
@data_dir_option
def resolve(approval: str, person: str, code: str | None, verdict: Finding, note: str, data_dir: Path | None) -> None:
    """Settle the call ID that was cut off inside its effect: look whether it happened, and say so. `again` runs it once more."""
    click.echo(run(_resolve(settings_of(data_dir), approval, check_person(person), code, verdict, note)))


async def _resolve(
    settings: Settings, approval_id: str, person: str, code: str | None, verdict: Finding, note: str
) -> str:
    async with open_runtime(settings, name="cli") as runtime:
        shown = await _get(runtime, approval_id)
        if shown.standing != "unknown":
            raise Conflict(f"Nothing is to be settled: it is {shown.standing}.")
        click.echo(_card(runtime, shown).text() + "\n")
        proof = await proved(runtime, person, code, "approvals resolve")
        settled = await runtime.approvals.desk.settle(approval_id, by=proof.person, verdict=verdict, note=note)
        return _card(runtime, settled).record or settled.standing


async def _get(runtime: Runtime, approval_id: str) -> Approval:
    try:
        return await runtime.approvals.desk.get(approval_id)
    except NotFound as error:
        raise NotFound(
            "There is no approval by that id.", next_step="`body-broker approvals list --all` shows them."
        ) from error


def _card(runtime: Runtime, approval: Approval) -> Card:
    found = runtime.approvals
    return Card.of(approval, found.people, found.pages_url(), datetime.now(UTC))
