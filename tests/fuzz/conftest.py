"""Owns the hubs of the fuzzers: those of the hub's own tests, and one whose connections can be counted."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Collection
from dataclasses import dataclass

import pytest

from body_broker.settings import Settings
from mcp_servers.hub.rooms import ROOMS
from mcp_servers.hub.runtime import open_runtime
from mcp_servers.hub.serve import Address, listening
from tests.mcp_servers.hub.conftest import Hub, open_hub, patient_engines, patient_models, settings_for
from tests.mcp_servers.hub.fixture_room import ROOM, Seen

__all__ = ["open_hub", "patient_engines", "patient_models", "settings_for"]


@dataclass
class Served(Hub):
    """A served hub that tells its connections."""

    connections: Collection[object]


@pytest.fixture
async def served(settings_for: Callable[..., Settings], redis: object) -> AsyncGenerator[Served]:
    """A hub with the fixture's tools; whoever calls may call as often as they like."""
    _ = redis  # flushed before the test
    seen = Seen()
    settings = settings_for(rate_per_s=1_000_000, request_bytes_max=200_000)
    async with (
        open_runtime(settings, (*ROOMS, ROOM), extra_services={"fixture": seen}) as runtime,
        listening(runtime, Address("127.0.0.1", 0)) as found,
    ):
        yield Served(found.url, runtime, seen, found.front, found.connections)
