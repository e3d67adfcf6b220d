"""Two real hubs with the suite's fixture in them, behind a balancer that adds the one identity its policy file names."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from body_broker.settings import Settings
from body_broker.storage.redis import Redis
from mcp_servers.hub.events import EventBus
from mcp_servers.hub.rooms import ROOMS
from mcp_servers.hub.runtime import Runtime, open_runtime
from mcp_servers.hub.serve import Address, listening
from tests.conformance import tasks
from tests.conformance.room import ROOM
from tests.counterparts.round_robin import RoundRobin, round_robin
from tests.npm_modules import NpmModules, npm_modules

IDENTITY = "service:conformance"
POLICIES = Path(__file__).parent / "policies"


@pytest.fixture(scope="session")
def modules() -> NpmModules:
    return npm_modules()


@dataclass(frozen=True)
class Pair:
    """Two hubs on one set of stores: one of them with its own URL, and the balancer before both."""

    runtime: Runtime
    hub_url: str
    balancer: RoundRobin


@pytest.fixture
async def pair(database_url: str, redis_url: str, redis: Redis, tmp_path: Path) -> AsyncGenerator[Pair]:
    settings = Settings.model_validate(
        {
            "database_url": database_url,
            "redis_url": redis_url,
            "secret_key": "a-secret-key-of-the-suite-0123456789",
            "data_dir": tmp_path,
            "policies_dir": POLICIES,
        }
    )

    @asynccontextmanager
    async def hub() -> AsyncGenerator[tuple[Runtime, str]]:
        desk = tasks.Desk()
        services: dict[str, object] = {ROOM.name: EventBus(redis), tasks.ROOM.name: desk}
        async with (
            open_runtime(settings, (*ROOMS, ROOM, tasks.ROOM), extra_services=services) as runtime,
            tasks.computing(runtime),
            listening(runtime, Address("127.0.0.1", 0)) as served,
        ):
            desk.pool = runtime.stores.pool
            yield runtime, served.url

    async with hub() as (runtime, first), hub() as (_, second):
        token = (await runtime.tokens.issue(IDENTITY, ttl_s=3600)).token
        async with round_robin(first, second, token=token) as balancer:
            yield Pair(runtime, first, balancer)
