"""Hubs for the tests: real runtimes on the test's own stores, served over real HTTP, with clients nobody here wrote."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import httpx2
import pytest
from mcp import Client
from mcp.client.streamable_http import streamable_http_client

from body_broker.calls import Room
from body_broker.settings import Settings
from mcp_servers.hub.front import Front
from mcp_servers.hub.rooms import ROOMS
from mcp_servers.hub.runtime import Runtime, open_runtime
from mcp_servers.hub.serve import Address, listening
from tests.mcp_servers.hub.fixture_room import ROOM, Seen

SECRET = "a-secret-key-of-the-tests-0123456789"


@dataclass
class Hub:
    """A served hub and what a test needs of it."""

    url: str
    runtime: Runtime
    seen: Seen
    front: Front

    @property
    def base(self) -> str:
        return self.url.removesuffix("/mcp")

    async def token(self, principal: str, *roles: str) -> str:
        return (await self.runtime.tokens.issue(principal, roles=roles, ttl_s=600)).token

    @asynccontextmanager
    async def client(self, principal: str, *roles: str, mode: str = "auto") -> AsyncGenerator[Client]:
        """The official SDK's client with a token of this principal."""
        async with self.client_with(await self.token(principal, *roles), mode=mode) as client:
            yield client

    @asynccontextmanager
    async def client_with(self, token: str, mode: str = "auto") -> AsyncGenerator[Client]:
        headers = {"authorization": f"Bearer {token}"}
        async with (
            httpx2.AsyncClient(headers=headers, timeout=240) as http,
            Client(streamable_http_client(self.url, http_client=http), mode=mode) as client,
        ):
            yield client


OpenHub = Callable[..., AbstractAsyncContextManager[Hub]]


@pytest.fixture(scope="session")
def patient_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Our models.toml, with engines that count as silent or stalled only after a minute."""
    ours = files("tiers").joinpath("models.toml").read_text("utf-8")
    folder = tmp_path_factory.mktemp("tiers")
    (folder / "models.toml").write_text(re.sub(r"(?m)^(ttft_s|stall_s) = .*$", r"\1 = 60", ours), encoding="utf-8")
    return folder


@pytest.fixture(autouse=True)
def patient_engines(patient_models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No engine is given up because this machine is busy; tests/tiers asks how soon one must speak."""

    def ours(_package: str) -> Path:
        return patient_models

    monkeypatch.setattr("tiers.reading.files", ours)


@pytest.fixture
def settings_for(
    database_url: str, redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Settings]:
    # On a busy machine Valkey itself may not run for a second.
    monkeypatch.setattr("mcp_servers.hub.limits._TIMEOUT_S", 60.0)

    def make(**overrides: Any) -> Settings:
        return Settings.model_validate(
            {
                "database_url": database_url,
                "redis_url": redis_url,
                "secret_key": SECRET,
                "data_dir": tmp_path,
                "embeddings": "off",  # what is about vectors turns them on
                "approval_wait_s": 0.05,  # what is about waiting says how long
            }
            | overrides,
        )

    return make


@pytest.fixture
def open_hub(settings_for: Callable[..., Settings]) -> OpenHub:
    @asynccontextmanager
    async def make(rooms: tuple[Room, ...] = (*ROOMS, ROOM), **overrides: Any) -> AsyncGenerator[Hub]:
        seen = Seen()
        async with (
            open_runtime(settings_for(**overrides), rooms, extra_services={"fixture": seen}) as runtime,
            listening(runtime, Address("127.0.0.1", 0)) as served,
        ):
            yield Hub(served.url, runtime, seen, served.front)

    return make


@pytest.fixture
async def hub(open_hub: OpenHub, redis: object) -> AsyncGenerator[Hub]:
    _ = redis  # flushed before the test
    async with open_hub() as found:
        yield found


def error_of(result: Any) -> dict[str, Any]:
    """The hub's error in a tool result."""
    assert result.is_error, result
    error: dict[str, Any] = result.structured_content["error"]
    return error
