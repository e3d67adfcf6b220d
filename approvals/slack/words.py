"""Owns the words of Slack as a place: messages and where they are, who we are there, and how it says no. No slack_sdk."""

from __future__ import annotations

from dataclasses import dataclass

from body_broker.errors import Unavailable

GONE = frozenset({"message_not_found", "cant_update_message", "edit_window_closed"})
"""Slack's words for a message that can no longer be changed."""


class SlackRefused(Unavailable):
    """Slack could not be reached or said no; `details["slack"]` is its own word for it, or ours."""

    advice = "Run `body-broker slack check`: it says what is missing."

    @property
    def word(self) -> str:
        """Slack's word: `not_in_channel`, `ratelimited`; or ours: `unreachable`, `no_ts`."""
        return str(self.details["slack"])


def refused(word: str, retry_after_s: float | None = None) -> SlackRefused:
    """What Slack, or the way to it, said.

    Args:
        word: One word, of Slack's or ours.
        retry_after_s: How long Slack wants to be left alone.
    """
    return SlackRefused(
        f"Slack did not do it: {word}.", retry_after_s=retry_after_s, details={"component": "slack", "slack": word}
    )


@dataclass(frozen=True, slots=True)
class Place:
    """One message in Slack: the workspace, the channel, and the message's ts."""

    team: str
    channel: str
    ts: str


@dataclass(frozen=True, slots=True)
class Bot:
    """Who we are in Slack.

    Attributes:
        team: The workspace's id.
        team_name: What it is called.
        user: Our bot's member id.
        scopes: What it may do.
    """

    team: str
    team_name: str
    user: str
    scopes: frozenset[str]
