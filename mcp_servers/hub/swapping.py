"""Owns the swap of what is served: policy, gate, lists and definitions become others together, between two steps of the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

from body_broker.calls import Room
from mcp_servers.hub.approving import Definitions
from mcp_servers.hub.events import EventBus, ListKind
from mcp_servers.hub.gate import Gate
from mcp_servers.hub.listing import Listings
from policies.catalogue import Catalogue
from policies.engine import Policy


class Swap:
    """Serves other rooms than before.

    Args:
        gate: Runs calls, and holds the policy.
        listings: Show what there is.
        definitions: Bind approvals to what people were told a tool is.
        bus: Tells listeners that lists have changed.
        policies_dir: The studio's policies.
    """

    def __init__(
        self,
        gate: Gate,
        listings: Listings,
        definitions: Definitions,
        bus: EventBus,
        *,
        policies_dir: Path | None,
    ) -> None:
        self._policies_dir = policies_dir
        self._gate, self._listings, self._definitions, self._bus = gate, listings, definitions, bus

    def tools(self) -> frozenset[str]:
        """The names of the tools that are served now."""
        return frozenset(tool.name for room in self._gate.rooms for tool in room.tools)

    async def to(self, served: Sequence[Room], every: Sequence[Room]) -> None:
        """Serve these rooms from now on, of all that there are; what is decided, listed, run and approved changes at once.

        Raises:
            PolicyError: The studio's policies do not fit the new rows; everything stays as it was.
        """
        found = await asyncio.to_thread(Policy.load, Catalogue.of(every), self._policies_dir)
        before = _shown(self._gate.rooms)
        # No await from here on: no call sees half of it.
        self._gate.policy.become(found)
        self._gate.serve(served, every)
        self._listings.serve(served)
        self._definitions.serve(every)
        after = _shown(served)
        await self._bus.lists_changed_here([kind for kind in after if after[kind] != before[kind]])


def _shown(rooms: Sequence[Room]) -> dict[ListKind, frozenset[tuple[str, str | None]]]:
    """What a list of each kind is made of."""
    kinds: tuple[tuple[ListKind, str], ...] = (("tools", "tool"), ("resources", "resource"), ("prompts", "prompt"))
    rows = [row for room in rooms for row in room.operations() if row.withheld is None]
    return {of: frozenset((row.name, row.defined) for row in rows if row.kind == kind) for of, kind in kinds}
