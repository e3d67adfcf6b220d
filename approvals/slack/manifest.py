"""Owns the manifest of the Slack app: what it may do and how its clicks reach us, for pasting into Slack."""

from __future__ import annotations

from importlib import resources

from approvals.slack.words import PATH

SCOPES: dict[str, frozenset[str]] = {
    "post and change messages": frozenset({"chat:write"}),
    "see the channel and who is in it": frozenset({"channels:read", "groups:read"}),
    "see that approvers' ids are people": frozenset({"users:read"}),
    "see that groups to be called exist": frozenset({"usergroups:read"}),
}
"""What the app does and the scopes for it; of each set one is enough."""
_INTERACTIVITY = "  interactivity:\n    is_enabled: true\n"


def manifest(url: str | None = None) -> str:
    """The app's manifest as YAML; reads a file of this package, so call it in a thread.

    Args:
        url: The hub's public https URL, where clicks are to come over signed HTTP; None for Socket Mode.
    """
    text = resources.files("approvals.slack").joinpath("manifest.yaml").read_text("utf-8")
    if url is None:
        return text
    request = f"{_INTERACTIVITY}    request_url: {url.rstrip('/')}{PATH}\n"
    return (
        text.replace(_INTERACTIVITY, request)
        .replace("socket_mode_enabled: true", "socket_mode_enabled: false")
        .replace("over Socket Mode", "over signed HTTP")
    )
