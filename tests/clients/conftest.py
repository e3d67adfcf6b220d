"""Owns what the clients' tests share: one data directory to serve over stdio from, and the way in that a client takes."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import pytest

from body_broker.storage import embedded
from mcp_servers.hub.rooms import ROOMS
from mcp_servers.hub.worker import working
from tests.clients.doors import ANNA, ROLE, Door, Studio, furnish
from tests.clients.drivers import Driver, Kind, driven
from tests.clients.rows import ROOM
from tests.components import scratch_dir
from tests.mcp_servers.hub.conftest import OpenHub, open_hub, settings_for
from tests.waiting import wait_until_sync

__all__ = ["open_hub", "settings_for"]  # fixtures

OpenDoor = Callable[[], AbstractAsyncContextManager[Door]]
Met = tuple[Driver, Door]


@pytest.fixture(scope="session")
def studio() -> Iterator[Studio]:
    data = Path(tempfile.mkdtemp(prefix="body-broker-tests-", dir=scratch_dir()))
    embedded.start(data)
    yield asyncio.run(furnish(data))
    embedded.release(data)
    wait_until_sync(lambda: embedded.status(data).keeper_pid is None, "the keeper ends")
    shutil.rmtree(data, ignore_errors=True)  # another session's sweep may be at it


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    """One loop for the module, so that a client over stdio can be kept for its tests."""
    return "asyncio"


@pytest.fixture(scope="module")
def served_from(request: pytest.FixtureRequest, kind: Kind) -> Studio | None:
    """Where a client over stdio has its hub; None over HTTP."""
    return request.getfixturevalue("studio") if kind.transport == "stdio" else None


@pytest.fixture(scope="module")
async def kept(
    kind: Kind, served_from: Studio | None, tmp_path_factory: pytest.TempPathFactory
) -> AsyncGenerator[Met | None]:
    """A client over stdio with its hub, for all tests of its kind: starting them costs more than what is asked. None over HTTP."""
    if served_from is None:
        yield None
        return
    async with served_from.door() as door, driven(kind, door, tmp_path_factory.mktemp("home")) as client:
        yield client, door


@pytest.fixture
def open_door(served_from: Studio | None, open_hub: OpenHub, redis: object) -> OpenDoor:
    """A way in of the test's own, with the clients' rows beside the product's."""
    _ = redis  # flushed before the test

    @asynccontextmanager
    async def make() -> AsyncGenerator[Door]:
        if served_from is not None:
            async with served_from.door(rows=True) as door:
                yield door
            return
        async with open_hub(rooms=(*ROOMS, ROOM)) as hub, working(hub.runtime):
            yield Door(runtime=hub.runtime, url=hub.url, token=await hub.token(ANNA, ROLE))

    return make


@pytest.fixture
async def met(kind: Kind, kept: Met | None, open_door: OpenDoor, tmp_path: Path) -> AsyncGenerator[Met]:
    """A client of the test's kind, connected, and the way that it came in."""
    if kept is not None:
        yield kept
        return
    async with open_door() as door, driven(kind, door, tmp_path) as client:
        yield client, door
