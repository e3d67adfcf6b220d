"""A container's health check says no, and why, wherever the process does not do its work; that it says yes the stack's tests see."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from body_broker.settings import Settings
from mcp_servers.hub.engine import arbitrating
from mcp_servers.hub.runtime import open_runtime
from mcp_servers.hub.serve import Address, listening
from mcp_servers.hub.worker import working
from tests.mcp_servers.hub.conftest import SECRET, settings_for
from tests.waiting import wait_until

__all__ = ["settings_for"]  # a fixture


async def _asked(what: str, **env: str) -> tuple[int | None, str]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "mcp_servers.hub.health", what),
        env={**os.environ, **env},  # noqa: TID251  # a child's
        stdout=asyncio.subprocess.PIPE,
    )
    out, _ = await process.communicate()
    return process.returncode, out.decode().strip()


@pytest.mark.parametrize(
    ("what", "reason"),
    [
        ("http://127.0.0.1:9/readyz", "no answer"),
        ("https://127.0.0.1:9/readyz", "no answer"),
        ("http://elsewhere.example/readyz", "name the hub's /readyz"),
        ("file:///etc/passwd", "name the hub's /readyz"),
        ("worker", "no BODY_BROKER_DATABASE_URL"),
        ("engine", "no BODY_BROKER_DATABASE_URL"),
    ],
)
async def test_what_cannot_be_asked_is_not_healthy(what: str, reason: str) -> None:
    code, said = await _asked(what)

    assert code == 1
    assert said.startswith(reason)


async def test_a_hub_is_healthy_until_it_drains(settings_for: Callable[..., Settings]) -> None:
    async with open_runtime(settings_for()) as runtime, listening(runtime, Address("127.0.0.1", 0)) as served:
        url = served.url.replace("/mcp", "/readyz")
        assert await _asked(url) == (0, "healthy")
        served.front.begin_draining()
        assert await _asked(url) == (1, "not ready: 503")


async def test_a_proxy_that_the_environment_names_is_not_asked(settings_for: Callable[..., Settings]) -> None:
    async with open_runtime(settings_for()) as runtime, listening(runtime, Address("127.0.0.1", 0)) as served:
        url = served.url.replace("/mcp", "/readyz")
        assert await _asked(url, HTTP_PROXY="http://127.0.0.1:9", http_proxy="http://127.0.0.1:9") == (0, "healthy")


@pytest.mark.parametrize("what", ["worker", "engine"])
async def test_a_process_that_is_up_but_does_not_work_is_not_healthy(
    settings_for: Callable[..., Settings], database_url: str, what: str
) -> None:
    env = {"BODY_BROKER_DATABASE_URL": database_url, "BODY_BROKER_SECRET_KEY": SECRET}
    async with open_runtime(settings_for(), name=what):
        code, said = await _asked(what, **env)
    assert (code, said) == (1, f"nothing heard of the {what} for 60 s")


@pytest.mark.parametrize("kind", ["own", "external"])
async def test_an_engine_is_healthy_while_it_arbitrates_or_relays(
    settings_for: Callable[..., Settings], database_url: str, kind: str
) -> None:
    env = {"BODY_BROKER_DATABASE_URL": database_url, "BODY_BROKER_SECRET_KEY": SECRET}
    async with open_runtime(settings_for(engine=kind), name="engine") as runtime, arbitrating(runtime):

        async def is_well() -> bool:
            return await _asked("engine", **env) == (0, "healthy")

        await wait_until(is_well, "the engine is heard of")


async def test_a_worker_is_healthy_while_it_is_heard_of(
    settings_for: Callable[..., Settings], database_url: str
) -> None:
    env = {"BODY_BROKER_DATABASE_URL": database_url, "BODY_BROKER_SECRET_KEY": SECRET}
    assert await _asked("worker", **env) == (1, "nothing heard of the worker for 60 s")
    async with open_runtime(settings_for(), name="hub"):
        assert (await _asked("worker", **env))[0] == 1  # a hub is no worker
    async with open_runtime(settings_for(), name="worker") as runtime, working(runtime):
        assert await _asked("worker", **env) == (0, "healthy")
        await runtime.stores.pool.execute("SELECT 1")
    assert (await _asked("worker", **(env | {"BODY_BROKER_DATABASE_URL": "postgresql://127.0.0.1:9/x"})))[1] == (
        "the database does not answer"
    )


def test_the_module_is_what_compose_and_the_dockerfile_name() -> None:
    root = Path(__file__).parents[2]

    assert "mcp_servers.hub.health" in (root / "compose.yaml").read_text()
    assert "mcp_servers.hub.health" in (root / "Dockerfile").read_text()
