"""Owns the words of Slack as a place: messages and where they are, who we are there, and how it says no. No slack_sdk."""

from __future__ import annotations

from dataclasses import dataclass

from body_broker.errors import Unavailable

CONNECTED, CONNECTING = "body-broker slack connected", "body-broker slack connecting"
"""What the database connection of the process that listens is called, as pg_stat_activity shows it."""
GONE = frozenset({"message_not_found", "cant_update_message", "edit_window_closed", "thread_not_found", "thread_gone"})
"""Words for a message that can no longer be changed or answered to; the last one is ours."""
TOO_LONG = frozenset({"msg_blocks_too_long", "msg_too_long"})
"""Slack's words for a message that is larger than it takes."""
PATH = "/slack/interactions"
"""Where Slack's signed clicks come in, when they come over HTTP."""
_OPEN = frozenset(
    {"unreachable", "no_ts", "no_channel", "fatal_error", "internal_error", "service_unavailable", "request_timeout"}
)


class SlackRefused(Unavailable):
    """Slack could not be reached or said no; `details["slack"]` is its own word for it, or ours."""

    advice = "Run `body-broker slack check`: it says what is missing."

    @property
    def word(self) -> str:
        """Slack's word: `not_in_channel`, `ratelimited`; or ours: `unreachable`, `no_ts`."""
        return str(self.details["slack"])

    @property
    def is_definite(self) -> bool:
        """Whether Slack surely did nothing: it said no, and did not break or fall silent."""
        return self.word not in _OPEN and not self.word.startswith("http_")


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
