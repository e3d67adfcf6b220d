"""Owns two hubs on one set of stores, behind a balancer that knows nothing of either."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx2
import pytest
from mcp import Client
from mcp.client.streamable_http import streamable_http_client

from tests.counterparts.round_robin import RoundRobin, round_robin
from tests.mcp_servers.hub.conftest import Hub, OpenHub, open_hub, settings_for
from tests.mcp_servers.hub.test_gate import modern, request

__all__ = ["open_hub", "settings_for"]  # fixtures


@dataclass
class Pair:
    """Two hubs and the balancer before them."""

    one: Hub
    other: Hub
    balancer: RoundRobin

    @asynccontextmanager
    async def client(self, principal: str, *roles: str) -> AsyncGenerator[Client]:
        """The official SDK's client, each of whose requests goes to the next hub."""
        headers = {"authorization": f"Bearer {await self.one.token(principal, *roles)}"}
        async with (
            httpx2.AsyncClient(headers=headers, timeout=60) as http,
            Client(streamable_http_client(self.balancer.url, http_client=http)) as client,
        ):
            yield client

    async def call(self, http: httpx2.AsyncClient, token: str, tool: str, arguments: dict[str, Any]) -> httpx2.Response:
        """One bare tools/call through the balancer."""
        body = request("tools/call", {"name": tool, "arguments": arguments})
        return await http.post(self.balancer.url, headers=modern(token, "tools/call", tool), json=body)


OpenPair = Callable[..., AbstractAsyncContextManager[Pair]]


@pytest.fixture
def open_pair(open_hub: OpenHub, redis: object) -> OpenPair:
    _ = redis  # flushed before the test

    @asynccontextmanager
    async def make(**settings: Any) -> AsyncGenerator[Pair]:
        async with (
            open_hub(**settings) as one,
            open_hub(**settings) as other,
            round_robin(one.url, other.url) as balancer,
        ):
            yield Pair(one, other, balancer)

    return make


@pytest.fixture
async def pair(open_pair: OpenPair) -> AsyncGenerator[Pair]:
    async with open_pair() as found:
        yield found
