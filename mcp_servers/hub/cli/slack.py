"""The commands for who sets Slack up: `slack check` asks Slack about everything and waits for a real click, `slack manifest` prints the app."""

from __future__ import annotations

import asyncio
import secrets
import sys
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import click
import orjson

from approvals.people import People
from approvals.slack.checking import channels_of, findings, post_trial, trial_record
from approvals.slack.clicks import CHECK_CHANNEL
from approvals.slack.client import SlackApi
from approvals.slack.manifest import manifest as manifest_of
from approvals.slack.words import SlackRefused
from body_broker.errors import BadInput, NotConfigured
from body_broker.settings import Settings
from body_broker.work.link import Link
from mcp_servers.hub.approving import slack_of
from mcp_servers.hub.cli.context import data_dir_option, run, settings_of
from mcp_servers.hub.runtime import Runtime, open_runtime

_LINK_TIMEOUT_S = 10.0


@click.group()
def slack() -> None:
    """Set Slack up, and see that it works."""


@slack.command()
@click.option("--url", default=None, metavar="URL", help="The hub's https URL, for clicks over signed HTTP.")
def manifest(url: str | None) -> None:
    """Print the manifest of the Slack app, to be pasted into Slack."""
    if url is not None and not url.startswith("https://"):
        raise BadInput("Slack sends clicks to https URLs only.", next_step="Leave --url out to use Socket Mode.")
    click.echo(manifest_of(url), nl=False)


@slack.command()
@click.option("--wait", "wait_s", default=120, show_default=True, help="Seconds for a click on the test card.")
@click.option("--card/--no-card", default=True, help="Whether to post a test card and wait for a click on it.")
@data_dir_option
def check(wait_s: int, card: bool, data_dir: Path | None) -> None:  # noqa: FBT001 - click passes it by name
    """Ask Slack about token, scopes, channels and approvers, then post a test card; exit code 1 where something is wrong."""
    settings = settings_of(data_dir)
    if settings.slack_bot_token is None:
        raise NotConfigured(
            "BODY_BROKER_SLACK_BOT_TOKEN is not set.",
            next_step="docs/approvals.md has the five minutes from nothing to a click; `body-broker slack manifest` is the first.",
            details={"setting": "BODY_BROKER_SLACK_BOT_TOKEN"},
        )
    if not run(_check(settings, wait_s if card else None)):
        sys.exit(1)


async def _check(settings: Settings, wait_s: int | None) -> bool:
    async with open_runtime(settings, name="cli") as runtime:
        approvals = runtime.approvals
        assert approvals.slack is not None, "the token is set"
        api, people = approvals.slack.api, approvals.people
        all_ok, has_token = True, False
        async with aclosing(findings(api, settings, people)) as found:
            async for finding in found:
                _tell(finding.name, finding.said, finding.next_step, ok=finding.ok)
                all_ok &= finding.ok
                has_token |= finding.name == "token" and finding.ok
        channels = channels_of(settings, people)
        if wait_s is None or not has_token or not channels:
            return all_ok
        return await _try_a_click(runtime, api, channels, wait_s) and all_ok


async def _try_a_click(runtime: Runtime, api: SlackApi, channels: Sequence[str], wait_s: int) -> bool:
    """Whether somebody clicked a test card in time, whichever process of this installation heard it."""
    value = secrets.token_urlsafe(16)
    async with _hearing(runtime, value) as clicked:
        try:
            places = [await post_trial(api, channel, value) for channel in channels]
        except SlackRefused as error:
            _tell("card", f"it could not be posted: Slack says {error.word}", "Mend what is named above.", ok=False)
            return False
        click.echo(f"...     card      posted to {', '.join(channels)}; click its button within {wait_s} s")
        try:
            user = await asyncio.wait_for(clicked, wait_s)
            said = f"clicked by {_who(user, runtime.approvals.people)}"
        except TimeoutError:
            said = None
        try:
            record = trial_record(f"It was {said}." if said else "Nobody clicked in time.")
            for place in places:
                await api.update(place, "A test of body-broker.", record)
        except SlackRefused as error:
            _tell("card", f"it could not be changed: Slack says {error.word}", "Was it deleted?", ok=False)
            return False
    _tell("card", said or "no click arrived", _no_click(runtime.settings), ok=said is not None)
    return said is not None


def _no_click(settings: Settings) -> str:
    if settings.slack_app_token is not None:
        return (
            "Did Slack show a warning beside the button? Turn Interactivity and Socket Mode on in the app's settings."
        )
    return "Over signed HTTP a hub must be serving with this database, at the request URL that the app's settings name."


@asynccontextmanager
async def _hearing(runtime: Runtime, value: str) -> AsyncGenerator[asyncio.Future[str]]:
    """The member id of who clicks the card with this value. Slack sends a click to any one connection: that process tells all."""
    clicked: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    def heard(payload: str) -> None:
        word: dict[str, Any] = orjson.loads(payload)
        if word["value"] == value and not clicked.done():
            clicked.set_result(word["user"])

    link = Link(
        runtime.stores.database_url,
        name="body-broker slack check",
        timeout_s=_LINK_TIMEOUT_S,
        heard=heard,
        lost=lambda: None,
        channel=CHECK_CHANNEL,
    )
    try:
        async with (
            link.connection(),
            # Also real clicks that come here while it is open are counted.
            slack_of(runtime.settings, runtime.stores, runtime.approvals, listen=True),
        ):
            yield clicked
    finally:
        await link.close()


def _who(user: str, people: People) -> str:
    person = people.by_slack(user)
    return f"{user}, {person}" if person else f"{user}, who is nobody in the file of approvers"


def _tell(name: str, said: str, next_step: str, *, ok: bool) -> None:
    click.echo(f"{'ok' if ok else 'FAILED':<7} {name:<9} {said}")
    if not ok and next_step:
        click.echo(f"{'':<7} {'':<9} {next_step}")
