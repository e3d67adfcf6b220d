"""Owns which servers there are, and how each gets its services; `serve rag` serves one of them and the hub's own tools."""

from __future__ import annotations

from body_broker.calls import Room
from body_broker.errors import StartError
from mcp_servers.admin import server as admin
from mcp_servers.cybersecurity import server as cybersecurity
from mcp_servers.game_state import server as game_state
from mcp_servers.hub import own
from mcp_servers.rag import server as rag
from mcp_servers.storyteller import server as storyteller

ROOMS: tuple[Room, ...] = (own.ROOM, storyteller.ROOM, cybersecurity.ROOM, admin.ROOM, game_state.ROOM, rag.ROOM)


def rooms_named(names: tuple[str, ...]) -> tuple[Room, ...]:
    """The hub's own room and the named ones; all of them where no name is given.

    Raises:
        StartError: A name is no server's.
    """
    known = {room.name for room in ROOMS}
    if unknown := sorted(set(names) - known):
        raise StartError(
            f"There is no server called {', '.join(unknown)}.", next_step=f"Servers are: {', '.join(sorted(known))}."
        )
    return tuple(room for room in ROOMS if not names or room.name in names or room is own.ROOM)
