"""The admin server: read-only queries of the studio's AWS account. Owns the tools' wording."""

from __future__ import annotations

from body_broker.calls import Room

ROOM = Room(
    name="admin",
    title="Administration",
    description="Read-only look at the studio's cloud, and reports.",
    tools=(),
)
