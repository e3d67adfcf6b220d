"""Owns calls of tools that another call causes in its own caller's name: through the same gate, decided and on the audit like any."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from body_broker.calls import Caller, Json
from mcp_servers.hub.gate import Gate
from mcp_servers.hub.listing import Listings
from mcp_servers.hub.requests import Patience, Request


@dataclass(frozen=True, slots=True)
class NestedCalls:
    """The hub's tools for the tiers of this process, as whoever asks them (`tiers.bronze.tier.HubCalls`)."""

    gate: Gate
    listings: Listings

    def may(self, caller: Caller, tool: str) -> bool:
        """Whether the caller is shown a tool of which people are never asked; nothing is on record for the question."""
        return not self.gate.policy.askable(tool) and any(each.name == tool for each in self.listings.of(caller).tools)

    async def call(self, caller: Caller, tool: str, arguments: Mapping[str, Json]) -> Mapping[str, Json]:
        """The structured result of one call, one deeper than the caller's own; nobody waits for people here.

        Raises:
            BodyBrokerError: Whatever refused it or went wrong.
        """
        answer = await self.gate.run(
            Request(
                name=tool,
                kind="tool",
                arguments=dict(arguments),
                caller=caller,
                depth=caller.depth + 1,
                patience=Patience(wait_s=0),
            )
        )
        found: Mapping[str, Json] = answer.result.model_dump(mode="json")
        return found
