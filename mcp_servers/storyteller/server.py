"""The storyteller server: lore, facts, plots and consistency with canon. Owns the tools' wording."""

from __future__ import annotations

from body_broker.calls import Room

ROOM = Room(
    name="storyteller",
    title="Storyteller",
    description="Canon: lore, facts and plots, and whether a text agrees with them.",
    tools=(),
)
