"""Owns the check of a set-up: what Slack says of token, scopes, channels and approvers, each with what to do where it is wrong."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass

from approvals.people import People
from approvals.slack.blocks import CHECK, Block, plain
from approvals.slack.client import SlackApi
from approvals.slack.manifest import SCOPES
from approvals.slack.words import Place, SlackRefused
from body_broker.settings import Settings

_MEND_BOT = "Take the token under OAuth & Permissions (xoxb-...) and set BODY_BROKER_SLACK_BOT_TOKEN."
_MEND_WAY = "Can this machine reach BODY_BROKER_SLACK_API_URL? A proxy is taken from HTTPS_PROXY."
_MEND_SCOPES = "Paste `body-broker slack manifest` into the app's manifest, save, and install the app again."
_MEND_SOCKET = (
    "Make an app-level token with connections:write under Basic Information, set BODY_BROKER_SLACK_APP_TOKEN, "
    "and turn Socket Mode on."
)
_MEND_INVITE = "Invite the app: `/invite @Body Broker` in that channel."
_MEND_CHANNEL = "Copy the id from the channel's details, at the bottom; it begins with C or G."
_MEND_GROUP = "Copy the id from the user group's details into approvers.toml; it begins with S."
_MEND_TEAM = "Take the id of their account in this workspace: a click from another workspace does not count."
_MEND_MEMBER = "Copy the member id from the person's profile, under the three dots, into approvers.toml."


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        name: What.
        ok: Whether it is right.
        said: What was found.
        next_step: What to do where it is not right.
    """

    name: str
    ok: bool
    said: str
    next_step: str = ""


async def findings(api: SlackApi, settings: Settings, people: People) -> AsyncGenerator[Finding]:
    """Everything that Slack can be asked, one after the other; nothing more where the token itself does not hold."""
    try:
        bot = await api.bot()
    except SlackRefused as error:
        if error.word == "unreachable":
            yield Finding("token", ok=False, said="Slack cannot be reached", next_step=_MEND_WAY)
        else:
            yield Finding("token", ok=False, said=f"Slack says {error.word}", next_step=_MEND_BOT)
        return
    yield Finding("token", ok=True, said=f"{bot.user} in workspace {bot.team_name} ({bot.team})")
    for what, enough in SCOPES.items():
        held = sorted(enough & bot.scopes)
        said = f"{', '.join(held)}: {what}" if held else f"{' or '.join(sorted(enough))} is missing: {what}"
        yield Finding("scope", ok=bool(held), said=said, next_step=_MEND_SCOPES)
    for finding in await _transports(api, settings):
        yield finding
    seen = _Seen(bot.team, {})
    channels = channels_of(settings, people)
    if not channels:
        yield Finding(
            "channel", ok=False, said="no channel is set", next_step=f"Set BODY_BROKER_SLACK_CHANNEL. {_MEND_CHANNEL}"
        )
    for channel in channels:
        yield await _channel(api, channel, seen.members)
    for finding in await _groups(api, people):
        yield finding
    if not people.persons:
        yield Finding(
            "approvers", ok=False, said="the file names nobody", next_step="Write approvers.toml: docs/approvals.md."
        )
    for principal in sorted(each for each, person in people.persons.items() if person.groups):
        yield await _approver(api, settings, people, principal, seen)


@dataclass(frozen=True, slots=True)
class _Seen:
    team: str
    members: dict[str, frozenset[str]]  # of each channel that the app is in


def channels_of(settings: Settings, people: People) -> tuple[str, ...]:
    """Every channel in which people may be asked, the common one first."""
    common = (settings.slack_channel,) if settings.slack_channel else ()
    return tuple(dict.fromkeys((*common, *people.channels.values())))


def trial_card(value: str) -> list[Block]:
    """A card with one harmless button."""
    words = "This is a test of body-broker. Nothing is asked for, and nothing happens: click, and the terminal says so."
    button = {"type": "button", "action_id": CHECK, "style": "primary", "text": plain("It arrived"), "value": value}
    return [{"type": "section", "text": plain(words)}, {"type": "actions", "elements": [button]}]


def trial_record(said: str) -> list[Block]:
    """What that card becomes."""
    return [{"type": "section", "text": plain(f"This was a test of body-broker. {said}")}]


async def post_trial(api: SlackApi, channel: str, value: str) -> Place:
    """The test card, posted.

    Raises:
        SlackRefused: It was not.
    """
    return await api.post(channel, "A test of body-broker.", trial_card(value))


async def _transports(api: SlackApi, settings: Settings) -> Sequence[Finding]:
    found: list[Finding] = []
    if settings.slack_app_token is not None:
        try:
            await api.open_socket(settings.slack_app_token.get_secret_value())
        except SlackRefused as error:
            found.append(
                Finding("clicks", ok=False, said=f"Socket Mode: Slack says {error.word}", next_step=_MEND_SOCKET)
            )
        else:
            found.append(Finding("clicks", ok=True, said="they come over Socket Mode"))
    if settings.slack_signing_secret is not None:
        public = settings.public_url or ""
        found.append(
            Finding(
                "clicks",
                ok=public.startswith("https://"),
                said=f"they come over signed HTTP to {public or 'nowhere'}",
                next_step="Set BODY_BROKER_PUBLIC_URL to the https URL at which Slack reaches the hub.",
            )
        )
    return found or [Finding("clicks", ok=False, said="nothing is set for them", next_step=_MEND_SOCKET)]


async def _channel(api: SlackApi, channel: str, members: dict[str, frozenset[str]]) -> Finding:
    try:
        info = await api.channel(channel)
        members[channel] = await api.members(channel) if info.get("is_member") else frozenset()
    except SlackRefused as error:
        next_step = _MEND_SCOPES if error.word == "missing_scope" else f"{_MEND_CHANNEL} Is it private? {_MEND_INVITE}"
        return Finding("channel", ok=False, said=f"{channel}: Slack says {error.word}", next_step=next_step)
    name = f"#{info.get('name', '?')} ({channel})"
    if info.get("is_archived"):
        return Finding("channel", ok=False, said=f"{name} is archived", next_step="Choose another channel.")
    if not info.get("is_member"):
        return Finding("channel", ok=False, said=f"the app is not in {name}", next_step=_MEND_INVITE)
    if any(info.get(each) for each in ("is_ext_shared", "is_shared", "is_org_shared", "is_pending_ext_shared")):
        shared = f"the app is in {name}, which is SHARED with another workspace: people there read every request"
        return Finding("channel", ok=True, said=shared)
    return Finding("channel", ok=True, said=f"the app is in {name}")


async def _groups(api: SlackApi, people: People) -> Sequence[Finding]:
    if not people.mentions:
        return ()
    try:
        known = await api.group_ids()
    except SlackRefused as error:
        return (Finding("group", ok=False, said=f"Slack says {error.word}", next_step=_MEND_SCOPES),)
    return [
        Finding(
            "group",
            ok=each in known,
            said=f"{name} is called as {each}"
            + ("" if each in known else ", which is no user group of this workspace"),
            next_step=_MEND_GROUP,
        )
        for name, each in sorted(people.mentions.items())
    ]


async def _approver(api: SlackApi, settings: Settings, people: People, principal: str, seen: _Seen) -> Finding:
    person = people.persons[principal]
    groups = ", ".join(sorted(person.groups))
    if person.slack is None:
        return Finding(
            "approver", ok=True, said=f"{principal} ({groups}) has no Slack id: they decide on the page only"
        )
    try:
        user = await api.member(person.slack)
    except SlackRefused as error:
        next_step = _MEND_SCOPES if error.word == "missing_scope" else _MEND_MEMBER
        return Finding(
            "approver", ok=False, said=f"{principal}, {person.slack}: Slack says {error.word}", next_step=next_step
        )
    if user.get("deleted") or user.get("is_bot"):
        what = "a bot" if user.get("is_bot") else "deactivated"
        return Finding("approver", ok=False, said=f"{principal}, {person.slack} is {what}", next_step=_MEND_MEMBER)
    if user.get("team_id", seen.team) != seen.team:
        what = f"{principal}, {person.slack} belongs to another workspace ({user['team_id']})"
        return Finding("approver", ok=False, said=what, next_step=_MEND_TEAM)
    asked_in = {people.channels.get(group) or settings.slack_channel for group in person.groups}
    absent = [channel for channel in asked_in if channel in seen.members and person.slack not in seen.members[channel]]
    if absent:
        return Finding(
            "approver",
            ok=False,
            said=f"{principal}, {person.slack} is not in {', '.join(sorted(absent))}, where they are asked",
            next_step="Invite them to that channel.",
        )
    return Finding("approver", ok=True, said=f"{principal} ({groups}) is {person.slack}, {user.get('name', '?')}")
