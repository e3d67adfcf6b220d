"""The cybersecurity server: scans of repositories and their findings. Owns the tools' wording."""

from __future__ import annotations

from body_broker.calls import Room

ROOM = Room(
    name="cybersecurity",
    title="Cybersecurity",
    description="Scans of registered repositories, and what they found.",
    tools=(),
)
