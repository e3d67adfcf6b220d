"""The game_state server: reads of the world and changes queued for its engine. Owns the tools' wording."""

from __future__ import annotations

from body_broker.calls import Room

ROOM = Room(
    name="game_state",
    title="Game state",
    description="The living world: what is where, and changes to it that the game's engine decides.",
    tools=(),
)
